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

"""Train an AutoencoderKL with GenerativeModels itself; see :mod:`demo.make_checkpoint`."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
import torch.nn.functional as F

import monai
from demo.training import augmented, command_line, train, write
from demo.volume import load_scan

OPTIONS: dict[str, Any] = {
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 1,
    "num_channels": (8, 16, 24),
    "num_res_blocks": (1, 1, 1),
    "attention_levels": (False, False, True),
    "latent_channels": 8,
    "norm_num_groups": 4,
}
REFERENCE_SLICE = 12
KL_WEIGHT = 1e-6


def main() -> None:
    """Train, and write the state dict with a held-out slice and its reconstruction."""
    from generative.networks.nets import AutoencoderKL  # the demo reads OPTIONS without it

    args = command_line(__doc__)
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    scan, net = load_scan(), AutoencoderKL(**OPTIONS)

    def loss() -> torch.Tensor:
        images = augmented(scan.training_slices, 2, 4, generator)
        reconstruction, mean, sigma = net(images)
        divergence = (mean**2 + sigma**2 - 2 * sigma.log() - 1).mean() / 2
        out: torch.Tensor = F.l1_loss(reconstruction, images) + KL_WEIGHT * divergence
        return out

    train(net.parameters(), loss, args.steps, rate=2e-3)
    net.eval()
    image = scan.slices[REFERENCE_SLICE, None].clone()
    with torch.no_grad():
        reconstruction = net.reconstruct(image)
    checkpoint = {
        "generative": version("monai-generative"),
        "monai": monai.__version__,
        "network": "AutoencoderKL",
        "options": OPTIONS,
        "state_dict": net.state_dict(),
        "slice": REFERENCE_SLICE,
        "input": image,
        "output": reconstruction,
    }
    write(args.output, checkpoint, F.l1_loss(reconstruction, image))


if __name__ == "__main__":
    main()
