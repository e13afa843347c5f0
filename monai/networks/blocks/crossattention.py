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

"""Attention of a sequence of tokens to a context."""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn as nn

from monai.networks.blocks.attention.block import AttentionBlock
from monai.networks.blocks.attention.options import AttentionOptions
from monai.networks.layers.utils import get_rel_pos_embedding_layer

__all__ = ["CrossAttentionBlock"]


class CrossAttentionBlock(AttentionBlock):
    """
    Attention of a sequence of tokens to a context, as in "Vaswani et al., Attention Is All You Need
    <https://arxiv.org/abs/1706.03762>"; without a context it is self attention.

    Args:
        hidden_size: width of the attention when ``dim_head`` is not given.
        num_heads: number of attention heads.
        dropout_rate: fraction of the attention weights, and of the outputs, dropped in training. Defaults to 0.0.
        hidden_input_size: width C of the input and output. Defaults to ``hidden_size``.
        context_input_size: width of the context. Defaults to ``hidden_size``.
        dim_head: width of one head. Defaults to ``hidden_size // num_heads``.
        qkv_bias: whether the linears of q, k and v have a bias. Defaults to False.
        save_attn: whether to keep the attention matrix of the last call in ``att_mat``. Defaults to False.
        causal: whether query i attends to context tokens 0 to i only. Defaults to False.
        sequence_length: number of tokens, required where ``causal`` is True. Longer inputs work too.
        rel_pos_embedding: ``"decomposed"`` adds relative positions per axis (see https://arxiv.org/abs/2112.01526);
            ``("decomposed", {"s_context_dims": (H, W)})`` also gives the grid of the context tokens. Or a module, such
            as a :class:`~monai.networks.blocks.attention.positions.Positions`.
        input_size: spatial size of the queries' grid, 2-D or 3-D, required by ``rel_pos_embedding``.
        attention_dtype: type in which q, k and v meet; the result is cast back.
        use_flash_attention: accepted and checked; the fused kernel is used either way. Defaults to False.
        use_proj_attn: whether an output projection follows; None (the default) means True.

    Raises:
        ValueError: if ``dropout_rate`` is outside of [0, 1], ``hidden_size`` is not divisible by ``num_heads`` and
            ``dim_head`` is not given, ``sequence_length`` is missing for causal attention, ``use_flash_attention``
            comes with ``save_attn`` or ``rel_pos_embedding``, or a width does not fit without a projection.
        TypeError: if ``use_proj_attn`` is neither a bool nor None.
    """

    attention_kind = "cross"
    layout_role = "cross attention"

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        dropout_rate: float = 0.0,
        hidden_input_size: int | None = None,
        context_input_size: int | None = None,
        dim_head: int | None = None,
        qkv_bias: bool = False,
        save_attn: bool = False,
        causal: bool = False,
        sequence_length: int | None = None,
        rel_pos_embedding: str | tuple | nn.Module | None = None,
        input_size: tuple | None = None,
        attention_dtype: torch.dtype | None = None,
        use_flash_attention: bool = False,
        use_proj_attn: bool | None = None,
    ) -> None:
        options = AttentionOptions(
            dropout_rate=dropout_rate,
            qkv_bias=qkv_bias,
            save_attn=save_attn,
            use_flash_attention=use_flash_attention,
            use_proj_attn=use_proj_attn,
            attention_dtype=attention_dtype,
        )
        super().__init__(
            hidden_size=hidden_size,
            num_heads=num_heads,
            options=options,
            dim_head=dim_head,
            hidden_input_size=hidden_input_size,
            causal=causal,
            sequence_length=sequence_length,
            rel_pos_embedding=rel_pos_embedding,
            input_size=input_size,
        )
        self.context_input_size = context_input_size if context_input_size else hidden_size
        self.to_q = nn.Linear(self.hidden_input_size, self.inner_dim, bias=qkv_bias)
        self.to_k = nn.Linear(self.context_input_size, self.inner_dim, bias=qkv_bias)
        self.to_v = nn.Linear(self.context_input_size, self.inner_dim, bias=qkv_bias)
        rel_pos = None
        if isinstance(rel_pos_embedding, nn.Module):
            rel_pos = rel_pos_embedding
        elif rel_pos_embedding is not None:
            rel_pos = get_rel_pos_embedding_layer(rel_pos_embedding, input_size, self.head_dim, num_heads)
        self._make_parts(False, rel_pos)

    def forward(
        self, x: torch.Tensor, context: Optional[torch.Tensor] = None, attn_mask: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        """
        Args:
            x: tokens, (B, Q, C).
            context: tokens to attend to, (B, K, context_input_size). Defaults to ``x``.
            attn_mask: nonzero where a context token may be attended to: (B, K), (B, Q, K) or (B, 1 or heads, Q, K).
                A token that may attend to nothing gets zeros from the attention.

        Returns:
            (B, Q, C)

        Raises:
            ValueError: if the mask has another shape or floating values other than 0 and 1, or comes with causal
                attention.
        """
        q, k, v = self.project(x, context)
        return self.attend(x, q, k, v, attn_mask)

    def project(
        self, x: torch.Tensor, context: Optional[torch.Tensor] = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Queries of the tokens ``x``, (B, Q, C), keys and values of the ``context``, (B, K, context_input_size), or of
        ``x`` without one: (B, heads, Q, D) and twice (B, heads, K, D).
        """
        q = self.input_rearrange(self.to_q(x))
        k, v = self.project_context(x if context is None else context)
        return q, k, v

    def project_context(self, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a context, (B, K, context_input_size): each (B, heads, K, D)."""
        return self.input_rearrange(self.to_k(context)), self.input_rearrange(self.to_v(context))
