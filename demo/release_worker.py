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

"""The release's side of the comparison: answers the requests of :mod:`demo.release`, one at a time."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn

import monai.networks.nets
from demo.measure import seconds, seeded

OWN_TO_THE_RELEASE = ("norm_cross_attn.", "causal_mask")
"""What a release network holds and the fork's does not; neither takes part in an output or differs."""


class Worker:
    """Holds the network that is being compared."""

    net: nn.Module
    inputs: torch.Tensor

    def __init__(self) -> None:
        torch.set_num_threads(1)

    def where(self) -> tuple[str, str]:
        """The file and the version of the MONAI in this process."""
        return str(monai.__file__), str(monai.__version__)

    def load(self, network: str, options: dict[str, Any], state: dict[str, torch.Tensor], inputs: torch.Tensor):
        """Build a network with the fork's weights and return its output as a vector."""
        net = getattr(monai.networks.nets, network)(**options)
        missing, unexpected = net.load_state_dict(state, strict=False)
        missing = [key for key in missing if not any(name in key for name in OWN_TO_THE_RELEASE)]
        if missing or unexpected:
            raise RuntimeError(f"missing keys {missing}, unexpected keys {unexpected}")
        self.net, self.inputs = net.to(inputs.device).eval(), inputs
        return seeded(self.net, inputs)

    @torch.no_grad()
    def load_old(
        self, network: str, options: dict[str, Any], state: dict[str, torch.Tensor], images: torch.Tensor
    ) -> torch.Tensor:
        """The images as an autoencoder reconstructs them that loads an older checkpoint in the release's own way."""
        net = getattr(monai.networks.nets, network)(**options).eval()
        net.load_old_state_dict(state)
        out: torch.Tensor = net.reconstruct(images)
        return out

    def seconds(self, samples: int, calls: int) -> float:
        """Shortest time of a forward pass of the loaded network over its first samples."""
        return seconds(self.net, self.inputs[:samples], calls)
