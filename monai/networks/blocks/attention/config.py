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

"""How the attention of a network was built, as rows that a training configuration can record."""

from __future__ import annotations

from typing import Any

import torch.nn as nn

from monai.networks.blocks.attention.block import AttentionBlock
from monai.networks.blocks.attention.positions import Positions

__all__ = ["attention_config"]


def attention_config(net: nn.Module) -> list[dict[str, Any]]:
    """
    Tell how the attention of a network was built, so that a training configuration can record it.

    Args:
        net: any module.

    Returns:
        a row for each attention block inside ``net``, in the order of its modules; ``json`` takes it as it is:

        - ``path``: name of the block, as in ``net.get_submodule``.
        - ``kind``: "cross" for a :class:`CrossAttentionBlock` and its subclasses, else "self".
        - ``heads`` and ``head_width``.
        - ``projection``: whether the block ends in an output projection.
        - ``combined_linear``: whether one linear computes q, k and v; None where the block has no such choice.
        - ``causal``: whether tokens attend to earlier ones only.
        - ``rel_pos``: "decomposed", the class of another relative position embedding, or None.
        - ``dropout``: fraction of the attention weights dropped in training.
        - ``dtype``: type in which q, k and v meet, as "float32"; None leaves them as they are.
    """
    return [_row(path, block) for path, block in net.named_modules() if isinstance(block, AttentionBlock)]


def _row(path: str, block: AttentionBlock) -> dict[str, Any]:
    dtype = block.attention_dtype
    return {
        "path": path,
        "kind": block.attention_kind,
        "heads": block.num_heads,
        "head_width": block.head_dim,
        "projection": block.use_proj_attn,
        "combined_linear": getattr(block, "use_combined_linear", None),
        "causal": block.causal,
        "rel_pos": _rel_pos(block.rel_positional_embedding),
        "dropout": block.dropout_rate,
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
    }


def _rel_pos(embedding: nn.Module | None) -> str | None:
    if embedding is None:
        return None
    named = embedding.kind if isinstance(embedding, Positions) else None
    return named or type(embedding).__name__
