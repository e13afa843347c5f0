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

from typing import Any, Optional

import torch
import torch.nn as nn
import torch.nn.functional as F

from monai.networks.blocks.selfattention import SABlock
from monai.networks.blocks.transformerblock import TransformerBlock

__all__ = ["CachedTransformerBlock", "KeyValueCache"]


class KeyValueCache(nn.Module):
    """
    Keys and values of the tokens that an attention block has seen, in memory that is allocated once.

    Args:
        batch_size: B, number of sequences.
        num_heads: number of attention heads.
        max_length: S, number of tokens of the longest sequence.
        head_dim: D, width of one head.
        dtype: type of the keys and values.
        device: where they lie.
    """

    def __init__(
        self,
        batch_size: int,
        num_heads: int,
        max_length: int,
        head_dim: int,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.max_length = max_length
        self.keys: torch.Tensor
        self.values: torch.Tensor
        for name in ("keys", "values"):
            empty = torch.zeros(batch_size, num_heads, max_length, head_dim, dtype=dtype, device=device)
            self.register_buffer(name, empty, persistent=False)

    def write(self, k: torch.Tensor, v: torch.Tensor, positions: torch.Tensor) -> None:
        """
        Keep keys and values, without their gradients.

        Args:
            k: keys, (B, heads, N, D).
            v: values, likewise.
            positions: of their tokens, (N,).
        """
        self.keys.index_copy_(2, positions, k.detach().to(self.keys.dtype))
        self.values.index_copy_(2, positions, v.detach().to(self.values.dtype))


class CachedTransformerBlock(nn.Module):
    """
    A transformer block that is given a sequence piece by piece: it attends to the earlier pieces through their keys and
    values, and to a context whose keys and values are computed once.

    Args:
        block: the block, whose self attention is causal.
        batch_size: B, number of sequences.
        max_length: number of tokens of the longest sequence.

    Raises:
        ValueError: if the block's attention is not causal, keeps its matrix or has relative positions.
    """

    __constants__ = ["with_cross_attention"]

    def __init__(self, block: TransformerBlock, batch_size: int, max_length: int) -> None:
        super().__init__()
        attn: SABlock = block.attn
        if not attn.causal or attn.save_attn or attn.rel_positional_embedding is not None:
            raise ValueError(
                "a cache serves causal attention without relative positions whose matrix is not saved: this block has "
                f"causal={attn.causal}, save_attn={attn.save_attn}, "
                f"rel_pos_embedding={'None' if attn.rel_positional_embedding is None else 'given'}."
            )
        self.with_cross_attention = block.with_cross_attention
        self.norm1, self.norm2, self.mlp, self.attn = block.norm1, block.norm2, block.mlp, attn
        self.norm_cross_attn = block.norm_cross_attn
        self.cross_attn: Any = block.cross_attn
        weight = next(attn.parameters())
        dtype = weight.dtype if attn.attention_dtype is None else attn.attention_dtype
        self.cache = KeyValueCache(
            batch_size, attn.num_heads, max_length, attn.head_dim, dtype=dtype, device=weight.device
        )
        self.context_keys = torch.empty(0)
        self.context_values = torch.empty(0)
        self.context_mask: Optional[torch.Tensor] = None

    def forward(self, x: torch.Tensor, positions: torch.Tensor, start: int) -> torch.Tensor:
        """
        Args:
            x: the next tokens, (B, N, C).
            positions: of these tokens, (N,).
            start: position of the first one, or -1 if it is in ``positions`` alone.

        Returns:
            (B, N, C)
        """
        x = x + self._attend(self.norm1(x), positions, start)
        if self.with_cross_attention:
            x = x + self._attend_to_context(self.norm_cross_attn(x))
        return x + self.mlp(self.norm2(x))

    def _attend(self, x: torch.Tensor, positions: torch.Tensor, start: int) -> torch.Tensor:
        q, k, v = self.attn.project(x)
        self.cache.write(k, v, positions)
        keys, values, dtype = self.cache.keys, self.cache.values, v.dtype
        q = q.to(keys.dtype)
        mask: Optional[torch.Tensor] = None
        if start >= 0:
            end = start + x.shape[1]
            keys, values = keys[:, :, :end], values[:, :, :end]
        if start < 0 or (start > 0 and x.shape[1] > 1):
            mask = torch.arange(keys.shape[2], device=x.device) <= positions[:, None]
        out = F.scaled_dot_product_attention(
            q, keys, values, attn_mask=mask, is_causal=start == 0 and x.shape[1] > 1, scale=self.attn.scale
        )
        return self.attn.join_heads(out.to(dtype))

    def _attend_to_context(self, x: torch.Tensor) -> torch.Tensor:
        attn = self.cross_attn
        q = attn.split_heads(attn.to_q(x))
        return attn.attend(x, q, self.context_keys, self.context_values, self.context_mask)

    def set_context(self, context: torch.Tensor, context_mask: Optional[torch.Tensor] = None) -> None:
        """
        Compute the keys and values of a context.

        Args:
            context: vectors to attend to, (B, K, C).
            context_mask: nonzero where a vector may be attended to, (B, K).
        """
        attn = self.cross_attn
        self.context_keys, self.context_values = attn.project_context(context)
        self.context_mask = context_mask
