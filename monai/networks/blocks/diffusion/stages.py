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

"""Stages of the downward path of the diffusion networks, and of their middle: what works at one size of the image."""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn as nn

from monai.networks.blocks.diffusion.parts import CrossAttention, Residuals, SelfAttention, alternating, down_widths

__all__ = [
    "AttnDownBlock",
    "AttnMidBlock",
    "CrossAttnDownBlock",
    "CrossAttnMidBlock",
    "DownBlock",
]


class DownBlock(nn.Module):
    """
    Stage of the downward path without attention.

    Args:
        spatial_dims: number of spatial axes.
        in_channels: number of the input's channels.
        out_channels: number of the output's channels.
        temb_channels: width of the time embedding.
        num_res_blocks: number of residual blocks. Defaults to 1.
        norm_num_groups: into how many groups the norms divide the channels. Defaults to 32.
        norm_eps: what the norms add to the variance. Defaults to 1e-6.
        add_downsample: whether a downsampler follows. Defaults to True.
        resblock_updown: whether it is a residual block, or else a strided convolution. Defaults to False.
        downsample_padding: zeros put on both ends of each axis before the strided convolution. Defaults to 1.
    """

    works_on_slabs = True

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        temb_channels: int,
        num_res_blocks: int = 1,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        add_downsample: bool = True,
        resblock_updown: bool = False,
        downsample_padding: int = 1,
    ) -> None:
        super().__init__()
        self.resblock_updown = resblock_updown
        parts = Residuals(spatial_dims, temb_channels, norm_num_groups, norm_eps, resblock_updown)
        widths = down_widths(in_channels, out_channels, num_res_blocks)
        self.resnets = nn.ModuleList([parts.resnet(width, out_channels) for width in widths])
        self.downsampler = parts.downsampler(out_channels, downsample_padding) if add_downsample else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        temb: torch.Tensor,
        context: Optional[torch.Tensor] = None,
        context_mask: Optional[torch.Tensor] = None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """
        Args:
            hidden_states: (B, in_channels, sizes).
            temb: time embedding, (B, temb_channels).
            context: not used.
            context_mask: not used.

        Returns:
            the features, (B, out_channels, sizes, halved by a downsampler); and those after each block and sampler.
        """
        states: list[torch.Tensor] = []
        for resnet in self.resnets:
            hidden_states = resnet(hidden_states, temb)
            states.append(hidden_states)
        if self.downsampler is not None:
            hidden_states = self.downsampler(hidden_states, temb)
            states.append(hidden_states)
        return hidden_states, states


class AttnDownBlock(nn.Module):
    """
    Stage of the downward path with self attention.

    Args:
        num_head_channels: width of one attention head. Defaults to 1.
        include_fc: whether attention has an output projection, where ``use_proj_attn`` is None. Defaults to True.
        use_combined_linear: whether one linear computes q, k and v. Defaults to False.
        use_flash_attention: accepted; the fused kernel is used either way. Defaults to False.
        upcast_attention: whether attention is computed in float32. Defaults to False.
        use_proj_attn: whether attention has an output projection; None (the default) follows ``include_fc``.

    The other arguments, and those of ``forward``, are those of :class:`DownBlock`.
    """

    works_on_slabs = True

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        temb_channels: int,
        num_res_blocks: int = 1,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        add_downsample: bool = True,
        resblock_updown: bool = False,
        downsample_padding: int = 1,
        num_head_channels: int = 1,
        include_fc: bool = True,
        use_combined_linear: bool = False,
        use_flash_attention: bool = False,
        upcast_attention: bool = False,
        use_proj_attn: bool | None = None,
    ) -> None:
        super().__init__()
        self.resblock_updown = resblock_updown
        parts = Residuals(spatial_dims, temb_channels, norm_num_groups, norm_eps, resblock_updown)
        attention = SelfAttention(
            parts,
            num_head_channels=num_head_channels,
            include_fc=include_fc,
            use_combined_linear=use_combined_linear,
            use_flash_attention=use_flash_attention,
            upcast_attention=upcast_attention,
            use_proj_attn=use_proj_attn,
        )
        widths = down_widths(in_channels, out_channels, num_res_blocks)
        resnets, attentions = alternating(widths, out_channels, parts.resnet, attention.build)
        self.attentions = attentions
        self.resnets = resnets
        self.downsampler = parts.downsampler(out_channels, downsample_padding) if add_downsample else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        temb: torch.Tensor,
        context: Optional[torch.Tensor] = None,
        context_mask: Optional[torch.Tensor] = None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The features, and those after each block and sampler, see :meth:`DownBlock.forward`."""
        states: list[torch.Tensor] = []
        for resnet, attn in zip(self.resnets, self.attentions):
            hidden_states = resnet(hidden_states, temb)
            hidden_states = attn(hidden_states).contiguous()
            states.append(hidden_states)
        if self.downsampler is not None:
            hidden_states = self.downsampler(hidden_states, temb)
            states.append(hidden_states)
        return hidden_states, states


class CrossAttnDownBlock(nn.Module):
    """
    Stage of the downward path with transformers, which attend to a context.

    Args:
        num_head_channels: width of one attention head. Defaults to 1.
        transformer_num_layers: number of layers of each transformer. Defaults to 1.
        cross_attention_dim: width of the context; that of the features unless given.
        upcast_attention: whether attention is computed in float32. Defaults to False.
        dropout_cattn: fraction of attention weights and of outputs dropped in training. Defaults to 0.0.
        include_fc: whether self attention has an output projection, where ``use_proj_attn`` is None. Defaults to True.
        use_combined_linear: whether self attention computes q, k and v with one linear. Defaults to False.
        use_flash_attention: accepted; the fused kernel is used either way. Defaults to False.
        use_proj_attn: whether self and cross attention have an output projection. None (the default) leaves the choice
            to ``include_fc`` for self attention and means True for cross attention.

    The other arguments are those of :class:`DownBlock`.
    """

    works_on_slabs = True

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        temb_channels: int,
        num_res_blocks: int = 1,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        add_downsample: bool = True,
        resblock_updown: bool = False,
        downsample_padding: int = 1,
        num_head_channels: int = 1,
        transformer_num_layers: int = 1,
        cross_attention_dim: int | None = None,
        upcast_attention: bool = False,
        dropout_cattn: float = 0.0,
        include_fc: bool = True,
        use_combined_linear: bool = False,
        use_flash_attention: bool = False,
        use_proj_attn: bool | None = None,
    ) -> None:
        super().__init__()
        self.resblock_updown = resblock_updown
        parts = Residuals(spatial_dims, temb_channels, norm_num_groups, norm_eps, resblock_updown)
        attention = CrossAttention(
            parts,
            num_head_channels=num_head_channels,
            transformer_num_layers=transformer_num_layers,
            cross_attention_dim=cross_attention_dim,
            upcast_attention=upcast_attention,
            include_fc=include_fc,
            use_combined_linear=use_combined_linear,
            use_flash_attention=use_flash_attention,
            use_proj_attn=use_proj_attn,
            dropout_cattn=dropout_cattn,
        )
        widths = down_widths(in_channels, out_channels, num_res_blocks)
        resnets, attentions = alternating(widths, out_channels, parts.resnet, attention.build)
        self.attentions = attentions
        self.resnets = resnets
        self.downsampler = parts.downsampler(out_channels, downsample_padding) if add_downsample else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        temb: torch.Tensor,
        context: Optional[torch.Tensor] = None,
        context_mask: Optional[torch.Tensor] = None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """
        Args:
            hidden_states: (B, in_channels, sizes).
            temb: time embedding, (B, temb_channels).
            context: tokens for cross attention, (B, K, cross_attention_dim).
            context_mask: nonzero where a context token may be attended to, (B, K); None lets all be attended to.

        Returns:
            the features, (B, out_channels, sizes, halved by a downsampler); and those after each block and sampler.
        """
        states: list[torch.Tensor] = []
        for resnet, attn in zip(self.resnets, self.attentions):
            hidden_states = resnet(hidden_states, temb)
            if context_mask is None:
                hidden_states = attn(hidden_states, context=context).contiguous()
            else:
                hidden_states = attn(hidden_states, context=context, context_mask=context_mask).contiguous()
            states.append(hidden_states)
        if self.downsampler is not None:
            hidden_states = self.downsampler(hidden_states, temb)
            states.append(hidden_states)
        return hidden_states, states


class AttnMidBlock(nn.Module):
    """
    Stage between the downward and the upward path: residual block, self attention, residual block. The arguments are
    those of :class:`AttnDownBlock`.
    """

    works_on_slabs = True

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        temb_channels: int,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        num_head_channels: int = 1,
        include_fc: bool = True,
        use_combined_linear: bool = False,
        use_flash_attention: bool = False,
        upcast_attention: bool = False,
        use_proj_attn: bool | None = None,
    ) -> None:
        super().__init__()
        parts = Residuals(spatial_dims, temb_channels, norm_num_groups, norm_eps)
        attention = SelfAttention(
            parts,
            num_head_channels=num_head_channels,
            include_fc=include_fc,
            use_combined_linear=use_combined_linear,
            use_flash_attention=use_flash_attention,
            upcast_attention=upcast_attention,
            use_proj_attn=use_proj_attn,
        )
        self.resnet_1 = parts.resnet(in_channels, in_channels)
        self.attention = attention.build(in_channels)
        self.resnet_2 = parts.resnet(in_channels, in_channels)

    def forward(
        self,
        hidden_states: torch.Tensor,
        temb: torch.Tensor,
        context: Optional[torch.Tensor] = None,
        context_mask: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """
        Args:
            hidden_states: (B, in_channels, sizes).
            temb: time embedding, (B, temb_channels).
            context: not used.
            context_mask: not used.

        Returns:
            the same shape
        """
        hidden_states = self.resnet_1(hidden_states, temb)
        hidden_states = self.attention(hidden_states).contiguous()
        hidden_states = self.resnet_2(hidden_states, temb)
        return hidden_states


class CrossAttnMidBlock(nn.Module):
    """
    Stage between the downward and the upward path: residual block, transformer, residual block. The arguments are those
    of :class:`CrossAttnDownBlock`.
    """

    works_on_slabs = True

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        temb_channels: int,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        num_head_channels: int = 1,
        transformer_num_layers: int = 1,
        cross_attention_dim: int | None = None,
        upcast_attention: bool = False,
        dropout_cattn: float = 0.0,
        include_fc: bool = True,
        use_combined_linear: bool = False,
        use_flash_attention: bool = False,
        use_proj_attn: bool | None = None,
    ) -> None:
        super().__init__()
        parts = Residuals(spatial_dims, temb_channels, norm_num_groups, norm_eps)
        attention = CrossAttention(
            parts,
            num_head_channels=num_head_channels,
            transformer_num_layers=transformer_num_layers,
            cross_attention_dim=cross_attention_dim,
            upcast_attention=upcast_attention,
            include_fc=include_fc,
            use_combined_linear=use_combined_linear,
            use_flash_attention=use_flash_attention,
            use_proj_attn=use_proj_attn,
            dropout_cattn=dropout_cattn,
        )
        self.resnet_1 = parts.resnet(in_channels, in_channels)
        self.attention = attention.build(in_channels)
        self.resnet_2 = parts.resnet(in_channels, in_channels)

    def forward(
        self,
        hidden_states: torch.Tensor,
        temb: torch.Tensor,
        context: Optional[torch.Tensor] = None,
        context_mask: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """
        Args:
            hidden_states: (B, in_channels, sizes).
            temb: time embedding, (B, temb_channels).
            context: tokens for cross attention, (B, K, cross_attention_dim).
            context_mask: nonzero where a context token may be attended to, (B, K); None lets all be attended to.

        Returns:
            the same shape
        """
        hidden_states = self.resnet_1(hidden_states, temb)
        if context_mask is None:
            hidden_states = self.attention(hidden_states, context=context)
        else:
            hidden_states = self.attention(hidden_states, context=context, context_mask=context_mask)
        hidden_states = self.resnet_2(hidden_states, temb)
        return hidden_states
