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

"""Relative positions of tokens on a grid: what each axis adds to the logits of attention."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import nn

from monai.networks.blocks.attention.kernels import fused_attention, fused_attention_with_bias, runs_now, sum_over_axes
from monai.networks.blocks.attention.positions import Positions

__all__ = ["DecomposedRelativePosEmbedding", "add_decomposed_rel_pos", "axis_terms", "get_rel_pos"]

RELEASE_IN_3D = (
    "relative positions in 3-D were pickled as a whole object by MONAI 1.6, which contracts the depth's term along "
    "the width: this package does not reproduce its outputs. To go on from its weights, save net.state_dict() with "
    "that release, and load it into a network that is built with this package."
)


def get_rel_pos(q_size: int, k_size: int, rel_pos: torch.Tensor) -> torch.Tensor:
    """
    Look up the embedding of every relative position along one axis.

    Axes of different lengths are compared on the finer of the two grids, as in MViTv2 (https://arxiv.org/abs/2112.01526).

    Args:
        q_size: number of query positions along the axis.
        k_size: number of key positions along the axis.
        rel_pos: table of embeddings (distances, C), from the most negative distance to the most positive; it is
            interpolated where it does not hold ``2 * max(q_size, k_size) - 1`` distances.

    Returns:
        (q_size, k_size, C)
    """
    distances = 2 * max(q_size, k_size) - 1
    table = rel_pos
    if table.shape[0] != distances:
        table = F.interpolate(table.t().unsqueeze(0), size=distances, mode="linear").squeeze(0).t()
    q_step = max(k_size / q_size, 1.0)
    k_step = max(q_size / k_size, 1.0)
    q_coord = torch.arange(q_size, device=rel_pos.device).unsqueeze(1) * q_step
    k_coord = torch.arange(k_size, device=rel_pos.device).unsqueeze(0) * k_step
    return table[(q_coord - k_coord + (k_size - 1) * k_step).long()]


def axis_terms(
    q: torch.Tensor, rel_pos_lst: list[torch.Tensor], q_size: list[int], k_size: list[int]
) -> list[torch.Tensor]:
    """
    Positional logits of each query, axis by axis: ``q_i . R(position of i, key coordinate)``.

    Args:
        q: queries (B, Q, C), whose tokens lie on a grid of size ``q_size`` in row-major order.
        rel_pos_lst: one table of embeddings an axis, see :func:`get_rel_pos`.
        q_size: grid of the queries.
        k_size: grid of the keys.

    Returns:
        one tensor an axis, (B, Q, k_size[axis]).
    """
    batch, tokens, channels = q.shape
    terms: list[torch.Tensor] = []
    outer, inner = 1, tokens
    for axis, rel_pos in enumerate(rel_pos_lst):
        inner = inner // q_size[axis]
        grid = q.reshape(batch, outer, q_size[axis], inner, channels)
        embedding = get_rel_pos(q_size[axis], k_size[axis], rel_pos).to(q.dtype)
        terms.append(torch.einsum("bolic,lkc->bolik", grid, embedding).reshape(batch, tokens, k_size[axis]))
        outer = outer * q_size[axis]
    return terms


def add_decomposed_rel_pos(
    attn: torch.Tensor, q: torch.Tensor, rel_pos_lst: list[torch.Tensor], q_size: list[int], k_size: list[int]
) -> torch.Tensor:
    r"""
    Add decomposed relative positions to attention logits, in 1-D, 2-D, 3-D or more.

    The logit of query i and key j grows by :math:`q_i \cdot \sum_a R^a_{p_a(i), p_a(j)}`, where a runs over the axes of
    the grid and :math:`p_a` is a token's coordinate along a (MViTv2, https://arxiv.org/abs/2112.01526, eq. 4).

    Args:
        attn: logits (B, Q, K).
        q: unscaled queries (B, Q, C).
        rel_pos_lst: one table of embeddings an axis (distances, C), see :func:`get_rel_pos`.
        q_size: grid of the queries; its product is Q.
        k_size: grid of the keys; its product is K.

    Returns:
        (B, Q, K)
    """
    batch, queries, keys = attn.shape
    outer, inner = 1, keys
    for axis, term in enumerate(axis_terms(q, rel_pos_lst, q_size, k_size)):
        inner = inner // k_size[axis]
        grid = attn.reshape(batch, queries, outer, k_size[axis], inner)
        attn = (grid + term.reshape(batch, queries, 1, k_size[axis], 1)).reshape(batch, queries, keys)
        outer = outer * k_size[axis]
    return attn


class DecomposedRelativePosEmbedding(Positions):
    """
    Relative positions of tokens on a grid, one table of embeddings an axis (MViTv2, https://arxiv.org/abs/2112.01526).

    The keys may lie on another grid than the queries: the one given, or else the queries' grid scaled alike along all
    axes to the number of keys. Keys that fit no such grid (words, say) have no position and get no term.

    Args:
        s_input_dims: grid of the queries, (H, W) or (H, W, D).
        c_dim: width of one attention head.
        num_heads: number of attention heads.
        s_context_dims: grid of the keys, with as many axes. Defaults to the queries' grid, scaled where needed.

    Raises:
        ValueError: if a grid does not have two or three axes, or the grids differ in their number.
    """

    kind = "decomposed"

    # numbers of axes that the release computes right
    release_dims = (2,)

    def __init__(
        self,
        s_input_dims: tuple[int, int] | tuple[int, int, int],
        c_dim: int,
        num_heads: int,
        s_context_dims: tuple[int, int] | tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(s_input_dims, Iterable) or len(tuple(s_input_dims)) not in (2, 3):
            raise ValueError(f"s_input_dims should be (H, W) or (H, W, D), got {s_input_dims}.")
        if s_context_dims is not None and len(tuple(s_context_dims)) != len(tuple(s_input_dims)):
            raise ValueError(
                f"s_context_dims {s_context_dims} should have as many axes as s_input_dims {s_input_dims}."
            )
        self._set_grids(s_input_dims, s_context_dims)
        self.c_dim = c_dim
        self.num_heads = num_heads
        self.rel_pos_arr = nn.ParameterList(torch.zeros(2 * size - 1, c_dim) for size in self.s_input_dims)

    def _set_grids(self, s_input_dims: Iterable[int], s_context_dims: Iterable[int] | None) -> None:
        self.s_input_dims = tuple(int(size) for size in s_input_dims)
        self.fixed_context = s_context_dims is not None
        self.s_context_dims = tuple(int(size) for size in s_context_dims or s_input_dims)
        self.queries = math.prod(self.s_input_dims)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """
        Take over an embedding that was pickled as a whole object, by this package or by MONAI 1.6.

        Raises:
            RuntimeError: if it is the release's in 3-D, whose outputs this package does not reproduce.
        """
        super().__setstate__(state)
        if "queries" not in state:
            if len(self.s_input_dims) == 3:
                raise RuntimeError(RELEASE_IN_3D)
            self._set_grids(self.s_input_dims, None)

    def forward(self, x: torch.Tensor, att_mat: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        """
        Add the positional terms to a matrix of logits.

        Args:
            x: the block's input; not used.
            att_mat: logits (B, heads, Q, K).
            q: unscaled queries (B, heads, Q, D).

        Returns:
            (B, heads, Q, K)

        Raises:
            ValueError: if the number of queries is not that of the grid.
        """
        k_size = self._key_grid(q.shape[2], att_mat.shape[3])
        if len(k_size) == 0:
            return att_mat
        grid = self._query_grid()
        flat = add_decomposed_rel_pos(att_mat.flatten(0, 1), q.flatten(0, 1), self._tables(), grid, k_size)
        return flat.reshape(att_mat.shape)

    def fused(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: Optional[torch.Tensor],
        causal: bool,
        scale: float,
        dropout_p: float,
    ) -> torch.Tensor:
        """
        The per-axis terms as a bias where a CPU infers. Else they ride along as channels of q that one-hot channels of
        k pick out: in one call of a kernel, with gradients.
        """
        if runs_now() and q.is_cpu and dropout_p == 0.0 and not torch.is_grad_enabled():
            terms = self.axis_terms(q, k.shape[2])
            if len(terms) > 0:
                return fused_attention_with_bias(q, k, v, terms, mask, causal, scale)
        wide_q, wide_k = self.extend(q, k, scale)
        # the kernels want one width for q, k and v
        wide_v = F.pad(v, (0, wide_q.shape[-1] - v.shape[-1]))
        return fused_attention(wide_q, wide_k, wide_v, mask, causal, 1.0, dropout_p)[..., : v.shape[-1]]

    def row_terms(self, q: torch.Tensor, keys: int, queries: torch.Tensor) -> torch.Tensor | None:
        """The terms of all axes together for some queries, see :meth:`Positions.row_terms`."""
        terms = self.axis_terms(q, keys)
        return sum_over_axes([term[:, :, queries] for term in terms]) if terms else None

    def token_grid(self) -> tuple[int, ...] | None:
        """The grid that the embedding was built for."""
        return self.s_input_dims

    def key_grid(self) -> tuple[int, ...] | None:
        """The grid of the context that the embedding was built for."""
        return self.s_context_dims

    def extend(self, q: torch.Tensor, k: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Widen q and k so that their dot product holds the scaled logits and the positional terms at once: q by its
        terms for every coordinate of every axis, k by its coordinates as one-hot vectors.

        Args:
            q: queries (B, heads, Q, D).
            k: keys (B, heads, K, D).
            scale: factor of the logits without positions.

        Returns:
            (B, heads, Q, D + W) and (B, heads, K, D + W), where W is the sum of the key grid's sizes.

        Raises:
            ValueError: if the number of queries is not that of the grid.
        """
        terms = self.axis_terms(q, k.shape[2])
        if len(terms) == 0:
            return q * scale, k
        coordinates = self._one_hot([term.shape[-1] for term in terms], k).expand(k.shape[0], k.shape[1], -1, -1)
        return torch.cat([q * scale] + terms, dim=-1), torch.cat([k, coordinates], dim=-1)

    def axis_terms(self, q: torch.Tensor, keys: int) -> list[torch.Tensor]:
        """
        What each axis adds to the logits of each query.

        Args:
            q: unscaled queries (B, heads, Q, D).
            keys: number of keys.

        Returns:
            one tensor an axis, (B, heads, Q, length of the axis in the keys' grid); none where the keys lie on no grid.

        Raises:
            ValueError: if the number of queries is not that of the grid.
        """
        k_size = self._key_grid(q.shape[2], keys)
        terms: list[torch.Tensor] = []
        if len(k_size) > 0:
            for term in axis_terms(q.flatten(0, 1), self._tables(), self._query_grid(), k_size):
                terms.append(term.reshape(q.shape[0], q.shape[1], q.shape[2], term.shape[-1]))
        return terms

    def _tables(self) -> list[torch.Tensor]:
        # torch 2.8 does not compile list() of a ParameterList
        return [table for table in self.rel_pos_arr]  # noqa: C416

    def _query_grid(self) -> list[int]:
        return list(self.s_input_dims)

    def _key_grid(self, queries: int, keys: int) -> list[int]:
        """Grid of the keys; empty where they lie on none."""
        if queries != self.queries:
            raise ValueError(
                f"{queries} query tokens do not fill the grid {self.s_input_dims} of the relative position embedding: "
                "build the block with the input_size of its input."
            )
        grid = list(self.s_context_dims)
        if keys != self.queries and not self.fixed_context:
            grid = self._scaled_grid(keys)
        tokens = 1
        for size in grid:
            tokens *= size
        if tokens == keys:
            return grid
        if self.fixed_context:
            raise ValueError(f"{keys} context tokens do not fill the grid s_context_dims={self.s_context_dims}.")
        warnings.warn("The context tokens fit no grid like the queries': they get no relative position.", stacklevel=2)
        off_grid: list[int] = []
        return off_grid

    def _scaled_grid(self, keys: int) -> list[int]:
        axes = sum([1 if size > 1 else 0 for size in self.s_input_dims])
        ratio = (keys / self.queries) ** (1.0 / max(axes, 1))
        return [int(round(size * ratio)) if size > 1 else 1 for size in self.s_input_dims]

    def _one_hot(self, size: list[int], like: torch.Tensor) -> torch.Tensor:
        """Coordinates of the tokens of a grid, one one-hot vector an axis: (tokens, sum of the sizes)."""
        inner = 1
        for length in size:
            inner *= length
        parts: list[torch.Tensor] = []
        outer = 1
        for length in size:
            inner = inner // length
            axis = torch.eye(length, dtype=like.dtype, device=like.device).repeat_interleave(inner, dim=0)
            parts.append(axis.repeat(outer, 1))
            outer *= length
        return torch.cat(parts, dim=-1)
