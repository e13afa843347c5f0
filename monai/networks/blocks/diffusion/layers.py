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

"""Layers of the diffusion networks: time embedding, convolutions, samplers, residual block."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Optional

import torch
import torch.nn as nn
import torch.nn.functional as F

from monai.networks.blocks.convolutions import Convolution
from monai.networks.blocks.diffusion.names import UNET_NAMES, Names
from monai.networks.blocks.upsample import UpSample
from monai.networks.layers.factories import Pool

__all__ = [
    "DiffusionUNetResnetBlock",
    "DiffusionUnetDownsample",
    "ResidualBlock",
    "WrappedUpsample",
    "convolution",
    "embedding_mlp",
    "get_timestep_embedding",
    "nearest_upsample",
    "zero_module",
]


def zero_module(module: nn.Module) -> nn.Module:
    """Set every parameter of ``module`` to zero and return it."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def convolution(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    kind: type[Convolution] = Convolution,
) -> Convolution:
    """Build a bare convolution that keeps the size of its input, as an instance of the class ``kind``."""
    return kind(
        spatial_dims=spatial_dims,
        in_channels=in_channels,
        out_channels=out_channels,
        strides=1,
        kernel_size=kernel_size,
        padding=kernel_size // 2,
        conv_only=True,
    )


def embedding_mlp(in_features: int, out_features: int) -> nn.Sequential:
    """Build the two linears that turn a time, a body region or a spacing into an embedding."""
    return nn.Sequential(nn.Linear(in_features, out_features), nn.SiLU(), nn.Linear(out_features, out_features))


def get_timestep_embedding(timesteps: torch.Tensor, embedding_dim: int, max_period: int = 10000) -> torch.Tensor:
    """
    Encode time steps by cosines and sines of geometrically spaced frequencies (Ho et al.,
    https://arxiv.org/abs/2006.11239).

    Args:
        timesteps: (B,).
        embedding_dim: C, the width of the embedding; a last odd channel is zero.
        max_period: sets the lowest frequency, 1 / ``max_period``.

    Returns:
        (B, C), float32

    Raises:
        ValueError: if ``timesteps`` has another number of axes than one.
    """
    if timesteps.dim() != 1:
        raise ValueError(f"timesteps should have one axis, the batch, got the shape {list(timesteps.shape)}.")
    half = embedding_dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    frequencies = torch.exp(-math.log(max_period) * steps / half)
    angles = timesteps[:, None].float() * frequencies[None, :]
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(embedding, (0, embedding_dim % 2))


class WrappedUpsample(UpSample):
    """An :class:`UpSample` that is called with a time embedding too, which it does not use."""

    works_on_slabs = True
    layout_role = "nearest upsampling"

    def forward(self, x: torch.Tensor, emb: Optional[torch.Tensor] = None) -> torch.Tensor:
        """(B, C, sizes) to the upsampled image."""
        for layer in self:
            x = layer(x)
        return x


def nearest_upsample(
    spatial_dims: int,
    channels: int,
    post_conv: nn.Module | None = None,
    kind: type[WrappedUpsample] = WrappedUpsample,
) -> WrappedUpsample:
    """
    Build a module that repeats every position along each axis, and then applies ``post_conv``, as an instance of the
    class ``kind``.
    """
    return kind(
        spatial_dims=spatial_dims,
        mode="nontrainable",
        in_channels=channels,
        out_channels=channels,
        interp_mode="nearest",
        scale_factor=2.0,
        post_conv=post_conv,
        align_corners=None,
    )


class DiffusionUnetDownsample(nn.Module):
    """
    Halves the size of an image along each axis.

    Args:
        spatial_dims: number of spatial axes.
        num_channels: number of the input's channels.
        use_conv: whether a strided convolution does it, or else the average of neighbors.
        out_channels: number of the output's channels, ``num_channels`` unless given.
        padding: zeros put on both ends of each axis before the convolution. Defaults to 1.

    Raises:
        ValueError: if the average is to change the number of channels.
    """

    works_on_slabs = True

    def __init__(
        self, spatial_dims: int, num_channels: int, use_conv: bool, out_channels: int | None = None, padding: int = 1
    ) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.out_channels = out_channels or num_channels
        self.use_conv = use_conv
        if not use_conv and self.out_channels != num_channels:
            raise ValueError(
                f"without a convolution, out_channels={out_channels} should equal num_channels={num_channels}: "
                "pass use_conv=True."
            )
        self.op: nn.Module
        if use_conv:
            self.op = UNET_NAMES(Convolution)(
                spatial_dims=spatial_dims,
                in_channels=num_channels,
                out_channels=self.out_channels,
                strides=2,
                kernel_size=3,
                padding=padding,
                conv_only=True,
            )
        else:
            self.op = Pool[Pool.AVG, spatial_dims](kernel_size=2, stride=2)

    def forward(self, x: torch.Tensor, emb: Optional[torch.Tensor] = None) -> torch.Tensor:
        """
        Args:
            x: (B, num_channels, sizes).
            emb: time embedding, not used.

        Returns:
            (B, out_channels, half the sizes)

        Raises:
            ValueError: if the image has another number of channels.
        """
        if x.shape[1] != self.num_channels:
            raise ValueError(f"The input has {x.shape[1]} channels, this block takes {self.num_channels}.")
        dtype = x.dtype
        if not self.use_conv and x.device.type == "cpu":
            if dtype == torch.half or dtype == torch.bfloat16:  # torch cannot average volumes of these types there
                x = x.float()
        out: torch.Tensor = self.op(x)
        return out.to(dtype) if x.dtype != dtype else out


class ResidualBlock(nn.Module):
    """
    Two convolutions and a shortcut, with a time embedding added in between: what all residual blocks of the diffusion
    networks share. A subclass says in ``forward`` how its norms are called.

    Args:
        make_norm: builds the norm of so many channels.
        names: of the classes that the block is built from.

    The other arguments are those of :class:`DiffusionUNetResnetBlock`.
    """

    layout_role = "diffusion residual block"

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        temb_channels: int,
        out_channels: int | None,
        up: bool,
        down: bool,
        make_norm: Callable[[int], nn.Module],
        names: Names = UNET_NAMES,
    ) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.channels = in_channels
        self.emb_channels = temb_channels
        self.out_channels = out_channels = out_channels or in_channels
        self.up, self.down = up, down
        kind = names(Convolution)

        self.norm1 = make_norm(in_channels)
        self.nonlinearity = nn.SiLU()
        self.conv1 = convolution(spatial_dims, in_channels, out_channels, kind=kind)
        self.upsample: nn.Module | None = None
        self.downsample: nn.Module | None = None
        if up:
            self.upsample = nearest_upsample(spatial_dims, in_channels, kind=names(WrappedUpsample))
        elif down:
            self.downsample = names(DiffusionUnetDownsample)(spatial_dims, in_channels, use_conv=False)
        self.time_emb_proj = nn.Linear(temb_channels, out_channels)
        self.norm2 = make_norm(out_channels)
        self.conv2 = zero_module(convolution(spatial_dims, out_channels, out_channels, kind=kind))
        self.skip_connection: nn.Module = nn.Identity()
        if out_channels != in_channels:
            self.skip_connection = convolution(spatial_dims, in_channels, out_channels, kernel_size=1, kind=kind)

    def _resample(self, x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Change the size of the input and of the features as the block is asked to."""
        if self.upsample is not None:
            return self.upsample(x), self.upsample(h)
        if self.downsample is not None:
            return self.downsample(x), self.downsample(h)
        return x, h

    def _time_shift(self, emb: torch.Tensor) -> torch.Tensor:
        """The time embedding, (B, temb_channels), as it is added to every position: (B, out_channels, 1, ...)."""
        shift: torch.Tensor = self.time_emb_proj(self.nonlinearity(emb))
        for _ in range(self.spatial_dims):
            shift = shift.unsqueeze(-1)
        return shift


class DiffusionUNetResnetBlock(ResidualBlock):
    """
    Residual block that takes a time embedding.

    Args:
        spatial_dims: number of spatial axes.
        in_channels: number of the input's channels.
        temb_channels: width of the time embedding.
        out_channels: number of the output's channels, ``in_channels`` unless given.
        up: whether the block doubles the size of the image. Defaults to False.
        down: whether the block halves it. Defaults to False.
        norm_num_groups: into how many groups the norms divide the channels. Defaults to 32.
        norm_eps: what the norms add to the variance. Defaults to 1e-6.
    """

    works_on_slabs = True

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        temb_channels: int,
        out_channels: int | None = None,
        up: bool = False,
        down: bool = False,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
    ) -> None:
        def make_norm(channels: int) -> nn.Module:
            return nn.GroupNorm(norm_num_groups, channels, eps=norm_eps)

        super().__init__(spatial_dims, in_channels, temb_channels, out_channels, up, down, make_norm)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x: (B, in_channels, sizes).
            emb: time embedding, (B, temb_channels).

        Returns:
            (B, out_channels, sizes, doubled or halved on request)
        """
        h = self.nonlinearity(self.norm1(x))
        x, h = self._resample(x, h)
        h = self.conv1(h)
        h = h + self._time_shift(emb)
        h = self.norm2(h)
        h = self.nonlinearity(h)
        h = self.conv2(h)
        out: torch.Tensor = self.skip_connection(x) + h
        return out
