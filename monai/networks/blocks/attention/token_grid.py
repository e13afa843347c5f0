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

"""Where the tokens of an attention block lie in the image: declared by the module that puts them there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch.nn as nn

__all__ = ["TokenGrid", "patch_grid"]


@dataclass(frozen=True)
class TokenGrid:
    """
    Where the query tokens of an attention block lie.

    A module that gives tokens a place says so by its method ``token_grids()``: grids by the path of the part whose
    attention blocks have them, ``""`` for all of its own.

    Args:
        grid: the grid that they fill in row-major order, after the class tokens; None where they fill none, or where
            ``holder`` tells.
        class_tokens: how many tokens come first and lie on no grid.
        holder: the module whose input has the grid as its spatial size; known when it is called.
        patch_size: size of the image's piece that a token stands for, where it is fixed.
        key_grid: grid of the keys of cross attention, where the block knows it.
        any_size: whether an image of another size has another grid: that of its whole patches.
    """

    grid: tuple[int, ...] | None = None
    class_tokens: int = 0
    holder: nn.Module | None = None
    patch_size: tuple[int, ...] | None = None
    key_grid: tuple[int, ...] | None = None
    any_size: bool = False

    @property
    def has_grid(self) -> bool:
        """Whether the tokens lie on a grid."""
        return self.grid is not None or self.holder is not None

    def grid_on(self, image: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """The grid for an image of this spatial size, where no ``holder`` tells it; None where it is not known."""
        if not self.any_size:
            return self.grid
        if image is None or self.patch_size is None or len(image) != len(self.patch_size):
            return None
        return tuple(size // patch for size, patch in zip(image, self.patch_size))

    def covered(self, image: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """
        The part of an image that the grid covers: patches may leave out the end of an axis.

        Args:
            image: spatial size of the image; None, or an image of other axes, has no place in the grid.
        """
        grid = self.grid_on(image)
        if image is None or self.patch_size is None or grid is None or len(image) != len(grid):
            return image
        if all(size // patch == count for size, patch, count in zip(image, self.patch_size, grid)):
            return tuple(patch * count for patch, count in zip(self.patch_size, grid))
        return image

    def check(self, grid: tuple[int, ...] | None, tokens: int) -> tuple[int, ...] | None:
        """``grid`` if that many tokens fill it behind the class tokens, else None: a network may add its own tokens."""
        fits = grid is not None and math.prod(grid) + self.class_tokens == tokens
        return grid if fits else None


def patch_grid(embedding: Any, class_tokens: int) -> TokenGrid:
    """The grid of the patches that a :class:`PatchEmbeddingBlock` makes, behind that many class tokens."""
    grid, patch_size = tuple(embedding.grid_size), tuple(embedding.patch_size)
    any_size = embedding.dynamic_size
    return TokenGrid(grid=grid, class_tokens=class_tokens, patch_size=patch_size, any_size=any_size)
