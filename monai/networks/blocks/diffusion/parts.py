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

"""What the stages of the diffusion networks are built from: one object of options for each kind of block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn as nn

from monai.networks.blocks.attention.options import dropout_argument, projection_argument, type_argument
from monai.networks.blocks.convolutions import Convolution
from monai.networks.blocks.diffusion.layers import (
    DiffusionUnetDownsample,
    DiffusionUNetResnetBlock,
    WrappedUpsample,
    convolution,
    nearest_upsample,
)
from monai.networks.blocks.diffusion.names import UNET_NAMES, Names
from monai.networks.blocks.diffusion.transformer import SpatialTransformer
from monai.networks.blocks.spatialattention import SpatialAttentionBlock

__all__ = ["CrossAttention", "Residuals", "SelfAttention", "alternating", "down_widths", "up_widths"]


@dataclass(frozen=True)
class Residuals:
    """
    Options of a stage's residual blocks and samplers, and what builds them.

    Args:
        spatial_dims: number of spatial axes.
        temb_channels: width of the time embedding.
        norm_num_groups: into how many groups the norms divide the channels.
        norm_eps: what the norms add to the variance.
        resblock_updown: whether residual blocks change the size of the image, or else plain samplers.
        names: of the classes that the stage is built from.
    """

    spatial_dims: int
    temb_channels: int
    norm_num_groups: int
    norm_eps: float
    resblock_updown: bool = False
    names: Names = UNET_NAMES

    def resnet(self, in_channels: int, out_channels: int, **sampling: bool) -> nn.Module:
        """Build a residual block; ``up=True`` or ``down=True`` changes the size of the image."""
        return self.names(DiffusionUNetResnetBlock)(
            spatial_dims=self.spatial_dims,
            in_channels=in_channels,
            out_channels=out_channels,
            temb_channels=self.temb_channels,
            norm_num_groups=self.norm_num_groups,
            norm_eps=self.norm_eps,
            **sampling,
        )

    def downsampler(self, channels: int, padding: int) -> nn.Module:
        """Build what halves the size of the image."""
        if self.resblock_updown:
            return self.resnet(channels, channels, down=True)
        return self.names(DiffusionUnetDownsample)(
            spatial_dims=self.spatial_dims, num_channels=channels, use_conv=True, out_channels=channels, padding=padding
        )

    def upsampler(self, channels: int) -> nn.Module:
        """Build what doubles the size of the image."""
        if self.resblock_updown:
            return self.resnet(channels, channels, up=True)
        post_conv = convolution(self.spatial_dims, channels, channels, kind=self.names(Convolution))
        return nearest_upsample(self.spatial_dims, channels, post_conv, kind=self.names(WrappedUpsample))


@dataclass(frozen=True)
class SelfAttention:
    """
    Options of a stage's attention between all positions of the image, and what builds it.

    Args:
        residuals: options that it shares with the residual blocks.
        num_head_channels: width of one attention head.
        include_fc: whether attention has an output projection, where ``use_proj_attn`` is None.
        use_combined_linear: whether one linear computes q, k and v.
        use_flash_attention: accepted; the fused kernel is used either way.
        upcast_attention: whether attention is computed in float32.
        use_proj_attn: whether attention has an output projection; None follows ``include_fc``.
    """

    residuals: Residuals
    num_head_channels: int
    include_fc: bool
    use_combined_linear: bool
    use_flash_attention: bool
    upcast_attention: bool
    use_proj_attn: bool | None

    def build(self, channels: int) -> nn.Module:
        """Build the attention that follows one residual block."""
        return self.residuals.names(SpatialAttentionBlock)(
            spatial_dims=self.residuals.spatial_dims,
            num_channels=channels,
            num_head_channels=self.num_head_channels,
            norm_num_groups=self.residuals.norm_num_groups,
            norm_eps=self.residuals.norm_eps,
            include_fc=self.include_fc,
            use_combined_linear=self.use_combined_linear,
            use_flash_attention=self.use_flash_attention,
            **type_argument(torch.float if self.upcast_attention else None),
            **projection_argument(self.use_proj_attn),
        )


@dataclass(frozen=True)
class CrossAttention:
    """
    Options of a stage's transformers, and what builds them.

    Args:
        residuals: options that they share with the residual blocks.
        num_head_channels: width of one attention head.
        transformer_num_layers: number of layers of each transformer.
        cross_attention_dim: width of the context; that of the features where it is None.
        upcast_attention: whether attention is computed in float32.
        include_fc: whether self attention has an output projection, where ``use_proj_attn`` is None.
        use_combined_linear: whether self attention computes q, k and v with one linear.
        use_flash_attention: accepted; the fused kernel is used either way.
        use_proj_attn: whether self and cross attention have an output projection. None leaves the choice to
            ``include_fc`` for self attention and means True for cross attention.
        dropout_cattn: fraction of attention weights and of outputs dropped in training; None means 0.
    """

    residuals: Residuals
    num_head_channels: int
    transformer_num_layers: int
    cross_attention_dim: int | None
    upcast_attention: bool
    include_fc: bool
    use_combined_linear: bool
    use_flash_attention: bool
    use_proj_attn: bool | None
    dropout_cattn: float | None = None

    def build(self, channels: int) -> nn.Module:
        """Build the transformer that follows one residual block."""
        return self.residuals.names(SpatialTransformer)(
            spatial_dims=self.residuals.spatial_dims,
            in_channels=channels,
            num_attention_heads=channels // self.num_head_channels,
            num_head_channels=self.num_head_channels,
            num_layers=self.transformer_num_layers,
            norm_num_groups=self.residuals.norm_num_groups,
            norm_eps=self.residuals.norm_eps,
            cross_attention_dim=self.cross_attention_dim,
            upcast_attention=self.upcast_attention,
            include_fc=self.include_fc,
            use_combined_linear=self.use_combined_linear,
            use_flash_attention=self.use_flash_attention,
            **dropout_argument(self.dropout_cattn),
            **projection_argument(self.use_proj_attn),
        )


def down_widths(in_channels: int, out_channels: int, num_res_blocks: int) -> list[int]:
    """How many channels each residual block of the downward path receives."""
    return [in_channels if number == 0 else out_channels for number in range(num_res_blocks)]


def up_widths(in_channels: int, prev_output_channel: int, out_channels: int, num_res_blocks: int) -> list[int]:
    """How many channels each residual block of the upward path receives: from below and from the downward path."""
    below = down_widths(prev_output_channel, out_channels, num_res_blocks)
    beside = down_widths(in_channels, out_channels, num_res_blocks)[::-1]
    return [width + skip for width, skip in zip(below, beside)]


def alternating(
    widths: list[int],
    out_channels: int,
    resnet: Callable[[int, int], nn.Module],
    attention: Callable[[int], nn.Module],
) -> tuple[nn.ModuleList, nn.ModuleList]:
    """
    Build residual blocks and attention in turn, as their random weights are drawn.

    Args:
        widths: number of channels that each residual block receives.
        out_channels: number of channels that all of them return.
        resnet: builds a residual block from these two numbers.
        attention: builds attention over so many channels.

    Returns:
        the residual blocks, and the attention
    """
    resnets, attentions = nn.ModuleList(), nn.ModuleList()
    for width in widths:
        resnets.append(resnet(width, out_channels))
        attentions.append(attention(out_channels))
    return resnets, attentions
