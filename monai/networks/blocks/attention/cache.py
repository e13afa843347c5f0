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

"""Decoding step by step: keys and values of earlier tokens, and a transformer block that computes on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

import torch
import torch.nn as nn
import torch.nn.functional as F

from monai.networks.blocks.attention.block import JoinHeads, SplitHeads, SplitQueriesKeysValues, runs_own_forward
from monai.networks.blocks.attention.positions import Positions
from monai.networks.blocks.crossattention import CrossAttentionBlock
from monai.networks.blocks.mlp import MLPBlock
from monai.networks.blocks.selfattention import SABlock
from monai.networks.blocks.transformerblock import TransformerBlock
from monai.networks.state_dict.torch_private import is_watched

__all__ = ["CachedTransformerBlock", "KeyValueCache", "why_not_cached"]


def why_not_cached(block: Any) -> str | None:
    """
    Tell why a transformer block cannot decode on a cache, None where it can.

    A cached step reads the weights of the block's layers without calling them, so they have to be torch's own, and
    nobody may watch them by hooks.
    """
    if not isinstance(block, TransformerBlock) or not isinstance(block.attn, SABlock):
        return f"{type(block).__name__} is no TransformerBlock with an SABlock"
    attn = block.attn
    if not attn.causal or attn.save_attn or not _place_one_by_one(attn.rel_positional_embedding):
        return (
            "its self attention has to be causal, without relative positions, and not to save its matrix: it has "
            f"causal={attn.causal}, save_attn={attn.save_attn}, "
            f"rel_pos_embedding={'None' if attn.rel_positional_embedding is None else 'given'}"
        )
    return _whose_forward(block) or _what_was_replaced(block) or _what_is_watched(block)


def _place_one_by_one(positions: Any) -> bool:
    """Whether there are no positions, or those that a decoder may ask to place one token after another."""
    return positions is None or (isinstance(positions, Positions) and positions.token_by_token)


def _whose_forward(block: TransformerBlock) -> str | None:
    """A forward that a subclass or the user wrote, which a cached step would pass by."""
    if type(block).forward is not TransformerBlock.forward:
        return f"{type(block).__name__} has a forward of its own"
    attentions = [block.attn, block.cross_attn] if block.with_cross_attention else [block.attn]
    for attention in attentions:
        if not isinstance(attention, (SABlock, CrossAttentionBlock)) or not runs_own_forward(attention):
            return f"its attention {type(attention).__name__} has a forward of its own"
    return None


def _what_was_replaced(block: TransformerBlock) -> str | None:
    attn = block.attn
    plain: dict[str, type] = {"norm1": nn.LayerNorm, "norm2": nn.LayerNorm, "mlp": MLPBlock, "mlp.fn": nn.GELU}
    linears = ["attn.qkv"] if attn.use_combined_linear else ["attn.to_q", "attn.to_k", "attn.to_v"]
    linears += ["attn.out_proj"] if _projects(attn) else []
    plain.update(dict.fromkeys(linears + ["mlp.linear1", "mlp.linear2"], nn.Linear))
    plain["attn.input_rearrange"] = SplitQueriesKeysValues if attn.use_combined_linear else SplitHeads
    plain["attn.out_rearrange"] = JoinHeads
    for name, kind in plain.items():
        layer = block.get_submodule(name)
        if type(layer) is not kind:
            return f"its {name} is {type(layer).__name__}, not {kind.__name__}: merge what replaced it back into it"
    for name in ("attn.drop_weights", "attn.drop_output", "mlp.drop1", "mlp.drop2"):
        layer = block.get_submodule(name)
        if type(layer) not in (nn.Dropout, nn.Identity):
            return f"its {name} is {type(layer).__name__}, not Dropout: it may do something in evaluation"
    return None


def _what_is_watched(block: TransformerBlock) -> str | None:
    for name, layer in block.named_modules():
        if name.startswith(("cross_attn.", "norm_cross_attn")):  # these are called
            continue
        if is_watched(layer):
            return f"its {name or 'forward'} has hooks or a replaced forward, which a cached step would not call"
    return None


def _projects(attn: SABlock) -> bool:
    return attn.include_fc and type(attn.out_proj) is not nn.Identity


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
        empty = torch.zeros(2, batch_size, num_heads, max_length, head_dim, dtype=dtype, device=device)
        self.keys_values: torch.Tensor
        self.register_buffer("keys_values", empty, persistent=False)

    def write(self, keys_values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """
        Keep keys and values.

        Args:
            keys_values: of some tokens, one after the other, (2, B, heads, N, D).
            positions: of these tokens, (N,).

        Returns:
            those of all positions, (2, B, heads, S, D)
        """
        cache = self.keys_values
        if keys_values.dtype != cache.dtype:
            keys_values = keys_values.to(cache.dtype)
        return cache.index_copy_(3, positions, keys_values)


def _weight_and_bias(*layers: Any) -> tuple[Any, Any]:
    """
    Weight and bias of a layer, in its own memory, or of several linears as one; None for what is not there.
    """
    weights = [layer.weight.detach() for layer in layers]
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    return _joined(weights), _joined(biases)


def _joined(parts: list[torch.Tensor]) -> torch.Tensor | None:
    if not parts:
        return None
    return torch.cat(parts) if len(parts) > 1 else parts[0]


class CachedTransformerBlock(nn.Module):
    """
    A transformer block that is given a sequence piece by piece: it attends to the earlier pieces through their keys and
    values, and to a context whose keys and values are computed once. It computes as in evaluation, without gradient.

    A step of one token costs little next to the calls of modules in Python: it reads the weights and calls none.

    Args:
        block: the block, whose self attention is causal.
        batch_size: B, number of sequences.
        max_length: number of tokens of the longest sequence.

    Raises:
        ValueError: if the block cannot decode on a cache, see :func:`why_not_cached`.
    """

    __constants__ = ["places_tokens", "with_cross_attention"]

    def __init__(self, block: TransformerBlock, batch_size: int, max_length: int) -> None:
        super().__init__()
        reason = why_not_cached(block)
        if reason is not None:
            raise ValueError(f"this transformer block cannot decode on a cache: {reason}.")
        attn: SABlock = block.attn
        self.with_cross_attention = block.with_cross_attention
        self.num_heads, self.head_dim, self.inner_dim = attn.num_heads, attn.head_dim, attn.inner_dim
        self.scale = attn.scale
        self.positions: Any = attn.rel_positional_embedding
        self.places_tokens = self.positions is not None
        self.norm_cross_attn = block.norm_cross_attn
        self.cross_attn: Any = block.cross_attn

        self.eps1, self.eps2 = block.norm1.eps, block.norm2.eps
        self.norm1, self.norm2 = _weight_and_bias(block.norm1), _weight_and_bias(block.norm2)
        qkv: list[Any] = [attn.qkv] if attn.use_combined_linear else [attn.to_q, attn.to_k, attn.to_v]
        self.qkv = _weight_and_bias(*qkv)
        self.out = _weight_and_bias(*([attn.out_proj] if _projects(attn) else []))
        self.linear1, self.linear2 = _weight_and_bias(block.mlp.linear1), _weight_and_bias(block.mlp.linear2)
        self.hidden_shape = list(block.norm1.normalized_shape)

        weight = self.qkv[0]
        dtype = weight.dtype if attn.attention_dtype is None else attn.attention_dtype
        self.cache = KeyValueCache(
            batch_size, attn.num_heads, max_length, attn.head_dim, dtype=dtype, device=weight.device
        )
        self.context_keys = torch.empty(0)
        self.context_values = torch.empty(0)
        self.context_mask: Optional[torch.Tensor] = None

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> CachedTransformerBlock:
        """What moves a module to another device or type moves what it holds without registering it, too."""
        super()._apply(fn, recurse)
        for name in ("norm1", "norm2", "qkv", "out", "linear1", "linear2"):
            setattr(self, name, tuple(None if tensor is None else fn(tensor) for tensor in getattr(self, name)))
        self.context_keys, self.context_values = fn(self.context_keys), fn(self.context_values)
        if self.context_mask is not None:
            self.context_mask = fn(self.context_mask)
        return self

    def forward(self, x: torch.Tensor, positions: torch.Tensor, start: int) -> torch.Tensor:
        """
        Args:
            x: the next tokens, (B, N, C).
            positions: of these tokens, (N,).
            start: position of the first one, or -1 if it is in ``positions`` alone.

        Returns:
            (B, N, C)
        """
        y = F.layer_norm(x, self.hidden_shape, self.norm1[0], self.norm1[1], self.eps1)
        x = x + self._attend(y, positions, start)
        if self.with_cross_attention:
            x = x + self._attend_to_context(self.norm_cross_attn(x))
        y = F.layer_norm(x, self.hidden_shape, self.norm2[0], self.norm2[1], self.eps2)
        y = F.gelu(F.linear(y, self.linear1[0], self.linear1[1]))
        return x + F.linear(y, self.linear2[0], self.linear2[1])

    def _attend(self, x: torch.Tensor, positions: torch.Tensor, start: int) -> torch.Tensor:
        batch, tokens, _ = x.shape
        qkv = F.linear(x, self.qkv[0], self.qkv[1]).view(batch, tokens, 3, self.num_heads, self.head_dim)
        qkv = qkv.permute(2, 0, 3, 1, 4)  # views by methods: indexing takes Python twice as long
        if self.places_tokens:
            placed = self.positions.embed(qkv.select(0, 0), qkv.select(0, 1), positions)
            qkv = torch.stack([placed[0], placed[1], qkv.select(0, 2)])
        cache = self.cache.write(qkv.narrow(0, 1, 2), positions)
        mask: Optional[torch.Tensor] = None
        if start >= 0:
            cache = cache.narrow(3, 0, start + tokens)
        if start < 0 or (start > 0 and tokens > 1):
            mask = torch.arange(cache.shape[3], device=x.device) <= positions[:, None]
        q, (keys, values) = qkv.select(0, 0), cache.unbind(0)
        dtype = q.dtype
        if dtype != keys.dtype:
            q = q.to(keys.dtype)
        out = F.scaled_dot_product_attention(
            q, keys, values, attn_mask=mask, is_causal=start == 0 and tokens > 1, scale=self.scale
        )
        out = out.transpose(1, 2).reshape(batch, tokens, self.inner_dim)
        if dtype != out.dtype:
            out = out.to(dtype)
        weight, bias = self.out
        return out if weight is None else F.linear(out, weight, bias)

    def _attend_to_context(self, x: torch.Tensor) -> torch.Tensor:
        attn = self.cross_attn
        q = attn.input_rearrange(attn.to_q(x))
        out: torch.Tensor = attn.attend(x, q, self.context_keys, self.context_values, self.context_mask)
        return out

    def set_context(self, context: torch.Tensor, context_mask: Optional[torch.Tensor] = None) -> None:
        """
        Compute the keys and values of a context.

        Args:
            context: vectors to attend to, (B, K, C).
            context_mask: nonzero where a vector may be attended to, (B, K).
        """
        attn: CrossAttentionBlock = self.cross_attn
        self.context_keys, self.context_values = attn.project_context(context)
        self.context_mask = context_mask
