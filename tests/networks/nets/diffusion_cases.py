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

"""Small networks of the diffusion family with weights that matter, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn

__all__ = ["BASE", "CONDITIONED", "control", "inputs", "normal", "randomized"]

BASE: dict[str, Any] = {
    "spatial_dims": 2,
    "in_channels": 1,
    "num_res_blocks": (1, 2),
    "channels": (8, 16),
    "attention_levels": (False, True),
    "norm_num_groups": 4,
    "num_head_channels": 4,
}
CONDITIONED: dict[str, Any] = {"with_conditioning": True, "cross_attention_dim": 6, "transformer_num_layers": 2}


def randomized(net: nn.Module) -> nn.Module:
    """``net`` with random weights, where its own would silence parts of it, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return net.eval()


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def inputs(kwargs: dict[str, Any], batch: int = 2) -> dict[str, torch.Tensor]:
    """Keyword arguments that a network built with ``kwargs`` is called with, images of size 8."""
    size = [8] * kwargs["spatial_dims"]
    values = {"x": normal(batch, 1, *size), "timesteps": torch.tensor([3, 700, 42])[:batch]}
    if "conditioning_embedding_in_channels" in kwargs:
        values["controlnet_cond"] = normal(batch, kwargs["conditioning_embedding_in_channels"], *[16 for _ in size])
    if "label_nc" in kwargs:
        values["seg"] = normal(batch, kwargs["label_nc"], *size)
    if kwargs.get("with_conditioning"):
        values["context"] = normal(batch, 3, kwargs["cross_attention_dim"])
    if kwargs.get("num_class_embeds"):
        values["class_labels"] = torch.arange(batch) % kwargs["num_class_embeds"]
    for name, width in (("top_region_index", 4), ("bottom_region_index", 4), ("spacing", 3)):
        if kwargs.get(f"include_{name}_input"):
            values[f"{name}_tensor"] = normal(batch, width)
    return values


def control(spatial_dims: int = 2, batch: int = 2) -> dict[str, Any]:
    """Residuals of a ControlNet for a U-Net of :data:`BASE`."""
    shapes = [(8, 8), (8, 8), (8, 4), (16, 4), (16, 4)]
    residuals = [normal(batch, channels, *[size] * spatial_dims) for channels, size in shapes]
    return {"down_block_additional_residuals": residuals, "mid_block_additional_residual": residuals[-1] + 1}
