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

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Optional

import torch
import torch.nn as nn

from monai.networks.blocks.attention.options import AttentionOptions
from monai.networks.blocks.diffusion.layers import (
    BuiltFromOptions,
    DiffusionUnetDownsample,
    DiffusionUNetResnetBlock,
    SpatialTransformer,
    attention_options,
    convolution,
    nearest_upsample,
)
from monai.networks.blocks.spatialattention import SpatialAttentionBlock

__all__ = ["DownStage", "MidStage", "Stage", "StageOptions", "UpStage"]


@dataclass(frozen=True)
class StageOptions:
    """
    What the stages of a diffusion network have in common, and how they make their parts from it.

    Args:
        spatial_dims: number of spatial axes.
        temb_channels: width of the time embedding.
        norm_num_groups: into how many groups the norms divide the channels.
        norm_eps: what the norms add to the variance.
        resblock_updown: whether residual blocks change the size of the image, or else plain samplers.
        num_head_channels: width of one attention head.
        transformer_num_layers: number of layers of a spatial transformer.
        cross_attention_dim: width of the context.
        attention: options of every attention block.
        label_nc: number of the segmentation's channels (SPADE).
        spade_intermediate_channels: width of SPADE's hidden layer.
    """

    spatial_dims: int
    temb_channels: int
    norm_num_groups: int = 32
    norm_eps: float = 1e-6
    resblock_updown: bool = False
    num_head_channels: int = 1
    transformer_num_layers: int = 1
    cross_attention_dim: int | None = None
    attention: AttentionOptions = field(default_factory=AttentionOptions)
    label_nc: int = 0
    spade_intermediate_channels: int = 128

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> StageOptions:
        """Pick the options among the arguments of a public block, see :func:`attention_options`."""
        own = {item.name: arguments[item.name] for item in fields(cls) if item.name in arguments}
        return cls(**own, attention=attention_options(arguments))

    @property
    def norm(self) -> dict[str, Any]:
        """Arguments of the norms."""
        return {"norm_num_groups": self.norm_num_groups, "norm_eps": self.norm_eps}

    def resnet(self, in_channels: int, out_channels: int, **sampling: bool) -> DiffusionUNetResnetBlock:
        """Build a residual block; ``up=True`` or ``down=True`` changes the size of the image."""
        return DiffusionUNetResnetBlock(
            self.spatial_dims, in_channels, self.temb_channels, out_channels, **self.norm, **sampling
        )

    def self_attention(self, channels: int) -> SpatialAttentionBlock:
        """Build an attention block over all positions of an image."""
        options = self.attention.arguments("dropout_rate", "qkv_bias", "save_attn")
        return SpatialAttentionBlock(self.spatial_dims, channels, self.num_head_channels, **self.norm, **options)

    def transformer(self, channels: int) -> SpatialTransformer:
        """Build a spatial transformer, which attends to a context as well."""
        return SpatialTransformer.from_options(
            self.spatial_dims,
            channels,
            channels // self.num_head_channels,
            self.num_head_channels,
            self.transformer_num_layers,
            self.cross_attention_dim,
            nn.GroupNorm(self.norm_num_groups, channels, eps=self.norm_eps),
            self.attention,
        )

    def downsampler(self, channels: int, padding: int) -> nn.Module:
        """Build what halves the size of the image."""
        if self.resblock_updown:
            return self.resnet(channels, channels, down=True)
        return DiffusionUnetDownsample(self.spatial_dims, channels, use_conv=True, padding=padding)

    def upsampler(self, channels: int) -> nn.Module:
        """Build what doubles the size of the image."""
        if self.resblock_updown:
            return self.resnet(channels, channels, up=True)
        return nearest_upsample(self.spatial_dims, channels, convolution(self.spatial_dims, channels, channels))


class Stage(BuiltFromOptions):
    """
    Part of a diffusion network that works at one size of the image.

    A subclass names in ``placement`` what follows each residual block: "self" attention, a transformer with "cross"
    attention, or "none".
    """

    placement = "none"
    # a constant, so that TorchScript does not compile the call that a stage has no use for
    __constants__ = ["conditioned"]

    def start(self, options: StageOptions) -> None:
        """Begin to build the stage."""
        super().__init__()
        self.conditioned = self.placement == "cross"
        self.resblock_updown = options.resblock_updown

    def make_attention(self, options: StageOptions, channels: int) -> nn.Module:
        """Build what follows a residual block."""
        if self.placement == "none":
            return nn.Identity()
        return options.transformer(channels) if self.conditioned else options.self_attention(channels)

    def register(self, resnets: list[nn.Module], attentions: list[nn.Module], attentions_first: bool) -> None:
        """Register the blocks in the order of the release's state dict."""
        if attentions_first:
            self.attentions = nn.ModuleList(attentions)
        self.resnets = nn.ModuleList(resnets)
        if not attentions_first:
            self.attentions = nn.ModuleList(attentions)


class DownStage(Stage):
    """
    Stage of the downward path: residual blocks, each with its attention, and a downsampler.

    The arguments are those of :class:`CrossAttnDownBlock`, as far as a subclass takes them.
    """

    def build(
        self,
        options: StageOptions,
        in_channels: int,
        out_channels: int,
        num_res_blocks: int,
        add_downsample: bool,
        downsample_padding: int = 1,
    ) -> None:
        """Register the parts of the stage."""
        self.start(options)
        resnets: list[nn.Module] = []
        attentions: list[nn.Module] = []
        for number in range(num_res_blocks):
            resnets.append(options.resnet(out_channels if number else in_channels, out_channels))
            attentions.append(self.make_attention(options, out_channels))
        self.register(resnets, attentions, attentions_first=True)
        self.downsampler = options.downsampler(out_channels, downsample_padding) if add_downsample else None

    def forward(
        self, hidden_states: torch.Tensor, temb: torch.Tensor, context: Optional[torch.Tensor] = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """
        Args:
            hidden_states: (B, in_channels, sizes).
            temb: time embedding, (B, temb_channels).
            context: tokens for cross attention, (B, K, cross_attention_dim).

        Returns:
            the features, (B, out_channels, sizes, halved by a downsampler); and those after each block and sampler.
        """
        output_states: list[torch.Tensor] = []
        for resnet, attention in zip(self.resnets, self.attentions):
            hidden_states = resnet(hidden_states, temb)
            if self.conditioned:
                hidden_states = attention(hidden_states, context)
            else:
                hidden_states = attention(hidden_states).contiguous()  # whose strides are those of its tokens
            output_states.append(hidden_states)
        if self.downsampler is not None:
            hidden_states = self.downsampler(hidden_states, temb)
            output_states.append(hidden_states)
        return hidden_states, output_states


class MidStage(Stage):
    """Stage between the downward and the upward path: residual block, attention, residual block."""

    def build(self, options: StageOptions, channels: int) -> None:
        """Register the parts of the stage."""
        self.start(options)
        self.resnet_1 = options.resnet(channels, channels)
        self.attention = self.make_attention(options, channels)
        self.resnet_2 = options.resnet(channels, channels)

    def forward(
        self, hidden_states: torch.Tensor, temb: torch.Tensor, context: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        """
        Args:
            hidden_states: (B, in_channels, sizes).
            temb: time embedding, (B, temb_channels).
            context: tokens for cross attention, (B, K, cross_attention_dim).

        Returns:
            the same shape
        """
        hidden_states = self.resnet_1(hidden_states, temb)
        if self.conditioned:
            hidden_states = self.attention(hidden_states, context)
        else:
            hidden_states = self.attention(hidden_states).contiguous()
        return self.resnet_2(hidden_states, temb)


class UpStage(Stage):
    """
    Stage of the upward path: residual blocks, each fed with features of the downward path too and followed by its
    attention, and an upsampler.

    The arguments are those of :class:`CrossAttnUpBlock`, as far as a subclass takes them.
    """

    def build(
        self,
        options: StageOptions,
        in_channels: int,
        prev_output_channel: int,
        out_channels: int,
        num_res_blocks: int,
        add_upsample: bool,
    ) -> None:
        """Register the parts of the stage."""
        self.start(options)
        resnets: list[nn.Module] = []
        attentions: list[nn.Module] = []
        for number in range(num_res_blocks):
            skip = in_channels if number == num_res_blocks - 1 else out_channels
            below = out_channels if number else prev_output_channel
            resnets.append(self.make_resnet(options, below + skip, out_channels))
            attentions.append(self.make_attention(options, out_channels))
        self.register(resnets, attentions, attentions_first=self.conditioned)
        self.upsampler = options.upsampler(out_channels) if add_upsample else None

    def make_resnet(self, options: StageOptions, in_channels: int, out_channels: int) -> nn.Module:
        """Build one residual block."""
        return options.resnet(in_channels, out_channels)

    def forward(
        self,
        hidden_states: torch.Tensor,
        res_hidden_states_list: list[torch.Tensor],
        temb: torch.Tensor,
        context: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """
        Args:
            hidden_states: (B, prev_output_channel, sizes).
            res_hidden_states_list: features of the downward path, of which each residual block takes the last left.
            temb: time embedding, (B, temb_channels).
            context: tokens for cross attention, (B, K, cross_attention_dim).

        Returns:
            (B, out_channels, sizes, doubled by an upsampler)
        """
        last = len(res_hidden_states_list) - 1
        for number, (resnet, attention) in enumerate(zip(self.resnets, self.attentions)):
            hidden_states = torch.cat([hidden_states, res_hidden_states_list[last - number]], dim=1)
            hidden_states = resnet(hidden_states, temb)
            if self.conditioned:
                hidden_states = attention(hidden_states, context)
            else:
                hidden_states = attention(hidden_states).contiguous()  # whose strides are those of its tokens
        if self.upsampler is not None:
            hidden_states = self.upsampler(hidden_states, temb)
        return hidden_states
