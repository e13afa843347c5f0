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


"""Weights for a network that make every part of it matter."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch

__all__ = ["filled"]

STEPS = 4  # a standard deviation has so many: few different values make small files
LARGE = 2**18


def filled(state_dict: Mapping[str, torch.Tensor], seed: int, keep: Collection[str] = ()) -> dict[str, torch.Tensor]:
    """
    A state dict with seeded random values, large enough not to pass for torch's initial ones and small enough for
    outputs of order one.

    Args:
        state_dict: the network's own, which stays as it is.
        seed: of the values.
        keep: keys whose values stay, like those of whole numbers and of causal masks.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        key: (
            value.clone()
            if key in keep or not value.is_floating_point() or key.endswith("causal_mask")
            else _values(key, value, generator)
        )
        for key, value in state_dict.items()
    }


def _values(key: str, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    shape = like.shape
    if like.numel() > LARGE:  # every row is the one before moved on by one, and all take the room of two
        values = _normal(torch.Size([sum(shape)]), generator).mul(_spread(shape[1])).to(like.dtype)
        return values.as_strided(shape, (1, 1))
    values = _normal(shape, generator)
    if like.dim() < 2:
        values = values / 4
        return (1 + values.clamp(-3, 3) / 4 if key.endswith(("weight", "running_var")) else values).to(like.dtype)
    return values.mul(0.5 if shape[0] == 1 and like.dim() == 3 else _spread(shape[1:].numel())).to(like.dtype)


def _normal(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator).mul(STEPS).round().div(STEPS)


def _spread(inputs: int) -> float:
    """The power of two at or above 1 / sqrt(inputs); torch's initial weights stay below that."""
    return 2.0 ** math.ceil(-math.log2(inputs) / 2)
