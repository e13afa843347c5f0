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
What timm makes of position and patch embeddings of another size: writes ``tests/testing_data/timm_sizes.pt``.

It needs torch and timm alone, in an environment of their own (timm 1.0.31, torch 2.13.0)::

    python -m venv env && env/bin/pip install torch==2.13.0 timm==1.0.31
    env/bin/python tests/parity/references/timm_sizes.py tests/testing_data/timm_sizes.pt
"""

from __future__ import annotations

import sys

import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models._manipulate import adapt_input_conv

# old grid, new grid, class tokens
GRIDS = [((4, 4), (6, 6), 1), ((7, 7), (4, 4), 0), ((5, 4), (3, 9), 2), ((3, 5), (16, 2), 0)]
PATCHES = [((8, 8), (6, 6)), ((4, 4), (7, 7)), ((8, 6), (5, 9))]
CHANNELS = [(3, 1), (3, 6), (3, 2), (3, 4)]


def main(path: str) -> None:
    """Write the inputs beside timm's results."""
    torch.manual_seed(0)
    out: dict[str, list] = {"positions": [], "patches": [], "channels": []}
    for old, new, first in GRIDS:
        values = torch.randn(1, first + old[0] * old[1], 4)
        found = resample_abs_pos_embed(values, list(new), list(old), num_prefix_tokens=first)
        out["positions"].append({"old": old, "new": new, "first": first, "values": values, "timm": found})
    for old, new in PATCHES:
        weight = torch.randn(2, 2, *old)
        out["patches"].append({"new": new, "weight": weight, "timm": resample_patch_embed(weight, list(new))})
    for _, number in CHANNELS:
        weight = torch.randn(2, 3, 2, 2)
        out["channels"].append({"number": number, "weight": weight, "timm": adapt_input_conv(number, weight.clone())})
    torch.save(out, path)


if __name__ == "__main__":
    main(sys.argv[1])
