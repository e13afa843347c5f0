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
Damage weights of other packages at random: a load must give the outputs of the undamaged ones, or be refused.

``python -m tests.networks.weights.foreign.fuzz 2500`` tries so many on each kept file.
"""

from __future__ import annotations

import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from tests.networks.weights.foreign.files import kept
from tests.networks.weights.foreign.loading import build, difference, load, outputs, source
from tests.networks.weights.foreign.rows import KEPT, TOLERANCE, Row

__all__ = ["damaged", "silently_wrong"]

# other names of the same, in older versions, in ours, or in wrappers
ALIASES = (
    ("to_q", "query"),
    ("to_out.0", "proj_attn"),
    ("to_out.0", "out_proj"),
    ("group_norm", "norm"),
    ("conv_shortcut", "skip_connection"),
    ("conv1", "conv1.conv"),
    ("mid_block", "middle_block"),
    ("quant_conv", "quant_conv_mu"),
    ("encoder", "decoder"),
    ("mlp.fc1", "mlp.linear1"),
    ("mlp.fc1", "mlp.fc2"),
    ("module.", ""),
    ("module.", "module.swinViT."),
    ("module.", "module.student."),
    ("module.", "module.encoder."),
    ("layers1", "layers2"),
    ("layers1", "layers1c"),
)


def damaged(state: Mapping[str, torch.Tensor], seed: int) -> tuple[str, dict[str, torch.Tensor]]:
    """What was done to a state dict, and what became of it."""
    draw = random.Random(seed)
    keys = sorted(state)
    kind = draw.choice(("rename", "drop", "drop a part", "duplicate", "other values", "rename a part"))
    key = draw.choice(keys)
    out = dict(state)
    if kind == "drop":
        del out[key]
    elif kind == "drop a part":
        beginning = _beginning(key, draw)
        out = {one: value for one, value in out.items() if not one.startswith(beginning)}
    elif kind == "rename a part":
        beginning = _beginning(key, draw)
        new = _other_name(beginning, keys, draw)
        moved = {one: new + one[len(beginning) :] for one in keys if one.startswith(beginning)}
        out = {
            moved.get(one, one): value
            for one, value in state.items()
            if moved.get(one, one) not in state or one not in moved
        }
    else:
        new = _other_name(key, keys, draw)
        if new not in out:
            out[new] = out[key].clone() if kind != "other values" else out[key] + 1
            if kind == "rename":
                del out[key]
    return f"{kind} {key}", out


def _beginning(key: str, draw: random.Random) -> str:
    parts = key.split(".")
    return ".".join(parts[: draw.randrange(1, len(parts))]) + "."


def _other_name(key: str, keys: list[str], draw: random.Random) -> str:
    """Another name: with another number, in other words, or with a part of another key."""
    numbers = list(re.finditer(r"\d+", key))
    fitting = [pair for pair in ALIASES for pair in (pair, pair[::-1]) if pair[0] and pair[0] in key]
    way = draw.choice(("number", "alias", "part"))
    if way == "number" and numbers:
        found = draw.choice(numbers)
        return f"{key[: found.start()]}{draw.randrange(4)}{key[found.end() :]}"
    if way == "alias" and fitting:
        return key.replace(*draw.choice(fitting), 1)
    parts = key.split(".")
    parts[draw.randrange(len(parts))] = draw.choice(draw.choice(keys).split("."))
    return ".".join(parts)


def silently_wrong(row: Row, reference: Mapping[str, Any], seeds: range) -> Iterator[tuple[str, str]]:
    """
    Load damaged weights.

    Returns:
        for each what was done, and "refused", "same", or "WRONG" where it loaded and the outputs differ
    """
    layout, net = source(row.source), build(row)
    for seed in seeds:
        what, state = damaged(reference["state_dict"], seed)
        try:
            load(net, state, layout, reference["config"], row.allow)
        except RuntimeError:
            yield what, "refused"
            continue
        found = difference(outputs(net, reference["inputs"]), reference["output"])
        yield what, "same" if found <= TOLERANCE else "WRONG"
        net = build(row)  # what was loaded right must not hide what the next load leaves


def main(trials: int) -> int:
    """Try so many on each kept file. Returns 1 if one is silently wrong."""
    torch.set_num_threads(1)
    wrong = 0
    for name in KEPT:
        results = list(silently_wrong(*kept(name), range(trials)))
        print(name, dict(Counter(verdict for _, verdict in results)))
        wrong += sum(verdict == "WRONG" for _, verdict in results)
        print("\n".join(f"    {what}" for what, verdict in results if verdict == "WRONG"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
