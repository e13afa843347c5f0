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
How attention is computed, as one object; and arguments that the release's blocks do not have, as typed dictionaries.

These arguments are left out where they say nothing, so that a block class of the user's own, which takes the release's
arguments, may stand in for one of this package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import torch

__all__ = [
    "AttentionOptions",
    "block_arguments",
    "check_sizes",
    "dropout_argument",
    "projection_argument",
    "resolve_projection",
    "type_argument",
    "upcast_argument",
]


@dataclass(frozen=True)
class AttentionOptions:
    """
    How attention is computed, whatever its sizes: what a block is built from, and what a network decides once for all
    of its blocks and hands down as one object.

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

    @property
    def projects(self) -> bool:
        """
        Whether attention ends in an output projection.

        Raises:
            TypeError: if ``use_proj_attn`` is neither a bool nor None.
        """
        return resolve_projection(self.use_proj_attn, self.include_fc)


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


class ProjectionArgument(TypedDict, total=False):
    """The argument of an attention block that says whether it ends in an output projection."""

    use_proj_attn: bool


class BlockArguments(ProjectionArgument, total=False):
    """What the networks with a :class:`TransformerBlock` that had no such options now hand to it."""

    use_combined_linear: bool
    use_flash_attention: bool
    norm_eps: float


class UpcastArgument(TypedDict, total=False):
    """The argument of a stage of a diffusion network that says whether attention is computed in float32."""

    upcast_attention: bool


class TypeArgument(TypedDict, total=False):
    """The argument of an attention block that names the type in which q, k and v meet."""

    attention_dtype: torch.dtype


class DropoutArgument(TypedDict, total=False):
    """The argument of a transformer of a diffusion network that says how much is dropped in training."""

    dropout: float


def projection_argument(use_proj_attn: bool | None) -> ProjectionArgument:
    """``use_proj_attn`` as a keyword argument, unless it is None."""
    return {} if use_proj_attn is None else {"use_proj_attn": use_proj_attn}


def upcast_argument(upcast_attention: bool) -> UpcastArgument:
    """``upcast_attention`` as a keyword argument, where it is asked for."""
    return {"upcast_attention": True} if upcast_attention else {}


def type_argument(attention_dtype: torch.dtype | None) -> TypeArgument:
    """``attention_dtype`` as a keyword argument, unless it is None."""
    return {} if attention_dtype is None else {"attention_dtype": attention_dtype}


def dropout_argument(dropout: float | None) -> DropoutArgument:
    """``dropout`` as a keyword argument, unless it is None."""
    return {} if dropout is None else {"dropout": dropout}


def block_arguments(
    use_combined_linear: bool, use_flash_attention: bool, use_proj_attn: bool | None, norm_eps: float = 1e-5
) -> BlockArguments:
    """The options as keyword arguments of a :class:`TransformerBlock`, without those that are its defaults."""
    arguments: BlockArguments = {}
    if use_proj_attn is not None:
        arguments["use_proj_attn"] = use_proj_attn
    if not use_combined_linear:
        arguments["use_combined_linear"] = False
    if use_flash_attention:
        arguments["use_flash_attention"] = True
    if norm_eps != 1e-5:
        arguments["norm_eps"] = norm_eps
    return arguments
