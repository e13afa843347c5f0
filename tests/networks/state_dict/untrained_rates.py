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
How often the test of untrained linears errs: ``python -m tests.networks.state_dict.untrained_rates``.

Linears as torch makes them, which it should recognize, in several types; and networks of attention blocks, trained in
several ways, whose projections were trained with the rest, and must not be dropped, or were not used, and should be
recognized. A load goes by all projections of a network, and by the linears of q, k and v beside them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
import torch.nn as nn

from monai.networks.blocks import SABlock
from monai.networks.state_dict.projections import Attention
from monai.networks.state_dict.untrained import never_trained, only_one_untrained

Weights = list[tuple[list[torch.Tensor], list[torch.Tensor]]]
"""For each block of a network the weights of its projection, and those of q, k and v."""
BLOCKS = 3
WIDTHS = (8, 16, 32, 64, 128, 256, 512)
TYPES = (torch.float32, torch.float16, torch.bfloat16)
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": torch.optim.SGD,
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
}


def main(arguments: list[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=str(__doc__).strip().splitlines()[0])
    parser.add_argument("--linears", type=int, default=1000, help="untrained linears of each width and type")
    parser.add_argument("--networks", type=int, default=20, help="trained networks of each width and way of training")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)

    print("untrained linears that were not recognized, of", args.linears)
    for width in WIDTHS:
        missed = [sum(not recognized(width, dtype) for _ in range(args.linears)) for dtype in TYPES]
        print(f"  width {width:4d}  " + "  ".join(f"{str(t)[6:]} {n}" for t, n in zip(TYPES, missed)))

    print(
        f"\nof {args.networks} trained networks of {BLOCKS} blocks, by width: those whose projections look untrained"
        "\n  used ones by themselves / used ones beside q, k and v / unused ones beside q, k and v"
    )
    for name, rate, steps in ways():
        counts = [rates(width, name, rate, steps, args.networks) for width in WIDTHS[:-2]]
        cells = "  ".join(f"{width}: {'/'.join(map(str, found)):8s}" for width, found in zip(WIDTHS, counts))
        print(f"  {name:5s} {rate:g}, {steps:3d} steps".ljust(25) + cells)


def ways() -> Iterator[tuple[str, float, int]]:
    """Optimizers, learning rates and numbers of steps."""
    for name in OPTIMIZERS:
        for rate in (1e-2, 1e-4) if name == "SGD" else (1e-3, 1e-5):
            for steps in (1, 10, 100):
                yield name, rate, steps


def recognized(width: int, dtype: torch.dtype) -> bool:
    """Whether a new linear is recognized as untrained."""
    linear = nn.Linear(width, width).to(dtype)
    return never_trained(linear.weight, linear.bias)


def rates(width: int, optimizer: str, rate: float, steps: int, count: int) -> tuple[int, int, int]:
    """Of so many trained networks, how many have projections that look untrained, see the table's head."""
    used = [trained(width, optimizer, rate, steps, True) for _ in range(count)]
    unused = [trained(width, optimizer, rate, steps, False) for _ in range(count)]
    alone = sum(all(never_trained(*projection) for projection, _ in network) for network in used)
    return alone, sum(map(taken_for_unused, used)), sum(map(taken_for_unused, unused))


def taken_for_unused(network: Weights) -> bool:
    """What a load finds."""
    return only_one_untrained(sum((a for a, _ in network), []), sum((b for _, b in network), []))


def trained(width: int, optimizer: str, rate: float, steps: int, used: bool) -> Weights:
    """The weights of blocks that learned for some steps to reverse a sequence, their projections used or not."""
    blocks = nn.Sequential(
        *(SABlock(width, max(1, width // 16), qkv_bias=True, use_combined_linear=False) for _ in range(BLOCKS))
    )
    projections = [block.out_proj for block in blocks]
    if not used:
        for block in blocks:
            block.out_proj = nn.Identity()
    update = OPTIMIZERS[optimizer](blocks.parameters(), lr=rate)
    for _ in range(steps):
        tokens = torch.randn(4, 8, width)
        update.zero_grad()
        (blocks(tokens) - tokens.flip(1)).pow(2).mean().backward()
        update.step()
    for block, projection in zip(blocks, projections):
        block.out_proj = projection
    found = [(Attention(block, "", ""), block.state_dict()) for block in blocks]
    return [(attention.projection(state), attention.inputs(state)) for attention, state in found]


if __name__ == "__main__":
    main()
