# Copyright (c) MONAI Consortium
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""
Damage the vision transformers of other packages at random: a load must give the features of the undamaged ones, or be
refused.

``python -m tests.networks.weights.vit_fuzz 10000`` tries so many.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterator

import torch

from tests.networks.weights.vit_files import CASES, TINY_SIZES, difference, load, network_for, results, tiny_file

__all__ = ["silently_wrong"]

TOLERANCE = 1e-5
PREFIXES = ("", "module.", "vit.", "decoder.")


def silently_wrong(trials: int) -> Iterator[tuple[str, str]]:
    """
    Load damaged files, each time into a network of other weights.

    Returns:
        for each what was done, and "refused", "same", or "WRONG" where it loaded and the features differ
    """
    chance = random.Random(0)
    files = {name: tiny_file(name) for name in TINY_SIZES}
    nets = {name: network_for(CASES[name], **TINY_SIZES[name]) for name in TINY_SIZES}
    others = sorted({key for name in files for key in (*files[name]["state_dict"], *nets[name].state_dict())})
    for _ in range(trials):
        name = chance.choice(list(files))
        content, net = files[name], nets[name]
        what, state = damaged(content["state_dict"], others, chance)
        try:
            load(net, state, None, content["config"], allow=CASES[name].allow)
        except RuntimeError:
            yield f"{name}: {what}", "refused"
            continue
        yield f"{name}: {what}", "same" if difference(results(net, content), content) <= TOLERANCE else "WRONG"
        with torch.no_grad():  # what was loaded right must not hide what the next load leaves
            for value in net.parameters():
                value.add_(1.0)


def damaged(
    state: dict[str, torch.Tensor], others: list[str], chance: random.Random
) -> tuple[str, dict[str, torch.Tensor]]:
    """What was done to a state dict, and what became of it."""
    key = chance.choice(list(state))
    new = chance.choice([other for other in others if other not in state])
    kind = chance.choice(("rename", "copy", "drop", "misspell", "prefix", "shorten"))
    if kind == "prefix":
        prefix = chance.choice(PREFIXES)
        return f"{kind} {prefix}", {prefix + name: value for name, value in state.items()}
    if kind == "shorten":
        return f"{kind} {key}", {**state, key: state[key][..., :-1]}
    if kind == "misspell":
        new = key[:-1] + chance.choice("xyz0")
    left = {name: value for name, value in state.items() if name != key or kind == "copy"}
    return f"{kind} {key} {new}", left if kind == "drop" else {**left, new: state[key]}


def main(trials: int) -> int:
    """Try so many. Returns 1 if one is silently wrong."""
    torch.set_num_threads(1)
    found = list(silently_wrong(trials))
    print(dict(Counter(verdict for _, verdict in found)))
    wrong = [what for what, verdict in found if verdict == "WRONG"]
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
