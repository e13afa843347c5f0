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

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from monai.networks.blocks.attention.options import AttentionOptions
from monai.networks.blocks.convolutions import Convolution
from monai.networks.blocks.diffusion.layers import BuiltFromOptions, convolution, nearest_upsample
from monai.networks.blocks.spatialattention import SpatialAttentionBlock
from monai.networks.blocks.upsample import UpSample
from monai.networks.state_dict.hooks import OldCheckpoints

__all__ = [
    "AEKLDownsample",
    "AEKLResBlock",
    "AsymmetricPad",
    "Cascade",
    "GaussianLatent",
    "Level",
    "Parts",
    "TwoConvolutions",
    "becomes_a_graph",
    "decoder_blocks",
    "encoder_blocks",
    "recomputed",
    "resolve_levels",
]


def becomes_a_graph() -> bool:
    """Tell whether the code is run to record a graph that holds for other inputs: exported, or traced."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()


def recomputed(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Run ``module``, whose activations the backward pass computes again; a recorded graph keeps them."""
    return module(x) if becomes_a_graph() else checkpoint(module, x, use_reentrant=False)


class AsymmetricPad(nn.Module):
    """
    Put one zero behind the end of each spatial axis.

    Args:
        spatial_dims: number of spatial axes.
    """

    def __init__(self, spatial_dims: int) -> None:
        super().__init__()
        self.pad = [0, 1] * spatial_dims

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, sizes) to (B, C, sizes + 1)."""
        return F.pad(x, self.pad)


class AEKLDownsample(nn.Module):
    """
    Halve the size of an image by a strided convolution.

    Args:
        spatial_dims: number of spatial axes.
        in_channels: number of channels, which stays.
    """

    def __init__(self, spatial_dims: int, in_channels: int) -> None:
        super().__init__()
        self.pad = AsymmetricPad(spatial_dims)
        self.conv = Convolution(spatial_dims, in_channels, in_channels, 2, padding=0, conv_only=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, sizes) to (B, C, half the sizes)."""
        return self.conv(self.pad(x))


class TwoConvolutions(nn.Module):
    """
    Two convolutions, each with a norm before it, and a shortcut: what the residual blocks of all autoencoders share. A
    subclass says in ``forward`` how its norms are called.

    Args:
        in_channels: number of the input's channels.
        out_channels: number of the output's channels, ``in_channels`` if None.
        make_norm: builds the norm of so many channels.
        make_conv: builds a convolution from the numbers of its input's and output's channels and its kernel's size.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None,
        make_norm: Callable[[int], nn.Module],
        make_conv: Callable[[int, int, int], nn.Module],
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = width = in_channels if out_channels is None else out_channels
        self.norm1 = make_norm(in_channels)
        self.conv1 = make_conv(in_channels, width, 3)
        self.norm2 = make_norm(width)
        self.conv2 = make_conv(width, width, 3)
        self.nin_shortcut = nn.Identity() if width == in_channels else make_conv(in_channels, width, 1)


class AEKLResBlock(TwoConvolutions):
    """
    Residual block of an autoencoder.

    Args:
        spatial_dims: number of spatial axes.
        in_channels: number of the input's channels.
        norm_num_groups: into how many groups the norms divide the channels.
        norm_eps: what the norms add to the variance.
        out_channels: number of the output's channels, ``in_channels`` if None.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, norm_num_groups: int, norm_eps: float, out_channels: int | None
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            lambda channels: nn.GroupNorm(norm_num_groups, channels, eps=norm_eps),
            lambda *sizes: convolution(spatial_dims, *sizes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, sizes) to (B, out_channels, sizes)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


@dataclass(frozen=True)
class Level:
    """What an autoencoder has at one resolution: the width, how many residual blocks, and whether each attends."""

    channels: int
    num_res_blocks: int
    attention: bool


def resolve_levels(
    channels: Sequence[int],
    num_res_blocks: Sequence[int] | int,
    attention_levels: Sequence[bool],
    norm_num_groups: int,
    name: str = "channels",
) -> list[Level]:
    """
    Check and join the arguments that describe an autoencoder level by level.

    Args:
        channels: widths of the levels, from the image to the latent.
        num_res_blocks: numbers of residual blocks, one number for all levels or one for each.
        attention_levels: whether the levels have attention.
        norm_num_groups: into how many groups the norms divide the channels.
        name: how ``channels`` is named in the network's signature.

    Raises:
        ValueError: if the widths are not multiples of ``norm_num_groups``, or the lengths differ.
    """
    widths = list(channels)
    blocks = [num_res_blocks] * len(widths) if isinstance(num_res_blocks, int) else list(num_res_blocks)
    if any(width % norm_num_groups for width in widths):
        raise ValueError(f"{name}={widths} should all be multiples of norm_num_groups={norm_num_groups}.")
    if len(attention_levels) != len(widths):
        raise ValueError(f"attention_levels={list(attention_levels)} should be as many as {name}={widths}.")
    if len(blocks) != len(widths):
        raise ValueError(f"num_res_blocks={blocks} should be one number, or as many as {name}={widths}.")
    return [Level(*level) for level in zip(widths, blocks, attention_levels)]


class Parts:
    """
    Builds the parts of an autoencoder's encoder and decoder. A subclass builds some of them otherwise.

    Args:
        spatial_dims: number of spatial axes.
        norm_num_groups: into how many groups the norms divide the channels.
        norm_eps: what the norms add to the variance.
        attention: options of all attention blocks.
        use_convtranspose: whether transposed convolutions double the size, or else a convolution after repeating
            every position.
    """

    def __init__(
        self,
        spatial_dims: int,
        norm_num_groups: int,
        norm_eps: float,
        attention: AttentionOptions,
        use_convtranspose: bool = False,
    ) -> None:
        self.spatial_dims = spatial_dims
        self.norm_num_groups = norm_num_groups
        self.norm_eps = norm_eps
        self.attention_arguments = attention.arguments("dropout_rate", "qkv_bias", "save_attn")
        self.use_convtranspose = use_convtranspose

    def conv(self, in_channels: int, out_channels: int) -> nn.Module:
        return convolution(self.spatial_dims, in_channels, out_channels)

    def norm(self, channels: int) -> nn.Module:
        return nn.GroupNorm(self.norm_num_groups, channels, eps=self.norm_eps)

    def residual(self, in_channels: int, out_channels: int) -> nn.Module:
        return AEKLResBlock(self.spatial_dims, in_channels, self.norm_num_groups, self.norm_eps, out_channels)

    def middle_residual(self, channels: int) -> nn.Module:
        return self.residual(channels, channels)

    def attention(self, channels: int) -> nn.Module:
        return SpatialAttentionBlock(
            self.spatial_dims,
            channels,
            norm_num_groups=self.norm_num_groups,
            norm_eps=self.norm_eps,
            **self.attention_arguments,
        )

    def downsample(self, channels: int) -> nn.Module:
        return AEKLDownsample(self.spatial_dims, channels)

    def upsample(self, channels: int) -> nn.Module:
        if self.use_convtranspose:
            return UpSample(self.spatial_dims, channels, channels, mode="deconv")
        return nearest_upsample(self.spatial_dims, channels, self.conv(channels, channels))


def encoder_blocks(
    parts: Parts, in_channels: int, out_channels: int, levels: Sequence[Level], nonlocal_attention: bool
) -> list[nn.Module]:
    """
    Lay out an encoder: an image becomes a latent, each level after the first at half the size.

    Args:
        parts: builder of the parts.
        in_channels: number of the image's channels.
        out_channels: number of the latent's channels.
        levels: the levels, from the image to the latent.
        nonlocal_attention: whether attention between two residual blocks follows at the end.
    """
    width = levels[0].channels
    blocks = [parts.conv(in_channels, width)]
    for number, level in enumerate(levels):
        blocks += [parts.downsample(width)] if number else []
        blocks += _level_blocks(parts, width, level)
        width = level.channels
    blocks += _middle_blocks(parts, width) if nonlocal_attention else []
    return [*blocks, parts.norm(width), parts.conv(width, out_channels)]


def decoder_blocks(
    parts: Parts, in_channels: int, out_channels: int, levels: Sequence[Level], nonlocal_attention: bool
) -> list[nn.Module]:
    """
    Lay out a decoder: a latent becomes an image. The levels come in the encoder's order, from the image to the latent.

    Args:
        parts: builder of the parts.
        in_channels: number of the latent's channels.
        out_channels: number of the image's channels.
        levels: the levels, from the image to the latent.
        nonlocal_attention: whether it begins with attention between two residual blocks.
    """
    width = levels[-1].channels
    blocks = [parts.conv(in_channels, width)]
    blocks += _middle_blocks(parts, width) if nonlocal_attention else []
    for number, level in enumerate(reversed(levels)):
        blocks += [parts.upsample(width)] if number else []
        blocks += _level_blocks(parts, width, level)
        width = level.channels
    return [*blocks, parts.norm(width), parts.conv(width, out_channels)]


def _level_blocks(parts: Parts, in_channels: int, level: Level) -> list[nn.Module]:
    blocks = []
    for number in range(level.num_res_blocks):
        blocks.append(parts.residual(level.channels if number else in_channels, level.channels))
        if level.attention:
            blocks.append(parts.attention(level.channels))
    return blocks


def _middle_blocks(parts: Parts, channels: int) -> list[nn.Module]:
    return [parts.middle_residual(channels), parts.attention(channels), parts.middle_residual(channels)]


class Cascade(BuiltFromOptions):
    """Blocks one after another: the form of all encoders and decoders here."""

    def build(self, blocks: Sequence[nn.Module]) -> None:
        """Register the blocks."""
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    layout_role = "blocks in a row"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run ``x``, (B, C, sizes), through the blocks."""
        for block in self.blocks:
            x = block(x)
        return x


class GaussianLatent(OldCheckpoints):
    """
    An encoder to, and a decoder from, a latent that is a Gaussian at every position: what the KL-regularized
    autoencoders share. A subclass says how it decodes.

    Args:
        encoder: from images to features, which convolutions turn into means and log variances.
        decoder: from latents to images.
        spatial_dims: number of spatial axes.
        latent_channels: number of the latent's channels.
        use_checkpoint: whether activations are computed again in the backward pass instead of kept.
            Defaults to False.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        spatial_dims: int,
        latent_channels: int,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.quant_conv_mu = convolution(spatial_dims, latent_channels, latent_channels, 1)
        self.quant_conv_log_sigma = convolution(spatial_dims, latent_channels, latent_channels, 1)
        self.post_quant_conv = convolution(spatial_dims, latent_channels, latent_channels, 1)
        self.latent_channels = latent_channels
        self.use_checkpoint = use_checkpoint

    @torch.jit.export
    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            x: images, (B, in_channels, sizes).

        Returns:
            mean and standard deviation of the latent, both (B, latent_channels, smaller sizes)
        """
        if torch.jit.is_scripting() or not self.use_checkpoint:
            h = self.encoder(x)
        else:
            h = recomputed(self.encoder, x)
        log_variance = self.quant_conv_log_sigma(h).clamp(-30.0, 20.0)
        return self.quant_conv_mu(h), torch.exp(log_variance / 2)

    @torch.jit.export
    def sampling(self, z_mu: torch.Tensor, z_sigma: torch.Tensor) -> torch.Tensor:
        """Draw a latent from its mean and standard deviation, all of one shape."""
        return z_mu + torch.randn_like(z_sigma) * z_sigma

    @torch.jit.export
    def encode_stage_2_inputs(self, x: torch.Tensor) -> torch.Tensor:
        """Draw a latent of the images ``x``, for a diffusion model to learn."""
        z_mu, z_sigma = self.encode(x)
        return self.sampling(z_mu, z_sigma)
