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

"""The core that the attention blocks share, and the modules that split tokens into heads and join them again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

import torch
import torch.nn as nn

from monai.networks.blocks.attention.derivatives import kernel_serves
from monai.networks.blocks.attention.kernels import count_attention, fused_attention
from monai.networks.blocks.attention.mask import attention_weights, causal_buffer, lower_triangle, resolve_mask
from monai.networks.blocks.attention.options import AttentionOptions, check_sizes
from monai.networks.blocks.attention.positions import Positions
from monai.networks.state_dict.hooks import SafeLoading
from monai.networks.state_dict.torch_private import is_plain, own_module, remove_buffer

__all__ = ["AttentionBlock", "JoinHeads", "SplitHeads", "SplitQueriesKeysValues", "runs_own_forward"]

OWN_MODULES = ("monai.networks.blocks.selfattention", "monai.networks.blocks.crossattention")
TOO_OLD_TO_RUN = (
    "{cls} was saved as a whole object by a release that this package cannot run: it lacks {missing}. Save "
    "net.state_dict() with that release, and load it into a network that is built with this package."
)


def runs_own_forward(block: nn.Module) -> bool:
    """Tell whether a block of attention computes as this package says, not as a subclass or its user does."""
    return getattr(type(block).forward, "__module__", "") in OWN_MODULES and "forward" not in block.__dict__


class SplitHeads(nn.Module):
    """
    (B, N, heads x D) to (B, heads, N, D).

    Args:
        num_heads: number of attention heads.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        return x.reshape(batch, tokens, self.num_heads, width // self.num_heads).transpose(1, 2)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}"


class SplitQueriesKeysValues(SplitHeads):
    """(B, N, 3 x heads x D) to (3, B, heads, N, D): queries, keys and values of one linear."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        return x.reshape(batch, tokens, 3, self.num_heads, width // (3 * self.num_heads)).permute(2, 0, 3, 1, 4)


class JoinHeads(nn.Module):
    """(B, heads, N, D) to (B, N, heads x D)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, heads, tokens, width = x.shape
        return x.transpose(1, 2).reshape(batch, tokens, heads * width)


class AttentionBlock(SafeLoading):
    """
    The core that the public attention blocks share: what they check, register and compute after their own linears.

    Scaled dot-product attention with several heads, see "Vaswani et al., Attention Is All You Need
    <https://arxiv.org/abs/1706.03762>". The fused kernel does the work unless somebody wants the matrix or its
    weights: by ``save_attn``, by a hook on ``drop_weights`` or the positions, or by another module in their place. With
    ``use_flash_attention=True`` only ``save_attn`` and the positions count: upstream's flash attention never
    calls ``drop_weights`` either. Hooks on all modules (``register_module_forward_hook``) change nothing, since
    profilers set them to see what runs. Where the kernel has no derivative (forward mode, ``torch.func``), the matrix
    is built, too.

    Args:
        hidden_size: width of the attention when ``dim_head`` is not given.
        num_heads: number of attention heads.
        options: how attention is computed, whatever its sizes.
        dim_head: width of one head, or None.
        hidden_input_size: width C of the input and output, or None for ``hidden_size``.
        causal: whether a query attends to keys up to its own number only.
        sequence_length: number of tokens, required where ``causal`` is True.
        rel_pos_embedding: how positions were asked for, or None.
        input_size: spatial size of the tokens' grid, or None.

    A subclass makes the linears of q, k and v between two calls, ``__init__`` and ``_make_parts``, so that all
    parameters have upstream's order; it computes q, k and v in ``project``, and hands them to :meth:`attend`.

    Raises:
        ValueError: if an argument is out of range, if two arguments exclude each other, or if the width of the
            attention differs from the width of its input and there is no projection between them.
    """

    # constants of a script are what the properties say when it is made
    __constants__ = ["fuses", "places_tokens", "use_flash_attention"]
    __jit_unused_properties__ = ["fuses", "places_tokens", "asks_positions"]
    attention_kind = "self"
    """What a block attends to, its own tokens ("self") or a context ("cross"). Blocks of a kind are built alike."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        options: AttentionOptions,
        dim_head: int | None,
        hidden_input_size: int | None,
        causal: bool,
        sequence_length: int | None,
        rel_pos_embedding: Any,
        input_size: tuple | None,
    ) -> None:
        super().__init__()
        count_attention()
        check_sizes(hidden_size, num_heads, options.dropout_rate, dim_head)
        if causal and sequence_length is None:
            raise ValueError("causal attention needs sequence_length, the number of tokens it is built for.")
        if options.use_flash_attention and options.save_attn:
            raise ValueError(
                "save_attn=True needs the attention matrix, which use_flash_attention=True never builds: drop one."
            )
        if options.use_flash_attention and rel_pos_embedding is not None:
            raise ValueError(
                f"rel_pos_embedding={rel_pos_embedding!r} excludes use_flash_attention=True; leave the flag out: "
                "the fused kernel is used all the same."
            )

        self.num_heads = num_heads
        self.head_dim = dim_head if dim_head else hidden_size // num_heads
        self.inner_dim = self.head_dim * num_heads
        self.hidden_input_size = hidden_input_size if hidden_input_size else hidden_size
        self.scale = self.head_dim**-0.5
        self.dropout_rate = options.dropout_rate
        self.save_attn = options.save_attn
        self.attention_dtype = options.attention_dtype
        self.causal = causal
        self.sequence_length = sequence_length
        self.input_size = input_size
        self.use_flash_attention = options.use_flash_attention
        self.use_proj_attn = use_proj_attn = options.projects
        self.include_fc = True

        if not use_proj_attn and self.inner_dim != self.hidden_input_size:
            raise ValueError(
                f"without an output projection the attention's width, {self.inner_dim} in all heads, must equal its "
                f"input's width {self.hidden_input_size}: pass use_proj_attn=True or change dim_head."
            )
        self.out_proj: nn.Linear | nn.Identity
        self.out_proj = nn.Linear(self.inner_dim, self.hidden_input_size) if use_proj_attn else nn.Identity()
        self.att_mat = torch.Tensor()
        self.register_load_state_dict_post_hook(_follow_weights)

    def _make_parts(self, combined: bool, rel_pos: nn.Module | None) -> None:
        """
        Make what follows the linears of q, k and v.

        Args:
            combined: whether one linear computes q, k and v.
            rel_pos: positions of the tokens, or None.
        """
        split = SplitQueriesKeysValues if combined else SplitHeads
        self.input_rearrange = split(self.num_heads)
        self.out_rearrange = JoinHeads()
        self.drop_output = nn.Dropout(self.dropout_rate)
        self.drop_weights = nn.Dropout(self.dropout_rate)
        self.rel_positional_embedding: Any = rel_pos
        self._register_mask()

    def _register_mask(self) -> None:
        """
        No path of this class reads the mask, which is derived where it is used: the buffer is empty. A subclass with a
        forward of its own may read it, as upstream's forward does: there it holds the values.
        """
        length = 0 if runs_own_forward(self) or not self.causal else self.sequence_length or 0
        self.causal_mask: torch.Tensor
        self.register_buffer("causal_mask", causal_buffer(length), persistent=False)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> AttentionBlock:
        """What moves the block leaves a causal mask behind that holds: off the meta device, and after ``to_empty``."""
        mask = self.causal_mask
        length = mask.shape[-1]
        if mask.is_meta:
            self.causal_mask = mask = causal_buffer(length)
        untouched = length > 0 and torch.equal(mask, causal_buffer(length, mask.dtype, mask.device))
        super()._apply(fn, recurse)
        mask = self.causal_mask
        if untouched and not mask.is_meta:
            self.causal_mask = causal_buffer(length, mask.dtype, mask.device)
        return self

    @property
    def fuses(self) -> bool:
        """Whether nobody watches or has replaced what the fused kernel computes without calling it."""
        if self.rel_positional_embedding is not None and not self.asks_positions:
            return False
        return self.use_flash_attention or is_plain(own_module(self, "drop_weights"), nn.Dropout)

    @property
    def places_tokens(self) -> bool:
        """Whether there are positions that may change queries and keys before they meet."""
        return isinstance(self.rel_positional_embedding, Positions)

    @property
    def asks_positions(self) -> bool:
        """Whether there are positions that say what they add without the whole matrix, and nobody watches them."""
        positions = self.rel_positional_embedding
        return isinstance(positions, Positions) and positions.has_kernel and is_plain(positions, type(positions))

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
            attn_mask: see :func:`~monai.networks.blocks.attention.mask.resolve_mask`.

        Returns:
            (B, Q, C)

        Raises:
            ValueError: if the mask does not fit, in shape or values, or comes with causal attention.
        """
        mask = None if attn_mask is None else self._resolve(attn_mask, q, k)
        if self.attention_dtype is None:
            out = self._kernel(x, q, k, v, mask)
        else:
            dtype = v.dtype
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
        out = self.out_rearrange(out)
        if self.include_fc:
            out = self.out_proj(out)
        found: torch.Tensor = self.drop_output(out)
        return found

    def _kernel(
        self, x: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Optional[torch.Tensor]
    ) -> torch.Tensor:
        """The one place that chooses a path: explicit where the matrix or its weights are wanted, else fused."""
        if self.places_tokens:
            q, k = self.rel_positional_embedding.embed(q, k)
        if self.fuses:
            if self.save_attn or not kernel_serves():
                return self._explicit(x, q, k, v, mask)
            dropout_p = self._dropout_p() if self.drop_weights.training else 0.0
            if self.rel_positional_embedding is not None:
                out: torch.Tensor = self.rel_positional_embedding.fused(
                    q, k, v, mask, self.causal, self.scale, dropout_p
                )
                return out
            return fused_attention(q, k, v, mask, self.causal, self.scale, dropout_p)
        else:
            return self._explicit(x, q, k, v, mask)

    def _dropout_p(self) -> float:
        """Which part of the weights the kernel drops in training; upstream's flash attention reads it elsewhere."""
        if self.use_flash_attention:
            return float(self.dropout_rate)
        else:
            return float(self.drop_weights.p)

    def _explicit(
        self, x: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Optional[torch.Tensor]
    ) -> torch.Tensor:
        """Attention through its matrix, for those who want to see it or add to it."""
        logits = torch.matmul(q * self.scale, k.transpose(-2, -1))
        if self.rel_positional_embedding is not None:
            logits = self.rel_positional_embedding(x, logits, q)
        if self.causal:
            mask = lower_triangle(q.shape[2], k.shape[2], device=q.device)
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
            attn_mask: see :func:`~monai.networks.blocks.attention.mask.resolve_mask`.

        Returns:
            (B, heads, N, K). A position embedding of the user's own forms the whole matrix on the way.

        Raises:
            ValueError: if the mask does not fit, in shape or values, or comes with causal attention.
        """
        mask = None if attn_mask is None else self._resolve(attn_mask, q, k)
        if self.attention_dtype is None:
            return self._rows(x, q, k, queries, mask)
        with torch.autocast(q.device.type, enabled=False):
            return self._rows(x, q.to(self.attention_dtype), k.to(self.attention_dtype), queries, mask)

    def _rows(
        self, x: torch.Tensor, q: torch.Tensor, k: torch.Tensor, queries: torch.Tensor, mask: Optional[torch.Tensor]
    ) -> torch.Tensor:
        positions = self.rel_positional_embedding
        if self.places_tokens:
            q, k = positions.embed(q, k)
        if positions is not None and not self.asks_positions:
            logits = positions(x, torch.matmul(q * self.scale, k.transpose(-2, -1)), q)[:, :, queries]
        else:
            logits = torch.matmul(q[:, :, queries] * self.scale, k.transpose(-2, -1))
            terms = None if positions is None else positions.row_terms(q, k.shape[2], queries)
            logits = logits if terms is None else logits + terms
        if mask is not None and mask.shape[2] > 1:
            mask = mask[:, :, queries]
        if self.causal:
            mask = torch.arange(k.shape[2], device=q.device) <= queries[:, None]
        return attention_weights(logits, mask)

    def _resolve(self, attn_mask: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        if self.causal:
            raise ValueError("Causal attention does not support attention masks.")
        return resolve_mask(attn_mask, q.shape[0], self.num_heads, q.shape[2], k.shape[2])

    def __setstate__(self, state: dict[str, Any]) -> None:
        """
        Take over a block that was pickled as a whole object, by this package or by MONAI 1.6.

        Raises:
            RuntimeError: if it cannot be run: older releases lack attributes that decide what they compute.
        """
        super().__setstate__(state)
        if "use_proj_attn" not in state:
            self._complete(state)

    def _complete(self, state: dict[str, Any]) -> None:
        """Add what the release's blocks do not have, in the places of the modules that they have."""
        missing = [name for name in ("use_flash_attention", "attention_dtype", "input_size") if name not in state]
        if missing:
            raise RuntimeError(TOO_OLD_TO_RUN.format(cls=type(self).__name__, missing=", ".join(missing)))
        self.head_dim = state["dim_head"] if "dim_head" in state else state["head_dim"]
        self.inner_dim = self.head_dim * self.num_heads
        self.include_fc = state.get("include_fc", True)
        self.use_proj_attn = self.include_fc and not isinstance(self.out_proj, nn.Identity)
        combined = state.get("use_combined_linear", False)
        self.input_rearrange = SplitQueriesKeysValues(self.num_heads) if combined else SplitHeads(self.num_heads)
        self.out_rearrange = JoinHeads()
        self.register_load_state_dict_post_hook(_follow_weights)
        self.__dict__.pop("causal_mask", None)
        remove_buffer(self, "causal_mask")
        self._register_mask()


def _follow_weights(block: AttentionBlock, _: Any) -> None:
    """After a load that assigns tensors, which may lie on another device than the block was built on."""
    mask, weight = block.causal_mask, next(block.parameters(), None)
    if weight is not None and mask.device != weight.device and not weight.is_meta:
        block.causal_mask = causal_buffer(mask.shape[-1], mask.dtype, weight.device)
