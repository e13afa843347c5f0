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

"""What the autoencoders share: the order of the layers in their encoders and decoders, and the Gaussian latent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.utils.checkpoint

from monai.networks.blocks.attention.options import AttentionOptions
from monai.networks.blocks.volume_steps import VolumeSteps
from monai.networks.state_dict.hooks import OldCheckpoints

__all__ = [
    "Cascade",
    "GaussianLatent",
    "LayerBuilder",
    "Level",
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
    out: torch.Tensor = (
        module(x) if becomes_a_graph() else torch.utils.checkpoint.checkpoint(module, x, use_reentrant=False)
    )
    return out


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


@dataclass(frozen=True)
class LayerBuilder(ABC):
    """
    Builds the layers of an encoder or a decoder.

    The module of each network has a subclass that takes the layers' classes from that module, so that a class which a
    user puts there in place of the module's own is the one that is built.

    Args:
        spatial_dims: number of spatial axes.
        norm_num_groups: into how many groups the norms divide the channels.
        norm_eps: what the norms add to the variance.
        attention: options of all attention blocks.
    """

    spatial_dims: int
    norm_num_groups: int
    norm_eps: float
    attention: AttentionOptions

    @abstractmethod
    def conv(self, in_channels: int, out_channels: int) -> nn.Module:
        """A convolution that keeps the size of the image."""

    @abstractmethod
    def norm(self, channels: int) -> nn.Module:
        """The norm before the last convolution."""

    @abstractmethod
    def residual(self, in_channels: int, out_channels: int) -> nn.Module:
        """A residual block."""

    def middle_residual(self, channels: int) -> nn.Module:
        """One of the two residual blocks between which the lowest resolution attends."""
        return self.residual(channels, channels)

    @abstractmethod
    def attention_block(self, channels: int) -> nn.Module:
        """An attention block over the positions of the image."""

    def downsample(self, channels: int) -> nn.Module:
        """What halves the size of the image in an encoder."""
        raise NotImplementedError(f"{type(self).__name__} builds no encoder.")

    def upsample(self, channels: int) -> nn.Module:
        """What doubles the size of the image in a decoder."""
        raise NotImplementedError(f"{type(self).__name__} builds no decoder.")


def encoder_blocks(
    layers: LayerBuilder,
    in_channels: int,
    out_channels: int,
    levels: Sequence[Level],
    nonlocal_attention: bool,
    out_activation: bool = False,
) -> list[nn.Module]:
    """
    Lay out an encoder: an image becomes a latent, each level after the first at half the size.

    Args:
        layers: builds the layers.
        in_channels: number of the image's channels.
        out_channels: number of the latent's channels.
        levels: the levels, from the image to the latent.
        nonlocal_attention: whether attention between two residual blocks follows at the end.
        out_activation: whether a SiLU comes before the last convolution.
    """
    width = levels[0].channels
    blocks = [layers.conv(in_channels, width)]
    for number, level in enumerate(levels):
        blocks += [layers.downsample(width)] if number else []
        blocks += _level_blocks(layers, width, level)
        width = level.channels
    blocks += _middle_blocks(layers, width) if nonlocal_attention else []
    return [*blocks, *_last_blocks(layers, width, out_channels, out_activation)]


def decoder_blocks(
    layers: LayerBuilder,
    in_channels: int,
    out_channels: int,
    levels: Sequence[Level],
    nonlocal_attention: bool,
    out_activation: bool = False,
) -> list[nn.Module]:
    """
    Lay out a decoder: a latent becomes an image. The levels come in the encoder's order, from the image to the latent.

    Args:
        layers: builds the layers.
        in_channels: number of the latent's channels.
        out_channels: number of the image's channels.
        levels: the levels, from the image to the latent.
        nonlocal_attention: whether it begins with attention between two residual blocks.
        out_activation: whether a SiLU comes before the last convolution.
    """
    width = levels[-1].channels
    blocks = [layers.conv(in_channels, width)]
    blocks += _middle_blocks(layers, width) if nonlocal_attention else []
    for number, level in enumerate(reversed(levels)):
        blocks += [layers.upsample(width)] if number else []
        blocks += _level_blocks(layers, width, level)
        width = level.channels
    return [*blocks, *_last_blocks(layers, width, out_channels, out_activation)]


def _level_blocks(layers: LayerBuilder, in_channels: int, level: Level) -> list[nn.Module]:
    blocks = []
    for number in range(level.num_res_blocks):
        blocks.append(layers.residual(level.channels if number else in_channels, level.channels))
        if level.attention:
            blocks.append(layers.attention_block(level.channels))
    return blocks


def _last_blocks(layers: LayerBuilder, width: int, out_channels: int, activation: bool) -> list[nn.Module]:
    return [layers.norm(width), *([nn.SiLU()] if activation else []), layers.conv(width, out_channels)]


def _middle_blocks(layers: LayerBuilder, channels: int) -> list[nn.Module]:
    return [layers.middle_residual(channels), layers.attention_block(channels), layers.middle_residual(channels)]


class Cascade(nn.Module):
    """
    Blocks one after another: the form of the encoders and decoders.

    Args:
        blocks: the blocks.
    """

    works_on_slabs = True
    layout_role = "blocks in a row"

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def volume_steps(self, steps: VolumeSteps, volume: int) -> int:
        """See :class:`VolumeSteps`."""
        return steps.add(volume, *self.blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run ``x``, (B, C, sizes), through the blocks."""
        for block in self.blocks:
            x = block(x)
        return x


class GaussianLatent(OldCheckpoints):
    """
    An encoder to, and a decoder from, a latent that is a Gaussian at every position: what the KL-regularized
    autoencoders share. A subclass says in ``encode`` and ``decode`` how they are called.

    Args:
        encoder: from images to features.
        decoder: from latents to images.
        convolutions: from the features to the means, from the features to the log variances, and from latents to what
            the decoder takes.
        latent_channels: number of the latent's channels.
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, convolutions: Sequence[nn.Module], latent_channels: int
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.quant_conv_mu, self.quant_conv_log_sigma, self.post_quant_conv = convolutions
        self.latent_channels = latent_channels

    def distribution(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the latent, by the encoder's features; all are (B, latent_channels, sizes)."""
        z_mu = self.quant_conv_mu(h)
        log_variance = self.quant_conv_log_sigma(h).clamp(-30.0, 20.0)
        return z_mu, torch.exp(log_variance / 2)

    @torch.jit.export
    def sampling(self, z_mu: torch.Tensor, z_sigma: torch.Tensor) -> torch.Tensor:
        """Draw a latent from its mean and standard deviation, all of one shape."""
        return z_mu + torch.randn_like(z_sigma) * z_sigma

    @torch.jit.export
    def encode_stage_2_inputs(self, x: torch.Tensor) -> torch.Tensor:
        """Draw a latent of the images ``x``, for a diffusion model to learn."""
        z_mu, z_sigma = self.encode(x)  # type: ignore[operator]
        return self.sampling(z_mu, z_sigma)
