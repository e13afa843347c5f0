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

"""Which queries may attend to which keys."""

from __future__ import annotations

from typing import Optional

import torch

__all__ = ["allowed_keys", "lower_triangle", "mask_of_part", "resolve_mask"]


def resolve_mask(attn_mask: torch.Tensor, batch: int, heads: int, queries: int, keys: int) -> torch.Tensor:
    """
    Bring an attention mask to the form that every path of the core takes.

    Args:
        attn_mask: nonzero where a query may attend to a key: (B, K) over keys, (B, Q, K), or (B, 1 or heads, Q, K);
            a batch size of 1 serves the whole batch.
        batch: B, the batch size.
        heads: number of attention heads.
        queries: Q, number of query tokens.
        keys: K, number of key tokens.

    Returns:
        bool tensor that broadcasts to (B, heads, Q, K).

    Raises:
        ValueError: if the mask has another shape.
    """
    mask = attn_mask
    if mask.dim() == 2:
        mask = mask[:, None, None, :]
    elif mask.dim() == 3:
        mask = mask[:, None]
    fits = mask.dim() == 4
    if fits:
        fits = (
            (mask.shape[0] == batch or mask.shape[0] == 1)
            and (mask.shape[1] == heads or mask.shape[1] == 1)
            and (mask.shape[2] == queries or attn_mask.dim() == 2)
            and mask.shape[3] == keys
        )
    if not fits:
        raise ValueError(
            f"attn_mask has shape {list(attn_mask.shape)}, but this attention takes (B, K) = {[batch, keys]}, "
            f"(B, Q, K) = {[batch, queries, keys]}, (B, 1, Q, K) = {[batch, 1, queries, keys]} "
            f"or (B, heads, Q, K) = {[batch, heads, queries, keys]}."
        )
    return mask != 0


def lower_triangle(queries: int, keys: int, first: int = 0, device: Optional[torch.device] = None) -> torch.Tensor:
    """Causal mask of the queries from number ``first`` on: bool (1, 1, queries, keys), True where key <= query."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(first)[None, None]


def allowed_keys(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The queries of a mask that may attend to nothing, and the mask with these attending to everything.

    Kernels and exporters disagree about rows without a key; what such a query then gets is cleared afterwards.
    """
    dead = ~mask.any(dim=-1, keepdim=True)
    return dead, mask | dead


def mask_of_part(
    mask: Optional[torch.Tensor], causal: bool, start: int, part: torch.Tensor, k: torch.Tensor
) -> Optional[torch.Tensor]:
    """The mask between some queries, ``part``, of which the first has the number ``start``, and the keys ``k``."""
    if causal:
        return lower_triangle(part.shape[2], k.shape[2], start, part.device)
    if mask is not None and mask.shape[2] > 1:
        return mask[:, :, start : start + part.shape[2]]
    return mask
