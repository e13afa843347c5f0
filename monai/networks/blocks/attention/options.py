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

"""What a network decides once for all of its attention blocks."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch

__all__ = ["AttentionOptions", "check_sizes", "resolve_projection"]


@dataclass(frozen=True)
class AttentionOptions:
    """
    What a network decides once for all of its attention blocks, handed down as one object.

    Args:
        dropout_rate: fraction of the attention weights, and of the block's outputs, dropped in training.
        qkv_bias: whether the query, key and value linears have a bias.
        save_attn: whether every block keeps its attention matrix in ``att_mat``.
        include_fc: upstream's switch of the output projection of self attention.
        use_combined_linear: whether self attention computes q, k and v with one linear.
        use_flash_attention: kept for its check against ``save_attn``; the fused kernel is used either way.
        use_proj_attn: whether attention ends in an output projection; None follows ``include_fc``.
        attention_dtype: type in which q, k and v meet; None leaves them as they are.
    """

    dropout_rate: float = 0.0
    qkv_bias: bool = False
    save_attn: bool = False
    include_fc: bool = True
    use_combined_linear: bool = True
    use_flash_attention: bool = False
    use_proj_attn: bool | None = None
    attention_dtype: torch.dtype | None = None

    def arguments(self, *without: str) -> dict[str, Any]:
        """The options as keyword arguments of a block, except for those in ``without``, which it does not take."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in without}


def resolve_projection(use_proj_attn: bool | None, include_fc: bool = True) -> bool:
    """
    Tell whether an attention block ends in an output projection.

    Args:
        use_proj_attn: the answer when it is not None.
        include_fc: the answer otherwise.

    Raises:
        TypeError: if ``use_proj_attn`` is neither a bool nor None.
    """
    if use_proj_attn is None:
        return bool(include_fc)
    if not isinstance(use_proj_attn, bool):
        raise TypeError(f"use_proj_attn must be True, False or None (follow include_fc), got {use_proj_attn!r}.")
    return use_proj_attn


def check_sizes(hidden_size: int, num_heads: int, dropout_rate: float, dim_head: int | None = None) -> None:
    """
    Check what every block with attention heads is built from.

    Raises:
        ValueError: if ``dropout_rate`` is outside of [0, 1], there is no head, or neither ``dim_head`` is given nor
            ``hidden_size`` divisible by ``num_heads``.
    """
    if not (0 <= dropout_rate <= 1):
        raise ValueError(f"dropout_rate should be between 0 and 1, got {dropout_rate}.")
    if num_heads < 1:
        raise ValueError(f"num_heads should be at least 1, got {num_heads}.")
    if not dim_head and hidden_size % num_heads != 0:
        raise ValueError(f"hidden_size {hidden_size} should be divisible by num_heads {num_heads}.")
