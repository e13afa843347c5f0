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

"""Train a ViT with whichever MONAI is installed; see :mod:`demo.make_checkpoint`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn

import monai
from demo.masked import fill_in, hidden_error, hide
from demo.training import augmented, command_line, train, write
from demo.volume import load_scan
from monai.networks.nets import ViT

OPTIONS: dict[str, Any] = {
    "in_channels": 1,
    "img_size": (96, 96),
    "patch_size": (8, 8),
    "hidden_size": 32,
    "mlp_dim": 64,
    "num_layers": 3,
    "num_heads": 4,
    "spatial_dims": 2,
}
REFERENCE_SLICE = 12
HIDDEN_SHARE = 0.5


def main() -> None:
    """Train, and write the state dicts with an input and the output that this MONAI gives for it."""
    args = command_line(__doc__)
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    slices, patch = load_scan().training_slices, OPTIONS["patch_size"]
    vit, head = ViT(**OPTIONS), nn.Linear(OPTIONS["hidden_size"], patch[0] * patch[1])

    def loss() -> torch.Tensor:
        images = augmented(slices, 8, 1, generator)
        hidden, mask = hide(images, patch, HIDDEN_SHARE, generator)
        return hidden_error(fill_in(vit, head, hidden), images, mask, patch)

    train([*vit.parameters(), *head.parameters()], loss, args.steps, rate=2e-3)
    vit.eval()
    image = load_scan().slices[REFERENCE_SLICE, None]
    hidden, mask = hide(image, patch, HIDDEN_SHARE, generator)
    with torch.no_grad():
        output = vit(hidden)[0]
        error = hidden_error(head(output), image, mask, patch)
    checkpoint = {
        "monai": monai.__version__,
        "network": "ViT",
        "options": OPTIONS,
        "state_dict": vit.state_dict(),
        "head": head.state_dict(),
        "slice": REFERENCE_SLICE,
        "hidden": mask,
        "input": hidden,
        "output": output,
    }
    write(args.output, checkpoint, error)


if __name__ == "__main__":
    main()
