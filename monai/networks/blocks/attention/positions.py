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

"""What positions of tokens are to attention: a module that is handed to a block, and asked by whoever computes it."""

from __future__ import annotations

from typing import Any, ClassVar, Optional

import torch
import torch.nn as nn

from monai.networks.blocks.attention.kernels import fused_attention

__all__ = ["Positions"]


class Positions(nn.Module):
    """
    What the places of tokens do to attention. It is handed to a block, and whoever computes that block's attention asks
    it: the block, the rows of its matrix that are looked at, and the cache of a decoder.

    A subclass says one of two things, or both:

    - how queries and keys change before they meet, by :meth:`embed`, as rotary embeddings do;
    - what is added to the logits, by :meth:`forward` on their whole matrix, by :meth:`fused` without it, and by
      :meth:`row_terms` for some of its rows.

    A subclass with a ``forward`` of its own that lacks one of the other two gets the whole matrix.
    """

    kind: ClassVar[str | None] = None
    """How a training configuration names it; by its class where this is None."""
    has_kernel: ClassVar[bool] = True
    """Whether :meth:`fused` and :meth:`row_terms` compute what ``forward`` does."""
    token_by_token: ClassVar[bool] = False
    """Whether a decoder may place tokens one after another, by :meth:`embed` alone."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" in vars(cls):
            cls.has_kernel = {"fused", "row_terms"} <= vars(cls).keys()

    def embed(
        self, q: torch.Tensor, k: torch.Tensor, positions: Optional[torch.Tensor] = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Place queries and keys.

        Args:
            q: queries (B, heads, Q, D).
            k: keys (B, heads, K, D).
            positions: numbers of these tokens, (N,), where a decoder hands in a part of them: then N is Q and K. None,
                the default, means that all tokens are there.

        Returns:
            queries and keys of the same shapes
        """
        return q, k

    def forward(self, x: torch.Tensor, att_mat: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        """
        Add to a matrix of logits.

        Args:
            x: the block's input.
            att_mat: logits (B, heads, Q, K).
            q: unscaled queries (B, heads, Q, D), placed by :meth:`embed`.

        Returns:
            (B, heads, Q, K)
        """
        return att_mat

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
        """Attention with these positions by the fused kernel, see :func:`fused_attention`; q and k are placed."""
        return fused_attention(q, k, v, mask, causal, scale, dropout_p)

    def row_terms(self, q: torch.Tensor, keys: int, queries: torch.Tensor) -> torch.Tensor | None:
        """
        What is added to the logits of some queries.

        Args:
            q: all unscaled queries (B, heads, Q, D), placed.
            keys: K, number of keys.
            queries: numbers of the queries, (N,).

        Returns:
            (B, heads, N, K), or None for nothing.
        """
        return None

    def token_grid(self) -> tuple[int, ...] | None:
        """The grid on which the queries lie; None where these positions know of none."""
        return None

    def key_grid(self) -> tuple[int, ...] | None:
        """The grid on which the keys of a context lie; None where these positions know of none."""
        return None
