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


"""Train a 3-D ViT that fills in hidden blocks of the scan, for ``python -m monai.visualize.attention`` to look into.

From the root of the repository, in about two minutes on one thread::

    python -m demo.train_vit_3d build/vit_3d

The folder gets ``net.json``, ``net.pt`` and the scan, ``scan.nii.gz``.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

from demo.masked import fill_in, hidden_error, hide
from demo.training import train
from demo.volume import load_scan, scan_path
from monai.networks.blocks import SABlock
from monai.networks.nets import ViT

OPTIONS: dict[str, Any] = {
    "in_channels": 1,
    "img_size": (96, 96, 24),
    "patch_size": (8, 8, 4),
    "hidden_size": 96,
    "mlp_dim": 192,
    "num_layers": 3,
    "num_heads": 6,
    "pos_embed_type": "sincos",
    "qkv_bias": True,
}
HIDDEN_SHARE, SHIFT = 0.6, 6


def main() -> None:
    """Train, and write the folder."""
    words, _, details = __doc__.partition("\n")
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m demo.train_vit_3d", description=words, epilog=details, formatter_class=style
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=1200, help="updates of the weights (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and training (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    volumes, patch = load_scan().volumes, OPTIONS["patch_size"]
    vit, head = ViT(**OPTIONS), nn.Linear(OPTIONS["hidden_size"], math.prod(patch))
    liken_queries_to_keys(vit)
    errors: list[float] = []

    def loss() -> torch.Tensor:
        image = volumes[torch.randint(len(volumes), (1,), generator=generator)]
        shift = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=generator).tolist()
        image = image.roll(shift, (2, 3))
        hidden, mask = hide(image, patch, HIDDEN_SHARE, generator)
        error = hidden_error(fill_in(vit, head, hidden), image, mask, patch)
        errors.append(float(error))
        return error

    train([*vit.parameters(), *head.parameters()], loss, args.steps, rate=2e-3)
    args.folder.mkdir(parents=True, exist_ok=True)
    torch.save(vit.state_dict(), args.folder / "net.pt")
    config = {"_target_": "monai.networks.nets.ViT", **OPTIONS}
    (args.folder / "net.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(scan_path(), args.folder / "scan.nii.gz")
    print(f"{args.folder}: error of hidden blocks {sum(errors[-100:]) / len(errors[-100:]):.3f}, last 100 steps")


def liken_queries_to_keys(vit: nn.Module) -> None:
    """Start with tokens that attend to their like, in place and content: two volumes are too few to learn it from."""
    for block in vit.modules():
        if isinstance(block, SABlock):
            weights: torch.Tensor = block.qkv.weight.detach()  # type: ignore[operator, union-attr]
            queries, keys, _ = weights.chunk(3)
            nn.init.orthogonal_(queries)
            keys.copy_(queries)


if __name__ == "__main__":
    main()
