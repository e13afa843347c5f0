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

"""The transformer that predicts each token of a sequence from those before it, and its cached decoding."""

from __future__ import annotations

from typing import Any, Optional

import torch
import torch.nn as nn
import torch.nn.functional as F

from monai.networks.blocks.attention.cache import CachedTransformerBlock, why_not_cached
from monai.networks.blocks.attention.options import projection_argument
from monai.networks.blocks.transformerblock import TransformerBlock
from monai.networks.state_dict.hooks import OldCheckpoints
from monai.networks.state_dict.torch_private import is_watched

__all__ = ["CachedDecoder", "DecoderOnlyTransformer"]


class AbsolutePositionalEmbedding(nn.Module):
    """
    A learned vector for each position of a sequence.

    Args:
        max_seq_len: number of positions.
        embedding_dim: width C of the vectors.
    """

    def __init__(self, max_seq_len: int, embedding_dim: int) -> None:
        super().__init__()
        self.max_seq_len = max_seq_len
        self.embedding_dim = embedding_dim
        self.embedding = nn.Embedding(max_seq_len, embedding_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Any tensor (B, N) to the vectors of its positions, (B, N, C).

        Raises:
            ValueError: if there are more positions than vectors.
        """
        # a compiler would turn the check into a bound on a dynamic sequence length
        if torch.jit.is_scripting() or not torch.compiler.is_compiling():
            self._check_length(x.shape[1])
        out: torch.Tensor = self.embedding(torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1))
        return out

    def _check_length(self, length: int) -> None:
        if hasattr(self.embedding, "weight"):  # or else it is a module of the user's own, which knows how far it goes
            most = self.embedding.weight.shape[0]
            if length > most:
                raise ValueError(
                    f"The sequence has {length} tokens, more than there are position embeddings, max_seq_len={most}: "
                    "cut it, or build the network with a larger max_seq_len."
                )


class DecoderOnlyTransformer(OldCheckpoints):
    """
    Autoregressive transformer: predicts each token of a sequence from the ones before it and, on request, a context.

    Args:
        num_tokens: number of different tokens.
        max_seq_len: number of tokens of the longest sequence.
        attn_layers_dim: width of the tokens' vectors.
        attn_layers_depth: number of transformer blocks.
        attn_layers_heads: number of attention heads.
        with_cross_attention: whether the blocks attend to a context. Defaults to False.
        embedding_dropout_rate: fraction of the embedded tokens' elements dropped in training. Defaults to 0.0.
        include_fc: whether self attention has an output projection, where ``use_proj_attn`` is None. Defaults to True.
        use_combined_linear: whether one linear computes q, k and v of self attention. Defaults to False.
        use_flash_attention: accepted and checked; the fused kernel is used either way. Defaults to False.
        use_proj_attn: whether self and cross attention have an output projection. None (the default) leaves the choice
            to ``include_fc`` for self attention and means True for cross attention.

    Raises:
        ValueError: if ``attn_layers_dim`` is not divisible by ``attn_layers_heads``.
        TypeError: if ``use_proj_attn`` is neither a bool nor None.
    """

    def __init__(
        self,
        num_tokens: int,
        max_seq_len: int,
        attn_layers_dim: int,
        attn_layers_depth: int,
        attn_layers_heads: int,
        with_cross_attention: bool = False,
        embedding_dropout_rate: float = 0.0,
        include_fc: bool = True,
        use_combined_linear: bool = False,
        use_flash_attention: bool = False,
        use_proj_attn: bool | None = None,
    ) -> None:
        super().__init__()
        self.num_tokens, self.max_seq_len = num_tokens, max_seq_len
        self.attn_layers_depth, self.attn_layers_heads = attn_layers_depth, attn_layers_heads
        self.attn_layers_dim = attn_layers_dim
        self.with_cross_attention = with_cross_attention

        self.token_embeddings = nn.Embedding(num_tokens, attn_layers_dim)
        self.position_embeddings = AbsolutePositionalEmbedding(max_seq_len, attn_layers_dim)
        self.embedding_dropout = nn.Dropout(embedding_dropout_rate)
        self.blocks = nn.ModuleList(
            [
                TransformerBlock(
                    hidden_size=attn_layers_dim,
                    mlp_dim=attn_layers_dim * 4,
                    num_heads=attn_layers_heads,
                    dropout_rate=0.0,
                    qkv_bias=False,
                    causal=True,
                    sequence_length=max_seq_len,
                    with_cross_attention=with_cross_attention,
                    include_fc=include_fc,
                    use_combined_linear=use_combined_linear,
                    use_flash_attention=use_flash_attention,
                    **projection_argument(use_proj_attn),
                )
                for _ in range(attn_layers_depth)
            ]
        )
        self.to_logits = nn.Linear(attn_layers_dim, num_tokens)

    def forward(
        self, x: torch.Tensor, context: Optional[torch.Tensor] = None, context_mask: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        """
        Args:
            x: tokens, (B, N), integers below ``num_tokens``.
            context: vectors that cross attention attends to, (B, K, attn_layers_dim).
            context_mask: nonzero where a vector of the context may be attended to: (B, K), (B, N, K) or
                (B, 1 or heads, N, K).

        Returns:
            logits of the token that follows each token, (B, N, num_tokens)

        Raises:
            ValueError: if there are more tokens than position embeddings, or the mask has another shape.
        """
        x = self.embedding_dropout(self.token_embeddings(x) + self.position_embeddings(x))
        for block in self.blocks:
            if context_mask is None:  # a block of the user's own may take none
                x = block(x, context=context)
            else:
                x = block(x, context=context, context_mask=context_mask)
        out: torch.Tensor = self.to_logits(x)
        return out

    def cached(
        self, batch_size: int, context: Optional[torch.Tensor] = None, context_mask: Optional[torch.Tensor] = None
    ) -> CachedDecoder:
        """
        Make a decoder of this network that keeps the keys and values of the tokens it has seen.

        Args:
            batch_size: B, number of sequences.
            context: vectors that cross attention attends to, (B, K, attn_layers_dim); required by a network with cross
                attention.
            context_mask: nonzero where a vector of the context may be attended to, (B, K).

        Raises:
            ValueError: if the context is missing, has another batch size, or comes to a network that attends to none;
                or if a cached step would not compute what the network computes, see :meth:`why_not_cached`.
        """
        reason = self.why_not_cached()
        if reason is not None:
            raise ValueError(f"this network cannot decode on a cache: {reason}.")
        if (context is not None) != self.with_cross_attention:
            raise ValueError(
                "a decoder needs a context where the network has cross attention, and only there: got "
                f"context={'None' if context is None else list(context.shape)} for "
                f"with_cross_attention={self.with_cross_attention}."
            )
        decoder = CachedDecoder(self, batch_size)
        if context is not None:
            if context.shape[0] != batch_size:
                raise ValueError(f"the context has {context.shape[0]} sequences for a batch of {batch_size}.")
            for block in decoder.blocks:
                block.set_context(context, context_mask)  # type: ignore[operator]
        return decoder

    def why_not_cached(self) -> str | None:
        """
        Tell why the network cannot decode on a cache, None where it can.

        A cached step reads the weights of most layers without calling them, so nothing may have been put in their
        place, and nobody may watch them by hooks.
        """
        if type(self).forward is not DecoderOnlyTransformer.forward:
            return f"{type(self).__name__} has a forward of its own"
        plain: dict[str, tuple[type, ...]] = {
            "position_embeddings": (AbsolutePositionalEmbedding,),
            "position_embeddings.embedding": (nn.Embedding,),
            "embedding_dropout": (nn.Dropout, nn.Identity),
        }
        for name, kinds in plain.items():
            if type(self.get_submodule(name)) not in kinds:
                return f"its {name} is {type(self.get_submodule(name)).__name__}, not {kinds[0].__name__}"
        for name, layer in self.named_modules():
            if not name.startswith("blocks.") and is_watched(layer):
                return f"its {name or 'forward'} has hooks or a replaced forward, which a cached step would not call"
        reasons = (why_not_cached(block) for block in self.blocks)
        return next((reason for reason in reasons if reason is not None), None)


class CachedDecoder(nn.Module):
    """
    Decodes sequences step by step on the keys and values of the earlier tokens: each step costs one token.

    It computes as the network does in evaluation, without gradient, with the weights that the network has when the
    decoder is made. Several decoders may use one network. It scripts, and compiles to one graph for all steps of a
    length; both after the context was set.

    Args:
        net: the network, see :meth:`DecoderOnlyTransformer.cached`.
        batch_size: B, number of sequences.

    Example::

        decoder = net.cached(batch_size=2)
        logits = decoder(prefix)[:, -1]            # the prefix in one pass
        logits = decoder(logits.argmax(-1, keepdim=True))[:, -1]
    """

    __constants__ = ["with_cross_attention"]
    hides_attention = (
        "decodes on cached keys and values and never calls its attention blocks: capture the DecoderOnlyTransformer "
        "that it was made from, and give that one the whole sequence."
    )

    def __init__(self, net: DecoderOnlyTransformer, batch_size: int) -> None:
        super().__init__()
        self.max_seq_len, self.batch_size = net.max_seq_len, batch_size
        self.with_cross_attention = net.with_cross_attention
        self.token_embeddings, self.to_logits = net.token_embeddings, net.to_logits
        self.position_weight: torch.Tensor
        self.register_buffer("position_weight", net.position_embeddings.embedding.weight.detach(), persistent=False)
        blocks: Any = net.blocks
        self.blocks = nn.ModuleList([CachedTransformerBlock(block, batch_size, net.max_seq_len) for block in blocks])
        self.position: torch.Tensor
        self.register_buffer("position", torch.zeros((), dtype=torch.long, device=net.to_logits.weight.device), False)
        self.steps: torch.Tensor
        steps = torch.arange(net.max_seq_len, device=net.to_logits.weight.device)
        self.register_buffer("steps", steps, persistent=False)

    @torch.jit.export
    def reset(self) -> None:
        """Forget all tokens; the context stays."""
        self.position.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x: the next tokens, (B, N), integers below ``num_tokens``.

        Returns:
            logits of the token that follows each of them, (B, N, num_tokens)

        Raises:
            ValueError: if the batch has another size, or the sequences grow longer than ``max_seq_len``.
        """
        tokens = x.shape[1]
        start = -1  # a graph, or another device than the CPU, leaves the position in its tensor
        if torch.jit.is_scripting() or not torch.compiler.is_compiling():
            first = int(self.position)
            self._check(x, first + tokens)
            if not x.is_cuda:
                start = first
        if start >= 0:
            positions = self.steps.narrow(0, start, tokens)
            embedded = self.position_weight.narrow(0, start, tokens)
        else:
            positions = self.position + self.steps[:tokens]
            embedded = F.embedding(positions, self.position_weight)
        with torch.no_grad():
            h = self.token_embeddings(x) + embedded
            for block in self.blocks:
                h = block(h, positions, start)
            self.position.add_(tokens)  # += would pass through the module's __setattr__
            out: torch.Tensor = self.to_logits(h)
            return out

    def _check(self, x: torch.Tensor, length: int) -> None:
        if x.shape[0] != self.batch_size:
            raise ValueError(f"{x.shape[0]} sequences were given to a decoder of {self.batch_size}: make one anew.")
        if length > self.max_seq_len:
            raise ValueError(
                f"The sequences would have {length} tokens, more than max_seq_len={self.max_seq_len}: reset() the "
                "decoder and give it the last tokens as a new prefix."
            )
