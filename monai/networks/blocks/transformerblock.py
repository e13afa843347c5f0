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

"""The transformer block of the vision transformers and of the decoder."""

from __future__ import annotations

from typing import Any, Optional

import torch
import torch.nn as nn

from monai.networks.blocks.attention.options import check_sizes, projection_argument
from monai.networks.blocks.crossattention import CrossAttentionBlock
from monai.networks.blocks.mlp import MLPBlock
from monai.networks.blocks.selfattention import SABlock
from monai.networks.state_dict.hooks import SafeLoading

__all__ = ["TransformerBlock"]


class TransformerBlock(SafeLoading):
    """
    Pre-norm transformer layer: self attention, cross attention on request, and a feed-forward network, each with a
    residual connection, as in "Dosovitskiy et al., An Image is Worth 16x16 Words <https://arxiv.org/abs/2010.11929>".

    Args:
        hidden_size: width C of the tokens.
        mlp_dim: width of the feed-forward network's hidden layer.
        num_heads: number of attention heads.
        dropout_rate: fraction of attention weights and of outputs dropped in training. Defaults to 0.0.
        qkv_bias: whether the linears of q, k and v have a bias. Defaults to False.
        save_attn: whether both attentions keep their last matrix in ``att_mat``. Defaults to False.
        causal: whether self attention looks at earlier tokens only. Defaults to False.
        sequence_length: number of tokens, required where ``causal`` is True.
        with_cross_attention: whether the block attends to a context. Without it ``cross_attn`` is an identity, and
            ``norm_cross_attn`` a frozen norm that no output depends on. Defaults to False.
        use_flash_attention: accepted and checked; the fused kernel is used either way. Defaults to False.
        include_fc: whether self attention has an output projection, where ``use_proj_attn`` is None. Defaults to True.
        use_combined_linear: whether self attention computes q, k and v with one linear. Defaults to True.
        use_proj_attn: whether self and cross attention have an output projection. None (the default) leaves the choice
            to ``include_fc`` for self attention and means True for cross attention.
        norm_eps: what the layer norms add to the variance. Defaults to 1e-5.

    Raises:
        ValueError: if ``dropout_rate`` is outside of [0, 1], ``hidden_size`` is not divisible by ``num_heads``,
            ``sequence_length`` is missing, or ``use_flash_attention`` comes with ``save_attn``.
        TypeError: if ``use_proj_attn`` is neither a bool nor None.
    """

    works_on_slabs = True

    # a constant, so that TorchScript does not compile the cross attention of a block that has none
    __constants__ = ["with_cross_attention"]
    layout_role = "transformer block"

    def __init__(
        self,
        hidden_size: int,
        mlp_dim: int,
        num_heads: int,
        dropout_rate: float = 0.0,
        qkv_bias: bool = False,
        save_attn: bool = False,
        causal: bool = False,
        sequence_length: int | None = None,
        with_cross_attention: bool = False,
        use_flash_attention: bool = False,
        include_fc: bool = True,
        use_combined_linear: bool = True,
        use_proj_attn: bool | None = None,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_sizes(hidden_size, num_heads, dropout_rate)
        self.with_cross_attention = with_cross_attention
        self.mlp = MLPBlock(hidden_size, mlp_dim, dropout_rate)
        self.norm1 = nn.LayerNorm(hidden_size, eps=norm_eps)
        self.attn = SABlock(
            hidden_size,
            num_heads,
            dropout_rate,
            qkv_bias=qkv_bias,
            save_attn=save_attn,
            causal=causal,
            sequence_length=sequence_length,
            include_fc=include_fc,
            use_combined_linear=use_combined_linear,
            use_flash_attention=use_flash_attention,
            **projection_argument(use_proj_attn),
        )
        self.norm2 = nn.LayerNorm(hidden_size, eps=norm_eps)
        # without a cross attention it is not used: frozen, so that nobody waits for its gradient
        self.norm_cross_attn = nn.LayerNorm(hidden_size, eps=norm_eps).requires_grad_(with_cross_attention)
        self.cross_attn: CrossAttentionBlock | nn.Identity = nn.Identity()
        if with_cross_attention:
            kept: dict[str, Any] = {"save_attn": True} if save_attn else {}
            self.cross_attn = CrossAttentionBlock(
                hidden_size=hidden_size,
                num_heads=num_heads,
                dropout_rate=dropout_rate,
                qkv_bias=qkv_bias,
                causal=False,
                use_flash_attention=use_flash_attention,
                **kept,
                **projection_argument(use_proj_attn),
            )

    def idle_keys(self) -> list[str]:
        """Keys of parameters that no output depends on: a checkpoint may lack them."""
        norm = isinstance(self.norm_cross_attn, nn.LayerNorm) and not self.with_cross_attention
        return ["norm_cross_attn.weight", "norm_cross_attn.bias"] if norm else []

    def forward(
        self,
        x: torch.Tensor,
        context: Optional[torch.Tensor] = None,
        attn_mask: Optional[torch.Tensor] = None,
        context_mask: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """
        Args:
            x: tokens, (B, N, C).
            context: tokens that cross attention attends to, (B, K, C); by default ``x`` itself.
            attn_mask: mask of self attention, see :class:`SABlock`.
            context_mask: mask of cross attention over the context, see :class:`CrossAttentionBlock`.

        Returns:
            (B, N, C)
        """
        x = x + self.attn(self.norm1(x), attn_mask=attn_mask)
        if self.with_cross_attention:
            normed = self.norm_cross_attn(x)
            if context_mask is None:  # another module in its place may take no mask
                x = x + self.cross_attn(normed, context=context)
            else:
                x = x + self.cross_attn(normed, context=context, attn_mask=context_mask)
        out: torch.Tensor = x + self.mlp(self.norm2(x))
        return out
