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

"""Where the tokens of a network's attention blocks lie, as its modules declare it, and the image that they lie in."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn as nn

from monai.networks.blocks.attention.block import AttentionBlock
from monai.networks.blocks.attention.positions import Positions
from monai.networks.blocks.attention.token_grid import TokenGrid

__all__ = ["NO_GRID", "call_arguments", "image_size", "token_grids"]

NO_GRID = TokenGrid()


def token_grids(net: nn.Module) -> dict[AttentionBlock, TokenGrid]:
    """
    Tell where the tokens of a network's attention blocks lie. Nothing is guessed: a block whose positions know
    of no grid, and that no module around it gives a place by its method ``token_grids``, lies on no grid.
    """
    found = {block: _own_grid(block) for block in net.modules() if isinstance(block, AttentionBlock)}
    for module in net.modules():
        declared: dict[str, TokenGrid] = getattr(module, "token_grids", dict)()
        for path, grid in declared.items():
            part = module.get_submodule(path)
            found.update({block: grid for block in part.modules() if isinstance(block, AttentionBlock)})
    return found


def _own_grid(block: AttentionBlock) -> TokenGrid:
    """The grid of a block whose positions know of one."""
    positions = block.rel_positional_embedding
    if not isinstance(positions, Positions):
        return NO_GRID
    return TokenGrid(grid=positions.token_grid(), key_grid=positions.key_grid())


def call_arguments(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of ``module`` by name, in the order of its signature."""
    return inspect.signature(module.forward).bind(*args, **kwargs).arguments


def image_size(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[int, ...] | None:
    """Spatial size of the first image, (B, C, sizes), among the arguments of a call; None without any."""
    for value in call_arguments(module, args, kwargs).values():
        if torch.is_tensor(value) and value.is_floating_point() and value.dim() >= 3:
            return tuple(value.shape[2:])
    return None
