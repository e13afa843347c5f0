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

"""
The limit of a network: its linears, its norms and a bare ``scaled_dot_product_attention`` of the same shapes, as plain
calls of ``torch.nn.functional`` on the same weights.

What is left out is everything that a block does around them: module calls, checks of masks and shapes, relative
positions. Whether a limit computes the same as its network is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

__all__ = ["LIMITS", "bare_decoding", "limit_of"]

Tensor = torch.Tensor


def limit_of(net: nn.Module) -> Callable[..., Tensor] | None:
    """The limit of a network, called as the network is; None where there is none."""
    make = LIMITS.get(type(net).__name__)
    return make(net) if make else None


def self_attention(net: Any) -> Callable[[Tensor], Tensor]:
    """SABlock."""
    heads, width, scale, causal = net.num_heads, net.head_dim, net.scale, net.causal
    out = _linear(net.out_proj)

    if net.use_combined_linear:
        qkv = _linear(net.qkv)

        def call(x: Tensor) -> Tensor:
            batch, tokens, _ = x.shape
            q, k, v = F.linear(x, *qkv).view(batch, tokens, 3, heads, width).permute(2, 0, 3, 1, 4).unbind(0)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
            return _project(y.transpose(1, 2).reshape(batch, tokens, heads * width), out)

        return call

    to_q, to_k, to_v = _linear(net.to_q), _linear(net.to_k), _linear(net.to_v)

    def separate(x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q = F.linear(x, *to_q).view(batch, tokens, heads, width).transpose(1, 2)
        k = F.linear(x, *to_k).view(batch, tokens, heads, width).transpose(1, 2)
        v = F.linear(x, *to_v).view(batch, tokens, heads, width).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
        return _project(y.transpose(1, 2).reshape(batch, tokens, heads * width), out)

    return separate


def cross_attention(net: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """CrossAttentionBlock."""
    heads, width, scale = net.num_heads, net.head_dim, net.scale
    to_q, to_k, to_v, out = _linear(net.to_q), _linear(net.to_k), _linear(net.to_v), _linear(net.out_proj)

    def call(x: Tensor, context: Tensor) -> Tensor:
        batch, tokens, keys = x.shape[0], x.shape[1], context.shape[1]
        q = F.linear(x, *to_q).view(batch, tokens, heads, width).transpose(1, 2)
        k = F.linear(context, *to_k).view(batch, keys, heads, width).transpose(1, 2)
        v = F.linear(context, *to_v).view(batch, keys, heads, width).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, scale=scale)
        return _project(y.transpose(1, 2).reshape(batch, tokens, heads * width), out)

    return call


def spatial_attention(net: Any) -> Callable[[Tensor], Tensor]:
    """SpatialAttentionBlock."""
    attend, norm = self_attention(net.attn), net.norm

    def call(x: Tensor) -> Tensor:
        tokens = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps).flatten(2).transpose(1, 2)
        return attend(tokens).transpose(1, 2).reshape(x.shape) + x

    return call


def transformer_block(net: Any) -> Callable[[Tensor], Tensor]:
    """TransformerBlock without cross attention."""
    attend, feed_forward = self_attention(net.attn), _feed_forward(net.mlp)
    norm1, norm2 = _layer_norm(net.norm1), _layer_norm(net.norm2)

    def call(x: Tensor) -> Tensor:
        x = x + attend(F.layer_norm(x, *norm1))
        return x + feed_forward(F.layer_norm(x, *norm2))

    return call


def vit(net: Any) -> Callable[[Tensor], Tensor]:
    """ViT without classification, whose patches are projected by a convolution: its tokens."""
    conv, positions = net.patch_embedding.patch_embeddings, net.patch_embedding.position_embeddings
    blocks, norm = [transformer_block(block) for block in net.blocks], _layer_norm(net.norm)

    def call(x: Tensor) -> Tensor:
        x = torch.conv3d(x, conv.weight, conv.bias, conv.stride).flatten(2).transpose(1, 2) + positions
        for block in blocks:
            x = block(x)
        return F.layer_norm(x, *norm)

    return call


def bare_decoding(
    net: Any, begin: Tensor, steps: int, context: Tensor | None = None, draw: bool = False
) -> Callable[[], Tensor]:
    """
    Decoding, one token a step, of a DecoderOnlyTransformer.

    Args:
        net: the network.
        begin: first tokens, (B, 1).
        steps: number of tokens to decode.
        context: vectors that cross attention attends to, (B, K, C).
        draw: whether tokens are drawn by their probabilities; otherwise the likeliest one is taken.

    Returns:
        a function without arguments that returns the tokens, (B, steps)
    """
    embedding, positions = net.token_embeddings.weight, net.position_embeddings.embedding.weight
    blocks, logits = [_CachedBlock(block, len(begin), steps) for block in net.blocks], _linear(net.to_logits)

    def call() -> Tensor:
        token, tokens = begin, begin.new_empty(len(begin), steps)
        for block in blocks:
            block.project_context(context)
        for step in range(steps):
            x = F.embedding(token, embedding) + positions[step]
            for block in blocks:
                x = block.step(x, step)
            scores = F.linear(x, *logits)
            token = torch.multinomial(F.softmax(scores[:, 0], -1), 1) if draw else scores.argmax(-1)
            tokens[:, step] = token[:, 0]
        return tokens

    return call


class _CachedBlock:
    """A TransformerBlock that is given one token at a time."""

    def __init__(self, net: Any, batch: int, steps: int) -> None:
        attn = net.attn
        self.heads, self.width, self.scale = attn.num_heads, attn.head_dim, attn.scale
        self.batch, self.inner = batch, attn.inner_dim
        self.keys, self.values = (attn.to_q.weight.new_zeros(batch, self.heads, steps, self.width) for _ in range(2))
        self.norm1, self.norm2 = _layer_norm(net.norm1), _layer_norm(net.norm2)
        self.to_q, self.to_k, self.to_v = _linear(attn.to_q), _linear(attn.to_k), _linear(attn.to_v)
        self.out, self.feed_forward = _linear(attn.out_proj), _feed_forward(net.mlp)
        self.cross = net.cross_attn if net.with_cross_attention else None
        if self.cross is not None:
            self.norm_cross = _layer_norm(net.norm_cross_attn)
            self.cross_q, self.cross_k = _linear(self.cross.to_q), _linear(self.cross.to_k)
            self.cross_v, self.cross_out = _linear(self.cross.to_v), _linear(self.cross.out_proj)

    def project_context(self, context: Tensor | None) -> None:
        if context is not None:
            shape = (self.batch, context.shape[1], self.heads, self.width)
            self.context_keys = F.linear(context, *self.cross_k).view(shape).transpose(1, 2)
            self.context_values = F.linear(context, *self.cross_v).view(shape).transpose(1, 2)

    def step(self, x: Tensor, step: int) -> Tensor:
        y = F.layer_norm(x, *self.norm1)
        q = F.linear(y, *self.to_q).view(self.batch, self.heads, 1, self.width)
        self.keys[:, :, step] = F.linear(y, *self.to_k).view(self.batch, self.heads, self.width)
        self.values[:, :, step] = F.linear(y, *self.to_v).view(self.batch, self.heads, self.width)
        keys, values = self.keys[:, :, : step + 1], self.values[:, :, : step + 1]
        x = x + self._join(F.scaled_dot_product_attention(q, keys, values, scale=self.scale), self.out)
        if self.cross is not None:
            q = F.linear(F.layer_norm(x, *self.norm_cross), *self.cross_q).view(self.batch, self.heads, 1, self.width)
            y = F.scaled_dot_product_attention(q, self.context_keys, self.context_values, scale=self.scale)
            x = x + self._join(y, self.cross_out)
        return x + self.feed_forward(F.layer_norm(x, *self.norm2))

    def _join(self, y: Tensor, out: tuple[Tensor, ...]) -> Tensor:
        return _project(y.view(self.batch, 1, self.inner), out)


def _feed_forward(mlp: Any) -> Callable[[Tensor], Tensor]:
    linear1, linear2 = _linear(mlp.linear1), _linear(mlp.linear2)
    return lambda x: F.linear(F.gelu(F.linear(x, *linear1)), *linear2)


def _linear(linear: Any) -> tuple[Tensor, ...]:
    """Weight and bias, as F.linear takes them; nothing for an identity."""
    return (linear.weight, linear.bias) if isinstance(linear, nn.Linear) else ()


def _layer_norm(norm: Any) -> tuple[Any, ...]:
    """Shape, weight, bias and epsilon, as F.layer_norm takes them."""
    return (norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _project(x: Tensor, out: tuple[Tensor, ...]) -> Tensor:
    return F.linear(x, *out) if out else x


LIMITS: Mapping[str, Callable[[Any], Callable[..., Tensor]]] = {
    "SABlock": self_attention,
    "CrossAttentionBlock": cross_attention,
    "SpatialAttentionBlock": spatial_attention,
    "TransformerBlock": transformer_block,
    "ViT": vit,
}
