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


from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn

from monai.networks.blocks.attention.block import AttentionBlock
from monai.networks.blocks.attention.positions import Positions
from monai.networks.blocks.diffusion.transformer import SpatialTransformer
from monai.networks.blocks.patchembedding import PatchEmbeddingBlock
from monai.networks.blocks.spatialattention import SpatialAttentionBlock
from monai.networks.nets.masked_autoencoder_vit import MaskedAutoEncoderViT
from monai.networks.nets.vit import ViT
from monai.networks.nets.vitautoenc import ViTAutoEnc

__all__ = ["NO_GRID", "TokenLayout", "call_arguments", "image_size", "token_layouts"]


@dataclass(frozen=True)
class TokenLayout:
    """
    Where the query tokens of an attention block lie.

    Args:
        grid: the grid that they fill in row-major order, after the class tokens; None where they fill none, or where
            ``holder`` tells.
        class_tokens: how many tokens come first and lie on no grid.
        holder: the module whose input has the grid as its spatial size; known when it is called.
        patch_size: size of the image's piece that a token stands for, where it is fixed.
        key_grid: grid of the keys of cross attention, where the block knows it.
    """

    grid: tuple[int, ...] | None = None
    class_tokens: int = 0
    holder: nn.Module | None = None
    patch_size: tuple[int, ...] | None = None
    key_grid: tuple[int, ...] | None = None

    @property
    def has_grid(self) -> bool:
        """Whether the tokens lie on a grid."""
        return self.grid is not None or self.holder is not None

    def covered(self, image: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """
        The part of an image that the grid covers: patches may leave out the end of an axis.

        Args:
            image: spatial size of the image; None, or an image of other axes, has no place in the grid.
        """
        if image is None or self.patch_size is None or self.grid is None or len(image) != len(self.grid):
            return image
        if all(size // patch == count for size, patch, count in zip(image, self.patch_size, self.grid)):
            return tuple(patch * count for patch, count in zip(self.patch_size, self.grid))
        return image

    def check(self, grid: tuple[int, ...] | None, tokens: int) -> tuple[int, ...] | None:
        """``grid`` if that many tokens fill it behind the class tokens, else None: a network may add its own tokens."""
        fits = grid is not None and math.prod(grid) + self.class_tokens == tokens
        return grid if fits else None


NO_GRID = TokenLayout()


def token_layouts(net: nn.Module) -> dict[AttentionBlock, TokenLayout]:
    """
    Tell where the tokens of a network's attention blocks lie. Nothing is guessed: a block that is neither in a network
    nor in a module of MONAI that gives its tokens a place, nor has relative positions, lies on no grid.
    """
    layouts = {block: _own_layout(block) for block in net.modules() if isinstance(block, AttentionBlock)}
    for module in net.modules():
        for part, layout in _parts_with_layout(module):
            layouts.update({block: layout for block in part.modules() if isinstance(block, AttentionBlock)})
    return layouts


def _own_layout(block: AttentionBlock) -> TokenLayout:
    """The layout of a block whose positions know of a grid."""
    positions = block.rel_positional_embedding
    if not isinstance(positions, Positions):
        return NO_GRID
    return TokenLayout(grid=positions.token_grid(), key_grid=positions.key_grid())


def _parts_with_layout(module: nn.Module) -> list[tuple[nn.Module, TokenLayout]]:
    if isinstance(module, (SpatialAttentionBlock, SpatialTransformer)):
        return [(module, TokenLayout(holder=module))]
    if isinstance(module, ViT):
        return [(module.blocks, _patches(module.patch_embedding, int(module.classification)))]
    if isinstance(module, ViTAutoEnc):
        return [(module.blocks, _patches(module.patch_embedding, 0))]
    if isinstance(module, MaskedAutoEncoderViT):
        # the encoder sees some patches, in an order drawn at random
        encoder = (module.blocks, TokenLayout(class_tokens=1))
        return [encoder, (module.decoder_blocks, _patches(module.patch_embedding, 1))]
    return []


def _patches(embedding: PatchEmbeddingBlock, class_tokens: int) -> TokenLayout:
    grid, patch_size = tuple(embedding.grid_size), tuple(embedding.patch_size)
    return TokenLayout(grid=grid, class_tokens=class_tokens, patch_size=patch_size)


def call_arguments(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of ``module`` by name, in the order of its signature."""
    return inspect.signature(module.forward).bind(*args, **kwargs).arguments


def image_size(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[int, ...] | None:
    """Spatial size of the first image, (B, C, sizes), among the arguments of a call; None without any."""
    for value in call_arguments(module, args, kwargs).values():
        if torch.is_tensor(value) and value.is_floating_point() and value.dim() >= 3:
            return tuple(value.shape[2:])
    return None
