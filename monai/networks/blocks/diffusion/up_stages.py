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

"""Stages of the upward path of the diffusion networks."""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn as nn

from monai.networks.blocks.diffusion.parts import CrossAttention, Residuals, SelfAttention, alternating, up_widths

__all__ = ["AttnUpBlock", "CrossAttnUpBlock", "UpBlock"]


class UpBlock(nn.Module):
    """
    Stage of the upward path without attention.

    Args:
        in_channels: number of channels of the last features from the downward path; the others have ``out_channels``.
        prev_output_channel: number of channels of the features from below.
        add_upsample: whether an upsampler follows. Defaults to True.
        resblock_updown: whether it is a residual block, or else a repetition and a convolution. Defaults to False.

    The other arguments are those of :class:`DownBlock`.
    """

    works_on_slabs = True

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        prev_output_channel: int,
        out_channels: int,
        temb_channels: int,
        num_res_blocks: int = 1,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        add_upsample: bool = True,
        resblock_updown: bool = False,
    ) -> None:
        super().__init__()
        self.resblock_updown = resblock_updown
        parts = Residuals(spatial_dims, temb_channels, norm_num_groups, norm_eps, resblock_updown)
        widths = up_widths(in_channels, prev_output_channel, out_channels, num_res_blocks)
        self.resnets = nn.ModuleList([parts.resnet(width, out_channels) for width in widths])
        self.upsampler = parts.upsampler(out_channels) if add_upsample else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        res_hidden_states_list: list[torch.Tensor],
        temb: torch.Tensor,
        context: Optional[torch.Tensor] = None,
        context_mask: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """
        Args:
            hidden_states: (B, prev_output_channel, sizes).
            res_hidden_states_list: features of the downward path; each residual block takes the last one left.
            temb: time embedding, (B, temb_channels).
            context: not used.
            context_mask: not used.

        Returns:
            (B, out_channels, sizes, doubled by an upsampler)
        """
        for resnet in self.resnets:
            hidden_states = torch.cat([hidden_states, res_hidden_states_list[-1]], dim=1)
            res_hidden_states_list = res_hidden_states_list[:-1]
            hidden_states = resnet(hidden_states, temb)
        if self.upsampler is not None:
            hidden_states = self.upsampler(hidden_states, temb)
        return hidden_states


class AttnUpBlock(nn.Module):
    """
    Stage of the upward path with self attention. The arguments are those of :class:`UpBlock` and
    :class:`AttnDownBlock`, and those of ``forward`` are those of :class:`UpBlock`.
    """

    works_on_slabs = True

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        prev_output_channel: int,
        out_channels: int,
        temb_channels: int,
        num_res_blocks: int = 1,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        add_upsample: bool = True,
        resblock_updown: bool = False,
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
        widths = up_widths(in_channels, prev_output_channel, out_channels, num_res_blocks)
        self.resnets, self.attentions = alternating(widths, out_channels, parts.resnet, attention.build)
        self.upsampler = parts.upsampler(out_channels) if add_upsample else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        res_hidden_states_list: list[torch.Tensor],
        temb: torch.Tensor,
        context: Optional[torch.Tensor] = None,
        context_mask: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """(B, out_channels, sizes, doubled by an upsampler), see :meth:`UpBlock.forward`."""
        for block, attention in zip(self.resnets, self.attentions):
            hidden_states = torch.cat([hidden_states, res_hidden_states_list[-1]], dim=1)
            res_hidden_states_list = res_hidden_states_list[:-1]
            hidden_states = block(hidden_states, temb)
            hidden_states = attention(hidden_states).contiguous()
        if self.upsampler is not None:
            hidden_states = self.upsampler(hidden_states, temb)
        return hidden_states


class CrossAttnUpBlock(nn.Module):
    """
    Stage of the upward path with transformers. The arguments are those of :class:`UpBlock` and
    :class:`CrossAttnDownBlock`.
    """

    works_on_slabs = True

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        prev_output_channel: int,
        out_channels: int,
        temb_channels: int,
        num_res_blocks: int = 1,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        add_upsample: bool = True,
        resblock_updown: bool = False,
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
        widths = up_widths(in_channels, prev_output_channel, out_channels, num_res_blocks)
        resnets, attentions = alternating(widths, out_channels, parts.resnet, attention.build)
        self.attentions = attentions
        self.resnets = resnets
        self.upsampler = parts.upsampler(out_channels) if add_upsample else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        res_hidden_states_list: list[torch.Tensor],
        temb: torch.Tensor,
        context: Optional[torch.Tensor] = None,
        context_mask: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """
        Args:
            hidden_states: (B, prev_output_channel, sizes).
            res_hidden_states_list: features of the downward path; each residual block takes the last one left.
            temb: time embedding, (B, temb_channels).
            context: tokens for cross attention, (B, K, cross_attention_dim).
            context_mask: nonzero where a context token may be attended to, (B, K); None lets all be attended to.

        Returns:
            (B, out_channels, sizes, doubled by an upsampler)
        """
        for block, attention in zip(self.resnets, self.attentions):
            hidden_states = torch.cat([hidden_states, res_hidden_states_list[-1]], dim=1)
            res_hidden_states_list = res_hidden_states_list[:-1]
            hidden_states = block(hidden_states, temb)
            if context_mask is None:
                hidden_states = attention(hidden_states, context=context)
            else:
                hidden_states = attention(hidden_states, context=context, context_mask=context_mask)
        if self.upsampler is not None:
            hidden_states = self.upsampler(hidden_states, temb)
        return hidden_states
