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

import torch
import torch.nn.functional as F

__all__ = ["add_decomposed_rel_pos", "axis_terms", "get_rel_pos", "sum_over_axes"]


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


def sum_over_axes(terms: list[torch.Tensor]) -> torch.Tensor:
    """
    Sum the terms of all axes for every token of a grid.

    Args:
        terms: one tensor an axis, (..., length of the axis).

    Returns:
        (..., product of the lengths), tokens in row-major order
    """
    total = terms[-1]
    for term in terms[:-1][::-1]:
        total = (term.unsqueeze(-1) + total.unsqueeze(-2)).flatten(-2)
    return total
