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

"""How an image becomes tokens: patches that a layer projects, with a position added or not."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from monai.networks.blocks.pos_embed_utils import build_fourier_position_embedding, build_sincos_position_embedding
from monai.networks.blocks.token_resampling import positions_on_grid, resize_patches
from monai.networks.layers import Conv, trunc_normal_
from monai.utils import ensure_tuple_rep
from monai.utils.module import look_up_option

SUPPORTED_PATCH_EMBEDDING_TYPES = {"conv", "perceptron"}
SUPPORTED_POS_EMBEDDING_TYPES = {"none", "learnable", "sincos", "fourier"}


class FlattenPatches(nn.Module):
    """
    Cut an image into patches and make each of them one row, its channels innermost.

    Args:
        patch_size: size of a patch along every spatial axis; the image's must be a multiple of it.
    """

    def __init__(self, patch_size: Sequence[int]) -> None:
        super().__init__()
        self.patch_size = list(patch_size)
        self.spatial_dims = len(self.patch_size)
        end = 2 + 2 * self.spatial_dims
        self.order = [0, *range(2, end, 2), *range(3, end, 2), 1]  # batch, grid, inside of a patch, channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        (B, C, size of every axis) to (B, number of patches, volume of a patch x C).

        Raises:
            ValueError: if patches do not tile the image.
        """
        split = [x.shape[0], x.shape[1]]
        fits = x.dim() == 2 + self.spatial_dims
        for size, patch in zip(x.shape[2:], self.patch_size):
            fits = fits and size % patch == 0
            split.append(size // patch)
            split.append(patch)
        if not fits:
            raise ValueError(
                f"The image has shape {list(x.shape)}, which patches of {self.patch_size} do not tile: crop or pad it "
                "to multiples of them, or build the network with proj_type='conv', which leaves out the rest."
            )
        return x.reshape(split).permute(self.order).flatten(1, self.spatial_dims).flatten(2)


class PatchEmbeddingBlock(nn.Module):
    """
    Turn an image into tokens, one a patch, and add to each what tells its position
    (Dosovitskiy et al., https://arxiv.org/abs/2010.11929).

    Args:
        in_channels: number of the image's channels.
        img_size: size of the image, one number for all axes or one for each.
        patch_size: size of a patch, likewise.
        hidden_size: width of the tokens.
        num_heads: number of attention heads of the network that takes the tokens; ``hidden_size`` must be its multiple.
        proj_type: ``"conv"`` projects patches with a strided convolution, which leaves out what remains at the end of
            an axis; ``"perceptron"`` with a linear layer. Defaults to "conv".
        pos_embed_type: ``"learnable"``, ``"sincos"`` or ``"fourier"`` (both fixed), or ``"none"``, which is learnable
            too but starts at zero. Defaults to "learnable".
        dropout_rate: fraction of the tokens' elements dropped in training. Defaults to 0.0.
        spatial_dims: number of spatial axes. Defaults to 3.
        pos_embed_kwargs: options of the position embedding: ``temperature`` for sincos, ``scales`` for fourier.
        dynamic_size: whether images of other sizes are taken, too. Their position embeddings are those of ``img_size``,
            resampled whenever they are asked for (see :mod:`~monai.networks.blocks.token_resampling`): the state dict
            stays as it is, and in training gradients reach the parameter. Fixed positions follow their formula.
            Defaults to False: another size is refused.

    Raises:
        ValueError: if ``dropout_rate`` is outside of [0, 1], ``hidden_size`` is not divisible by ``num_heads``, a patch
            is larger than the image or, with "perceptron", does not divide it, or a type is not one of those above.
    """

    # a constant, so that TorchScript does not compile resampling for a block that takes one size
    __constants__ = ["dynamic_size"]
    layout_role = "patch embedding"

    def __init__(
        self,
        in_channels: int,
        img_size: Sequence[int] | int,
        patch_size: Sequence[int] | int,
        hidden_size: int,
        num_heads: int,
        proj_type: str = "conv",
        pos_embed_type: str = "learnable",
        dropout_rate: float = 0.0,
        spatial_dims: int = 3,
        pos_embed_kwargs: dict | None = None,
        dynamic_size: bool = False,
    ) -> None:
        super().__init__()
        if not (0 <= dropout_rate <= 1):
            raise ValueError(f"dropout_rate should be between 0 and 1, got {dropout_rate}.")
        if hidden_size % num_heads != 0:
            raise ValueError(f"hidden_size {hidden_size} should be divisible by num_heads {num_heads}.")
        self.proj_type: str = look_up_option(proj_type, SUPPORTED_PATCH_EMBEDDING_TYPES)
        self.pos_embed_type: str = look_up_option(pos_embed_type, SUPPORTED_POS_EMBEDDING_TYPES)

        self.dynamic_size = dynamic_size
        self.temperature = float((pos_embed_kwargs or {}).get("temperature", 10000.0))

        self._set_sizes(
            list(ensure_tuple_rep(img_size, spatial_dims)), list(ensure_tuple_rep(patch_size, spatial_dims))
        )
        self.patch_dim = in_channels * math.prod(self.patch_size)

        self.patch_embeddings: nn.Module
        if self.proj_type == "conv":
            self.patch_embeddings = Conv[Conv.CONV, spatial_dims](
                in_channels, hidden_size, kernel_size=tuple(self.patch_size), stride=tuple(self.patch_size)
            )
        else:
            self.patch_embeddings = nn.Sequential(
                FlattenPatches(self.patch_size), nn.Linear(self.patch_dim, hidden_size)
            )
        self.position_embeddings = self._build_position_embeddings(hidden_size, pos_embed_kwargs or {})
        self.dropout = nn.Dropout(dropout_rate)
        self.apply(self._init_weights)

    def _set_sizes(self, img_size: list[int], patch_size: list[int]) -> None:
        grid_size = [size // patch for size, patch in zip(img_size, patch_size)]
        if 0 in grid_size:
            raise ValueError(f"patch_size {patch_size} should not be larger than img_size {img_size}.")
        if self.proj_type == "perceptron" and any(s % p for s, p in zip(img_size, patch_size)):
            raise ValueError(
                f"img_size {img_size} should be divisible by patch_size {patch_size} for proj_type 'perceptron': "
                "change one of them or take 'conv'."
            )
        self.img_size, self.patch_size, self.grid_size = img_size, patch_size, grid_size
        self.n_patches = math.prod(grid_size)

    def set_input_size(self, img_size: Sequence[int] | int, patch_size: Sequence[int] | int | None = None) -> None:
        """
        Make the block one for images of another size, and for patches of another size, for good.

        Positions are resampled by an antialiased cubic kernel, fixed ones follow their formula. Patches are resized by
        the pseudo-inverse of resampling. What changes its shape becomes a new parameter: build optimizers afterwards.

        Args:
            img_size: size of the image, one number for all axes or one for each.
            patch_size: size of a patch, likewise; None keeps it.

        Raises:
            ValueError: if a patch is larger than the image or, with "perceptron", does not divide it; or if the
                positions are no longer those of the grid that the block was built for, so that nobody knows where they
                lie. Then nothing is changed.
            TypeError: if the patches are projected by a layer that is not known here.
        """
        dims = len(self.patch_size)
        old_patch, old_grid, positions = self.patch_size, self.grid_size, self.position_embeddings
        sizes = list(ensure_tuple_rep(img_size, dims))
        patches = old_patch if patch_size is None else list(ensure_tuple_rep(patch_size, dims))
        one_for_all = positions.shape[-2] == 1 and self.n_patches > 1
        if not one_for_all:
            self._check_positions()
        if math.prod(old_grid) != self.n_patches:  # unpickled from the release, which kept no grid
            raise ValueError(f"The grid of the {self.n_patches} patches is not known: build the network anew.")
        resized = None if patches == old_patch else self._resized_patches(patches)
        self._set_sizes(sizes, patches)
        if resized is not None:
            self._replace_patches(resized)
        if self.grid_size != old_grid and not one_for_all:
            with torch.no_grad():
                values = positions_on_grid(positions, old_grid, self.grid_size, self.pos_embed_type, self.temperature)
            self.position_embeddings = nn.Parameter(values, requires_grad=positions.requires_grad)

    def _resized_patches(self, patches: list[int]) -> torch.Tensor:
        """The weight of the projection for patches of another size."""
        if self.proj_type == "conv":
            conv: Any = self.patch_embeddings
            if type(conv) not in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
                raise TypeError(f"Patches are projected by a {type(conv).__name__}, which cannot be resized.")
            return resize_patches(conv.weight.detach(), patches)
        layers: Any = self.patch_embeddings
        if type(layers[1]) is not nn.Linear:
            raise TypeError(f"Patches are projected by a {type(layers[1]).__name__}, which cannot be resized.")
        kernel = as_kernel(layers[1].weight.detach(), self.patch_size)
        return as_linear(resize_patches(kernel, patches))

    def _replace_patches(self, weight: torch.Tensor) -> None:
        layers: Any = self.patch_embeddings
        layer: Any = layers if self.proj_type == "conv" else layers[1]
        learns = layer.weight.requires_grad
        layer.weight = nn.Parameter(weight, requires_grad=learns)
        if self.proj_type == "conv":
            layer.kernel_size = layer.stride = tuple(self.patch_size)
            self.patch_dim = layer.in_channels * math.prod(self.patch_size)
        else:
            layers[0] = FlattenPatches(self.patch_size)
            layer.in_features = self.patch_dim = weight.shape[1]

    def _init_weights(self, m: nn.Module) -> None:
        """Set the initial weights of one of the layers; called for each of them."""
        if isinstance(m, nn.Linear):
            trunc_normal_(m.weight, std=0.02)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
        elif isinstance(m, nn.LayerNorm):
            nn.init.ones_(m.weight)
            nn.init.zeros_(m.bias)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "dynamic_size" not in state:  # written before the block could take other sizes
            self.dynamic_size, self.temperature = False, 10000.0
        if "patch_size" not in state:  # the release wrote it, which kept no sizes but those of the patches
            self.n_patches = int(self.n_patches)
            self.patch_size = list(_patch_size_of(self.patch_embeddings))
            self.img_size = self.grid_size = [0] * len(self.patch_size)

    def _build_position_embeddings(self, hidden_size: int, options: dict) -> nn.Parameter:
        """(1, number of patches, hidden_size)"""
        if self.pos_embed_type == "sincos":
            return build_sincos_position_embedding(self.grid_size, hidden_size, len(self.grid_size), **options)
        if self.pos_embed_type == "fourier":
            return build_fourier_position_embedding(self.grid_size, hidden_size, len(self.grid_size), **options)
        embeddings = nn.Parameter(torch.zeros(1, self.n_patches, hidden_size))
        out: nn.Parameter = trunc_normal_(embeddings, std=0.02) if self.pos_embed_type == "learnable" else embeddings
        return out

    def _check_tokens(self, x: torch.Tensor, tokens: torch.Tensor) -> None:
        """
        Refuse an image ``x`` whose ``tokens`` have no position of their own.

        The position embedding that the block has, not the size that it was built for, tells how many tokens there may
        be: a network is prepared for images of another size by giving it another embedding. One vector for all tokens
        takes any number of them, unless the block was built for one token.
        """
        positions = self.position_embeddings
        if not isinstance(positions, torch.Tensor) or positions.dim() < 2:
            return
        number, wanted = tokens.shape[1], positions.shape[-2]
        if number != wanted and (wanted > 1 or self.n_patches == 1):
            raise ValueError(
                f"The image has shape {list(x.shape)} and becomes {number} tokens, but there are {wanted} position "
                f"embeddings, for img_size {self.img_size} and patches of {self.patch_size}: resize, crop or pad the "
                "image, build the network with its img_size, or set position_embeddings for so many tokens; a ViT "
                "takes other sizes with dynamic_size=True, or after set_input_size(img_size)."
            )
        if not torch.jit.is_scripting():
            if wanted > 1 and not torch.compiler.is_compiling():
                self._warn_of_another_grid(list(x.shape[2:]))

    def _warn_of_another_grid(self, size: list[int]) -> None:
        """Tokens have positions by their number alone: where they lie otherwise, it is another place's."""
        grid = [side // patch for side, patch in zip(size, self.patch_size)]
        if len(size) == len(self.grid_size) and grid != self.grid_size and math.prod(grid) == self.n_patches:
            warnings.warn(
                f"An image of size {size} has its patches on a grid of {grid}, and position_embeddings were built for "
                f"{self.grid_size} patches: unless they were set for this grid, tokens get the positions of others.",
                stacklevel=3,
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x: image, (B, in_channels, size of every axis).

        Returns:
            (B, number of patches, hidden_size)

        Raises:
            ValueError: if the image has another number of patches than there are position embeddings.
        """
        tokens = self.patch_embeddings(x)
        grid: list[int] = []
        if self.dynamic_size:
            grid = self._grid_of(x)
        if self.proj_type == "conv":
            tokens = tokens.flatten(2).transpose(1, 2)
        if self.dynamic_size:
            dynamic: torch.Tensor = self.dropout(tokens + self.positions_on(grid))
            return dynamic
        # the number of tokens would become a part of a traced graph
        if torch.jit.is_scripting() or not torch.jit.is_tracing():
            self._check_tokens(x, tokens)
        out: torch.Tensor = self.dropout(tokens + self.position_embeddings)
        return out

    def _grid_of(self, x: torch.Tensor) -> list[int]:
        """How many patches an image (B, C, size of every axis) has along each axis."""
        if x.dim() != 2 + len(self.patch_size):
            raise ValueError(f"The image has shape {list(x.shape)} and should be (B, C, {len(self.patch_size)} sizes).")
        grid: list[int] = []
        for size, patch in zip(x.shape[2:], self.patch_size):
            grid.append(size // patch)
        return grid

    def _check_positions(self) -> None:
        if self.position_embeddings.dim() != 3 or self.position_embeddings.shape[1] != self.n_patches:
            raise ValueError(
                f"position_embeddings have the shape {list(self.position_embeddings.shape)}, which is none of the grid "
                f"{self.grid_size} of the block: for other sizes it should be [1, {self.n_patches}, hidden_size]."
            )

    def positions_on(self, grid: list[int]) -> torch.Tensor:
        """
        The position embeddings of a grid of patches: the parameter for that of ``img_size``, otherwise resampled.

        Args:
            grid: number of patches along each axis.

        Returns:
            (1, number of patches, hidden_size), or (1, 1, hidden_size) where one vector serves all tokens.

        Raises:
            ValueError: if the parameter is not that of the grid of ``img_size``.
        """
        positions = self.position_embeddings
        if positions.shape[-2] == 1 and self.n_patches > 1:  # one for all
            return positions
        if torch.jit.is_scripting() or not torch.jit.is_tracing():
            self._check_positions()
        if torch.jit.is_scripting():
            if grid == self.grid_size:
                return positions
        elif not torch.jit.is_tracing() and all(isinstance(size, int) for size in grid) and grid == self.grid_size:
            return positions
        return positions_on_grid(positions, self.grid_size, grid, self.pos_embed_type, self.temperature)


class PatchEmbed(nn.Module):
    """
    Patch projection of the Swin transformer (Liu et al., https://arxiv.org/abs/2103.14030): an image of any size,
    padded with zeros at the end of its axes up to whole patches, stays a grid; no position is added.

    Args:
        patch_size: size of a patch, one number for all axes or one for each. Defaults to 2.
        in_chans: number of the image's channels. Defaults to 1.
        embed_dim: number of channels of the result. Defaults to 48.
        norm_layer: class of the normalization over the channels, or None. Defaults to ``nn.LayerNorm``.
        spatial_dims: number of spatial axes, 2 or 3. Defaults to 3.

    Raises:
        ValueError: if ``spatial_dims`` is neither 2 nor 3.
    """

    def __init__(
        self,
        patch_size: Sequence[int] | int = 2,
        in_chans: int = 1,
        embed_dim: int = 48,
        norm_layer: type[nn.LayerNorm] | None = nn.LayerNorm,
        spatial_dims: int = 3,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims should be 2 or 3, got {spatial_dims}.")
        self.patch_size = ensure_tuple_rep(patch_size, spatial_dims)
        self.embed_dim = embed_dim
        self.proj = Conv[Conv.CONV, spatial_dims](
            in_chans, embed_dim, kernel_size=self.patch_size, stride=self.patch_size
        )
        self.norm = None if norm_layer is None else norm_layer(embed_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, size of every axis) to (B, embed_dim, number of patches along every axis)."""
        x = self.proj(_pad_to_multiple(x, list(self.patch_size)))
        if self.norm is None:
            return x
        grid = x.shape[2:]
        out: torch.Tensor = self.norm(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, grid)
        return out


def as_kernel(weight: torch.Tensor, patch_size: Sequence[int]) -> torch.Tensor:
    """The weight of a "perceptron" (out, patch x channels) as that of a convolution, (out, channels, patch)."""
    return weight.reshape(weight.shape[0], *patch_size, -1).movedim(-1, 1)


def as_linear(kernel: torch.Tensor) -> torch.Tensor:
    """The weight of a convolution (out, channels, patch) as that of a "perceptron", (out, patch x channels)."""
    return kernel.movedim(1, -1).flatten(1)


def _patch_size_of(projection: nn.Module) -> Sequence[int]:
    """Size of the patches that a convolution projects, or the release's linear, after einops has cut the image."""
    if isinstance(projection, nn.Sequential):
        lengths: Any = projection[0].axes_lengths
        return [size for _, size in sorted(lengths.items())]
    size: Any = projection.kernel_size
    out: Sequence[int] = size
    return out


def _pad_to_multiple(x: torch.Tensor, patch_size: list[int]) -> torch.Tensor:
    """Append zeros to the spatial axes of (B, C, size of every axis) until patches tile it."""
    padding: list[int] = []
    for size, patch in zip(x.shape[2:], patch_size):
        padding = [0, (patch - size % patch) % patch] + padding  # F.pad begins with the last axis
    return F.pad(x, padding) if sum(padding) > 0 else x
