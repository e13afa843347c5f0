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

"""The core that the attention blocks share."""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn as nn
import torch.nn.functional as F

from monai.networks.blocks.attention.kernels import (
    attention_weights,
    fused_attention,
    fused_attention_with_bias,
    runs_now,
)
from monai.networks.blocks.attention.mask import lower_triangle, resolve_mask
from monai.networks.blocks.attention.options import check_sizes
from monai.networks.blocks.attention.positions import DecomposedRelativePosEmbedding, sum_over_axes
from monai.networks.layers.utils import get_rel_pos_embedding_layer
from monai.networks.state_dict.hooks import SafeLoading

__all__ = ["AttentionBlock"]


class AttentionBlock(SafeLoading):
    """
    The core that the public attention blocks share: what they check, register and compute after their own linears.

    Scaled dot-product attention with several heads, see "Vaswani et al., Attention Is All You Need
    <https://arxiv.org/abs/1706.03762>". The fused kernel does the work unless the attention matrix itself is asked for.

    The arguments are those of :class:`~monai.networks.blocks.selfattention.SABlock`, with ``use_proj_attn`` decided. A
    subclass makes the linears of q, k and v (``project``), and hands their results to :meth:`attend`.

    Raises:
        ValueError: if an argument is out of range, if two arguments exclude each other, or if the width of the
            attention differs from the width of its input and there is no projection between them.
    """

    __constants__ = ["fused_rel_pos"]
    attention_kind = "self"
    """What a block attends to, its own tokens ("self") or a context ("cross"). Blocks of a kind are built alike."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        dropout_rate: float,
        save_attn: bool,
        dim_head: int | None,
        hidden_input_size: int | None,
        causal: bool,
        sequence_length: int | None,
        rel_pos_embedding: str | None,
        input_size: tuple | None,
        attention_dtype: torch.dtype | None,
        use_flash_attention: bool,
        use_proj_attn: bool,
    ) -> None:
        super().__init__()
        check_sizes(hidden_size, num_heads, dropout_rate, dim_head)
        if causal and sequence_length is None:
            raise ValueError("causal attention needs sequence_length, the number of tokens it is built for.")
        if use_flash_attention and save_attn:
            raise ValueError(
                "save_attn=True needs the attention matrix, which use_flash_attention=True never builds: drop one."
            )
        if use_flash_attention and rel_pos_embedding is not None:
            raise ValueError(
                f"rel_pos_embedding={rel_pos_embedding!r} excludes use_flash_attention=True; leave the flag out: "
                "the fused kernel is used all the same."
            )

        self.num_heads = num_heads
        self.head_dim = dim_head if dim_head else hidden_size // num_heads
        self.inner_dim = self.head_dim * num_heads
        self.hidden_input_size = hidden_input_size if hidden_input_size else hidden_size
        self.scale = self.head_dim**-0.5
        self.dropout_rate = dropout_rate
        self.save_attn = save_attn
        self.attention_dtype = attention_dtype
        self.causal = causal
        self.sequence_length = sequence_length
        self.input_size = input_size
        self.use_flash_attention = use_flash_attention
        self.use_proj_attn = use_proj_attn

        if not use_proj_attn and self.inner_dim != self.hidden_input_size:
            raise ValueError(
                f"without an output projection the attention's width, {self.inner_dim} in all heads, must equal its "
                f"input's width {self.hidden_input_size}: pass use_proj_attn=True or change dim_head."
            )
        self.out_proj: nn.Linear | nn.Identity
        self.out_proj = nn.Linear(self.inner_dim, self.hidden_input_size) if use_proj_attn else nn.Identity()
        self.drop_output = nn.Dropout(dropout_rate)
        self.drop_weights = nn.Dropout(dropout_rate)
        self.att_mat = torch.Tensor()

        # the fused kernel applies causality itself: only the explicit path reads a mask
        mask = torch.empty(1, 1, 0, 0, dtype=torch.bool)
        if causal and save_attn and sequence_length is not None:
            mask = lower_triangle(sequence_length, sequence_length)
        self.causal_mask: torch.Tensor
        self.register_buffer("causal_mask", mask, persistent=False)

        self.rel_positional_embedding = None
        if rel_pos_embedding is not None:
            self.rel_positional_embedding = get_rel_pos_embedding_layer(
                rel_pos_embedding, input_size, self.head_dim, num_heads
            )
        # an embedding of the user's own only knows how to change a matrix of logits
        self.fused_rel_pos = isinstance(self.rel_positional_embedding, DecomposedRelativePosEmbedding)

    def split_heads(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, heads x D) to (B, heads, N, D)."""
        return x.reshape(x.shape[0], x.shape[1], self.num_heads, self.head_dim).transpose(1, 2)

    def attend(
        self, x: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_mask: Optional[torch.Tensor]
    ) -> torch.Tensor:
        """
        Everything that follows the linears of q, k and v.

        Args:
            x: the block's input, (B, Q, C).
            q: queries, (B, heads, Q, D).
            k: keys, (B, heads, K, D).
            v: values, (B, heads, K, D).
            attn_mask: see :func:`~monai.networks.blocks.attention.kernels.resolve_mask`.

        Returns:
            (B, Q, C)

        Raises:
            ValueError: if the mask has a shape that does not fit, or comes with causal attention.
        """
        mask = self._resolve(attn_mask, q, k)
        dtype = v.dtype
        if self.attention_dtype is None:
            out = self._kernel(x, q, k, v, mask)
        else:
            q, k, v = q.to(self.attention_dtype), k.to(self.attention_dtype), v.to(self.attention_dtype)
            if torch.jit.is_scripting():
                out = self._kernel(x, q, k, v, mask)
            else:
                with torch.autocast(q.device.type, enabled=False):  # which would cast them down again
                    out = self._kernel(x, q, k, v, mask)
            out = out.to(dtype)
        return self.join_heads(out)

    def join_heads(self, out: torch.Tensor) -> torch.Tensor:
        """The attention's result, (B, heads, Q, D), to the block's output, (B, Q, C)."""
        out = out.transpose(1, 2).reshape(out.shape[0], out.shape[2], self.inner_dim)
        return self.drop_output(self.out_proj(out))

    def _kernel(
        self, x: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Optional[torch.Tensor]
    ) -> torch.Tensor:
        """The one place that chooses a path: explicit where the matrix is wanted, else fused."""
        if self.save_attn or (self.rel_positional_embedding is not None and not self.fused_rel_pos):
            return self._explicit(x, q, k, v, mask)
        dropout_p = float(self.drop_weights.p) if self.drop_weights.training else 0.0
        if self.fused_rel_pos:
            return self._fused_with_rel_pos(q, k, v, mask, dropout_p)
        return fused_attention(q, k, v, mask, self.causal, self.scale, dropout_p)

    def _fused_with_rel_pos(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Optional[torch.Tensor], dropout_p: float
    ) -> torch.Tensor:
        """
        The per-axis terms as a bias where a CPU infers. Else they ride along as channels of q that one-hot channels of
        k pick out: in one call of a kernel, with gradients.
        """
        rel_pos = self.rel_positional_embedding
        if rel_pos is None:  # for TorchScript, which has to see that it is there
            return fused_attention(q, k, v, mask, self.causal, self.scale, dropout_p)
        if runs_now() and q.is_cpu and dropout_p == 0.0 and not torch.is_grad_enabled():
            terms = rel_pos.axis_terms(q, k.shape[2])
            if len(terms) > 0:
                return fused_attention_with_bias(q, k, v, terms, mask, self.causal, self.scale)
        wide_q, wide_k = rel_pos.extend(q, k, self.scale)
        # the kernels want one width for q, k and v
        wide_v = F.pad(v, (0, wide_q.shape[-1] - v.shape[-1]))
        return fused_attention(wide_q, wide_k, wide_v, mask, self.causal, 1.0, dropout_p)[..., : v.shape[-1]]

    def _explicit(
        self, x: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Optional[torch.Tensor]
    ) -> torch.Tensor:
        """Attention through its matrix, for those who want to see it or add to it."""
        logits = torch.matmul(q * self.scale, k.transpose(-2, -1))
        if self.rel_positional_embedding is not None:
            logits = self.rel_positional_embedding(x, logits, q)
        if self.causal:
            mask = self._causal_mask(q.shape[2], k.shape[2], q.device)
        weights = attention_weights(logits, mask)
        if self.save_attn:
            self.att_mat = weights.detach()
        return torch.matmul(self.drop_weights(weights).to(v.dtype), v)

    def attention_rows(
        self,
        x: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        queries: torch.Tensor,
        attn_mask: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """
        The attention weights of some queries: rows of the matrix that ``save_attn=True`` keeps, without the others.

        Args:
            x: the block's input, (B, Q, C).
            q: queries, (B, heads, Q, D).
            k: keys, (B, heads, K, D).
            queries: numbers of the queries, (N,).
            attn_mask: see :func:`~monai.networks.blocks.attention.kernels.resolve_mask`.

        Returns:
            (B, heads, N, K). A position embedding of the user's own forms the whole matrix on the way.

        Raises:
            ValueError: if the mask has a shape that does not fit, or comes with causal attention.
        """
        mask = self._resolve(attn_mask, q, k)
        if self.attention_dtype is None:
            return self._rows(x, q, k, queries, mask)
        with torch.autocast(q.device.type, enabled=False):
            return self._rows(x, q.to(self.attention_dtype), k.to(self.attention_dtype), queries, mask)

    def _rows(
        self, x: torch.Tensor, q: torch.Tensor, k: torch.Tensor, queries: torch.Tensor, mask: Optional[torch.Tensor]
    ) -> torch.Tensor:
        rel_pos = self.rel_positional_embedding
        if rel_pos is not None and not self.fused_rel_pos:
            logits = rel_pos(x, torch.matmul(q * self.scale, k.transpose(-2, -1)), q)[:, :, queries]
        else:
            logits = torch.matmul(q[:, :, queries] * self.scale, k.transpose(-2, -1))
        if rel_pos is not None and self.fused_rel_pos:
            terms = rel_pos.axis_terms(q, k.shape[2])
            if len(terms) > 0:
                logits = logits + sum_over_axes([term[:, :, queries] for term in terms])
        if mask is not None and mask.shape[2] > 1:
            mask = mask[:, :, queries]
        if self.causal:
            mask = torch.arange(k.shape[2], device=q.device) <= queries[:, None]
        return attention_weights(logits, mask)

    def _resolve(self, attn_mask: Optional[torch.Tensor], q: torch.Tensor, k: torch.Tensor) -> Optional[torch.Tensor]:
        if attn_mask is None:
            return None
        if self.causal:
            raise ValueError("Causal attention does not support attention masks.")
        return resolve_mask(attn_mask, q.shape[0], self.num_heads, q.shape[2], k.shape[2])

    def _causal_mask(self, queries: int, keys: int, device: torch.device) -> torch.Tensor:
        if queries <= self.causal_mask.shape[2] and keys <= self.causal_mask.shape[3]:
            return self.causal_mask[:, :, :queries, :keys]
        return lower_triangle(queries, keys, device=device)
