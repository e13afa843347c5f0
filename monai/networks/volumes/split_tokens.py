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

"""Tokens of slabs: patches with the positions of the whole volume, and attention to the tokens of all ranks."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from monai.networks.blocks.attention.kernels import fused_attention
from monai.networks.blocks.attention.mask import allowed_keys
from monai.networks.blocks.crossattention import CrossAttentionBlock
from monai.networks.state_dict.torch_private import not_compiled
from monai.networks.volumes.exchange import joined
from monai.networks.volumes.slabs import Slabs
from monai.networks.volumes.split_layers import Split
from monai.networks.volumes.volume_split import VolumeSplit

__all__ = ["SplitAttention", "SplitPatchEmbedding", "SplitTokenHolder", "SplitTokensToImage", "TokenPlace"]


class TokenPlace:
    """
    Where a rank's tokens lie in the volume: the module that makes them says it, their attention blocks ask.

    Args:
        split: the volume that the ranks share.
        class_tokens: how many tokens come first and lie on no grid: every rank has them.
    """

    def __init__(self, split: VolumeSplit, class_tokens: int) -> None:
        self.split, self.class_tokens = split, class_tokens
        self.grid: tuple[int, ...] = ()
        self.slabs = Slabs(())

    def lie_on(self, grid: tuple[int, ...], slabs: Slabs) -> None:
        """
        Say where the tokens lie.

        Args:
            grid: this rank's part of their grid, which they fill in row-major order.
            slabs: how the whole grid is cut along the axis.
        """
        self.grid, self.slabs = grid, slabs

    @property
    def across(self) -> int:
        """How many tokens lie in one slice of the grid."""
        return math.prod(self.grid) // self.slabs.lengths[self.split.rank]

    @property
    def whole(self) -> int:
        """How many tokens the volume has, class tokens included."""
        return self.class_tokens + self.across * self.slabs.total

    @not_compiled
    def join(self, tokens: torch.Tensor, dim: int, name: str) -> torch.Tensor:
        """
        The tokens of all ranks after this rank's class tokens, rank by rank: in the order of :meth:`numbers`.

        Args:
            tokens: this rank's, along ``dim``.
            dim: see above.
            name: of the block that asks, for messages.

        Raises:
            ValueError: if there are other tokens than those of the grid.
        """
        if tokens.shape[dim] != self.class_tokens + math.prod(self.grid):
            raise ValueError(
                f"{name} has {tokens.shape[dim]} tokens, but {self.class_tokens} class tokens and this rank's part "
                f"{list(self.grid)} of the grid make {self.class_tokens + math.prod(self.grid)}."
            )
        first = tokens.narrow(dim, 0, self.class_tokens)
        own = tokens.narrow(dim, self.class_tokens, tokens.shape[dim] - self.class_tokens)
        rest = joined(own, self.split.ranks, dim, self.slabs.times(self.across), "tokens")
        return torch.cat([first, rest], dim) if self.class_tokens else rest

    def numbers(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The numbers in the volume's order of this rank's tokens, and of those that :meth:`join` gives."""
        axis, shape = self.split.axis, list(self.grid)
        shape[axis] = self.slabs.total
        order = torch.arange(math.prod(shape), device=device).view(shape) + self.class_tokens
        first = torch.arange(self.class_tokens, device=device)
        parts = [order.narrow(axis, at, n).flatten() for at, n in zip(self.slabs.begins, self.slabs.lengths)]
        return torch.cat([first, parts[self.split.rank]]), torch.cat([first, *parts])


class SplitTokenHolder(Split):
    """
    A module whose input's positions are the tokens of its attention.

    Args:
        token_place: where they lie.
    """

    token_place: TokenPlace

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As the module's own forward; the first argument is the slab of a volume."""
        with self.volume_split.call((x,)):
            self._place(x)
            out: torch.Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
        return out

    @not_compiled
    def _place(self, x: torch.Tensor) -> None:
        self.token_place.lie_on(tuple(x.shape[2:]), self.volume_split.slabs(x))


class SplitPatchEmbedding(Split):
    """
    Patches of a slab, with their positions in the volume.

    Args:
        token_place: where they lie.
    """

    token_place: TokenPlace

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x: this rank's slab of the image, (B, in_channels, sizes).

        Returns:
            (B, number of patches of the slab, hidden_size)

        Raises:
            ValueError: if a slab begins inside of a patch, or the image has another number of patches than there are
                position embeddings.
        """
        tokens = self.patch_embeddings(x)
        if self.proj_type == "conv":
            tokens = tokens.flatten(2).transpose(1, 2)
        out: torch.Tensor = self.dropout(tokens + self._positions(x))
        return out

    @not_compiled
    def _positions(self: Any, x: torch.Tensor) -> torch.Tensor:
        """The position embeddings of the slab's patches, (1, number of patches, hidden_size)."""
        split: VolumeSplit = self.volume_split
        positions: torch.Tensor = self.position_embeddings
        with split.call((x,)):
            slabs = split.slabs(x).after(self.split_reach, self.split_name)
            split.know(slabs)
        grid = [size // patch for size, patch in zip(x.shape[2:], self.patch_size)]
        grid[split.axis] = slabs.lengths[split.rank]
        self.token_place.lie_on(tuple(grid), slabs)
        whole = self.token_place.whole - self.token_place.class_tokens
        if self.dynamic_size:
            positions = self.positions_on([*grid[: split.axis], slabs.total, *grid[split.axis + 1 :]])
        if positions.shape[-2] == 1 and self.n_patches > 1:  # one for all
            return positions
        if positions.shape[-2] != whole:
            raise ValueError(
                f"the image becomes {whole} tokens on all ranks together, but there are {positions.shape[-2]} position "
                f"embeddings, for img_size {self.img_size} and patches of {self.patch_size}: resize, crop or pad the "
                "image, or build the network with its img_size."
            )
        begin, end = slabs.range_of(split.rank)
        grid[split.axis] = slabs.total
        on_grid = positions.reshape(*positions.shape[:-2], *grid, positions.shape[-1])
        dim = positions.dim() - 2 + split.axis
        mine = on_grid.narrow(dim, begin, end - begin)
        return mine.reshape(*positions.shape[:-2], -1, positions.shape[-1])


class SplitAttention(Split):
    """
    Attention of this rank's tokens to those of all ranks. A context is whole on every rank.

    Args:
        token_place: where its tokens lie.
    """

    token_place: TokenPlace

    def project(self: Any, x: torch.Tensor, *context: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Queries of this rank's tokens ``x``, (B, N, C), keys and values of those of all ranks, or of the context."""
        self._attends_to_context = any(each is not None for each in context)
        if isinstance(self, CrossAttentionBlock) and not self._attends_to_context:
            self._refuse_tokens_as_context(x)  # type: ignore[operator]
        q, k, v = super().project(x, *context)  # type: ignore[misc,operator]
        if not self._attends_to_context:
            k, v = self.token_place.join(torch.stack([k, v]), 3, self.split_name).unbind(0)
        return q, k, v

    def _refuse_tokens_as_context(self: Any, x: torch.Tensor) -> None:
        if self.context_input_size != x.shape[-1]:
            raise ValueError(
                f"{self.split_name}: context should be given, (B, K, {self.context_input_size}); the tokens themselves "
                f"have {x.shape[-1]} channels."
            )

    def _resolve(self: Any, attn_mask: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """The mask of the whole volume's tokens, for this rank's queries and the keys as they were joined."""
        mine, keys = self.token_place.numbers(attn_mask.device)
        mask = attn_mask
        if mask.dim() > 2 and mask.shape[-2] == self.token_place.whole:
            mask = mask.index_select(mask.dim() - 2, mine)
        if not self._attends_to_context and mask.shape[-1] == self.token_place.whole:
            mask = mask.index_select(mask.dim() - 1, keys)
        return super()._resolve(mask, q, k)  # type: ignore[misc,no-any-return]

    def _kernel(
        self: Any, x: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        if not self.causal and self.rel_positional_embedding is None:
            return super()._kernel(x, q, k, v, mask)  # type: ignore[misc,no-any-return]
        return self._in_order(q, k, v, mask)  # type: ignore[no-any-return]

    @not_compiled
    def _in_order(
        self: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Attention that asks for the places of queries and keys in the volume."""
        mine, keys = self.token_place.numbers(q.device)
        if self._attends_to_context:
            keys = torch.arange(k.shape[2], device=q.device)
        if self.causal:
            mask = (keys <= mine[:, None])[None, None]
        dropout = self._dropout_p() if self.training else 0.0
        bias = self._bias(q, keys, mine)
        if bias is None:
            return fused_attention(q, k, v, mask, False, self.scale, dropout)
        dead = None
        if mask is not None:
            dead, allowed = allowed_keys(mask)
            bias = bias.masked_fill(~allowed, float("-inf"))
        out = F.scaled_dot_product_attention(q, k, v, bias, dropout, scale=self.scale)
        return out if dead is None else out.masked_fill(dead, 0.0)

    def _bias(self: Any, q: torch.Tensor, keys: torch.Tensor, mine: torch.Tensor) -> torch.Tensor | None:
        """What relative positions add to the logits of this rank's queries, (B, heads, N, K), or None."""
        positions = self.rel_positional_embedding
        if positions is None:
            return None
        # they know the queries by their places among all of them
        shape = (*q.shape[:2], self.token_place.whole, q.shape[3])
        whole = q.new_zeros(shape).index_copy(2, mine, q)
        terms: torch.Tensor | None = positions.row_terms(whole, keys.shape[0], mine)
        return None if terms is None else terms.index_select(3, keys)


class SplitTokensToImage(Split):
    """A network that turns the tokens of a slab into a grid (:class:`~monai.networks.nets.UNETR`)."""

    def proj_feat(self: Any, x: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N, hidden_size) of a slab to a grid (B, hidden_size, patches along every axis)."""
        shape = list(self.proj_view_shape)
        shape[self.volume_split.axis] = -1
        return x.view([x.shape[0], *shape]).permute(self.proj_axes).contiguous()
