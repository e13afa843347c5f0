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

"""Transformers over the positions of an image, which attend to a context as well."""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn as nn

from monai.networks.blocks.attention.options import projection_argument
from monai.networks.blocks.attention.token_grid import TokenGrid
from monai.networks.blocks.convolutions import Convolution
from monai.networks.blocks.crossattention import CrossAttentionBlock
from monai.networks.blocks.diffusion.layers import convolution, zero_module
from monai.networks.blocks.diffusion.names import UNET_NAMES
from monai.networks.blocks.mlp import MLPBlock
from monai.networks.blocks.selfattention import SABlock
from monai.networks.state_dict.torch_private import has_pre_hooks

__all__ = ["DiffusionUNetTransformerBlock", "SpatialTransformer"]


class DiffusionUNetTransformerBlock(nn.Module):
    """
    Pre-norm transformer layer: self attention, cross attention, and a gated feed-forward network.

    Args:
        num_channels: width C of the tokens.
        num_attention_heads: number of attention heads.
        num_head_channels: width of one head.
        dropout: fraction of attention weights and of outputs dropped in training. Defaults to 0.0.
        cross_attention_dim: width of the context; the attention's own unless given.
        upcast_attention: whether attention is computed in float32. Defaults to False.
        use_flash_attention: accepted; the fused kernel is used either way. Defaults to False.
        include_fc: whether self attention has an output projection, where ``use_proj_attn`` is None. Defaults to True.
        use_combined_linear: whether self attention computes q, k and v with one linear. Defaults to False.
        use_proj_attn: whether self and cross attention have an output projection. None (the default) leaves the choice
            to ``include_fc`` for self attention and means True for cross attention.

    Raises:
        ValueError: if ``dropout`` is outside of [0, 1], or a width does not fit without a projection.
        TypeError: if ``use_proj_attn`` is neither a bool nor None.
    """

    works_on_slabs = True
    layout_role = "diffusion transformer"

    def __init__(
        self,
        num_channels: int,
        num_attention_heads: int,
        num_head_channels: int,
        dropout: float = 0.0,
        cross_attention_dim: int | None = None,
        upcast_attention: bool = False,
        use_flash_attention: bool = False,
        include_fc: bool = True,
        use_combined_linear: bool = False,
        use_proj_attn: bool | None = None,
    ) -> None:
        super().__init__()
        width = num_attention_heads * num_head_channels
        attention_dtype = torch.float if upcast_attention else None
        projection = projection_argument(use_proj_attn)
        self.attn1 = UNET_NAMES(SABlock)(
            hidden_size=width,
            hidden_input_size=num_channels,
            num_heads=num_attention_heads,
            dim_head=num_head_channels,
            dropout_rate=dropout,
            attention_dtype=attention_dtype,
            include_fc=include_fc,
            use_combined_linear=use_combined_linear,
            use_flash_attention=use_flash_attention,
            **projection,
        )
        self.ff = UNET_NAMES(MLPBlock)(
            hidden_size=num_channels, mlp_dim=4 * num_channels, act="GEGLU", dropout_rate=dropout
        )
        self.attn2 = UNET_NAMES(CrossAttentionBlock)(
            hidden_size=width,
            num_heads=num_attention_heads,
            hidden_input_size=num_channels,
            context_input_size=cross_attention_dim,
            dim_head=num_head_channels,
            dropout_rate=dropout,
            attention_dtype=attention_dtype,
            use_flash_attention=use_flash_attention,
            **projection,
        )
        self.norm1 = nn.LayerNorm(num_channels)
        self.norm2 = nn.LayerNorm(num_channels)
        self.norm3 = nn.LayerNorm(num_channels)

    def forward(
        self,
        x: torch.Tensor,
        context: Optional[torch.Tensor] = None,
        context_mask: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """
        Args:
            x: tokens, (B, N, C).
            context: tokens that cross attention attends to, (B, K, cross_attention_dim); by default ``x`` itself.
            context_mask: nonzero where a context token may be attended to: (B, K), (B, N, K) or
                (B, 1 or heads, N, K). None, the default, lets all be attended to.

        Returns:
            (B, N, C)

        Raises:
            ValueError: if there is no context, and the tokens themselves have not the width of one.
        """
        x = self.attn1(self.norm1(x)) + x
        if context is None and not torch.jit.is_scripting():
            _refuse_missing_context(self.attn2, x)
        if context_mask is None:
            x = self.attn2(self.norm2(x), context=context) + x
        else:
            x = self.attn2(self.norm2(x), context=context, attn_mask=context_mask) + x
        x = self.ff(self.norm3(x)) + x
        return x


def _refuse_missing_context(attention: nn.Module, tokens: torch.Tensor) -> None:
    """Raise a ValueError where cross attention has no context and cannot attend to the tokens in its place."""
    # what a user has put in its place, or a hook that brings the context, knows what to do
    as_built = type(attention) is CrossAttentionBlock and "forward" not in vars(attention)
    if not as_built or has_pre_hooks(attention) or attention.context_input_size == tokens.shape[-1]:
        return
    raise ValueError(
        f"context should be given, (B, K, {attention.context_input_size}): the network was built "
        f"with_conditioning=True and cross_attention_dim={attention.context_input_size}. Without a context, cross "
        f"attention attends to the image's own tokens, and these have {tokens.shape[-1]} channels."
    )


class SpatialTransformer(nn.Module):
    """
    Transformer layers over all positions of an image, inside a residual connection.

    Args:
        spatial_dims: number of spatial axes.
        in_channels: number of channels C of the input and output.
        num_attention_heads: number of attention heads.
        num_head_channels: width of one head.
        num_layers: number of transformer layers. Defaults to 1.
        dropout: fraction of attention weights and of outputs dropped in training. Defaults to 0.0.
        norm_num_groups: into how many groups the norm divides the channels. Defaults to 32.
        norm_eps: what the norm adds to the variance. Defaults to 1e-6.
        cross_attention_dim: width of the context; the attention's own unless given.
        upcast_attention: whether attention is computed in float32. Defaults to False.
        include_fc: whether self attention has an output projection, where ``use_proj_attn`` is None. Defaults to True.
        use_combined_linear: whether self attention computes q, k and v with one linear. Defaults to False.
        use_flash_attention: accepted; the fused kernel is used either way. Defaults to False.
        use_proj_attn: see :class:`DiffusionUNetTransformerBlock`.
    """

    works_on_slabs = True

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        num_attention_heads: int,
        num_head_channels: int,
        num_layers: int = 1,
        dropout: float = 0.0,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        cross_attention_dim: int | None = None,
        upcast_attention: bool = False,
        include_fc: bool = True,
        use_combined_linear: bool = False,
        use_flash_attention: bool = False,
        use_proj_attn: bool | None = None,
    ) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        width = num_attention_heads * num_head_channels
        kind = UNET_NAMES(Convolution)
        self.norm = nn.GroupNorm(norm_num_groups, in_channels, eps=norm_eps)
        self.proj_in = convolution(spatial_dims, in_channels, width, kernel_size=1, kind=kind)
        layers = [
            UNET_NAMES(DiffusionUNetTransformerBlock)(
                num_channels=width,
                num_attention_heads=num_attention_heads,
                num_head_channels=num_head_channels,
                dropout=dropout,
                cross_attention_dim=cross_attention_dim,
                upcast_attention=upcast_attention,
                include_fc=include_fc,
                use_combined_linear=use_combined_linear,
                use_flash_attention=use_flash_attention,
                **projection_argument(use_proj_attn),
            )
            for _ in range(num_layers)
        ]
        self.transformer_blocks = nn.ModuleList(layers)
        self.proj_out = zero_module(convolution(spatial_dims, width, in_channels, kernel_size=1, kind=kind))

    def token_grids(self) -> dict[str, TokenGrid]:
        """See :class:`TokenGrid`."""
        return {"": TokenGrid(holder=self)}

    def forward(
        self,
        x: torch.Tensor,
        context: Optional[torch.Tensor] = None,
        context_mask: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """
        Args:
            x: (B, C, sizes).
            context: tokens to attend to, (B, K, cross_attention_dim); by default the image's own.
            context_mask: nonzero where a context token may be attended to, see
                :meth:`DiffusionUNetTransformerBlock.forward`.

        Returns:
            the same shape as ``x``
        """
        h = self.proj_in(self.norm(x))
        shape = h.shape
        h = h.flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            if context_mask is None:
                h = block(h, context=context)
            else:
                h = block(h, context=context, context_mask=context_mask)
        h = h.transpose(1, 2).reshape(shape).contiguous()
        out: torch.Tensor = self.proj_out(h) + x
        return out
