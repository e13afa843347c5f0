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

from typing import Any

import torch

from monai.networks.blocks.attention_loading import Loading, input_weights
from monai.networks.checkpoints.untrained import only_one_untrained

__all__ = ["adapt_projection", "note_stale_cross_attention", "write_identity"]

DROPPED = (
    "output projections were dropped. They were never trained: their weights still have torch's initial distribution, "
    "uniform within 1/sqrt(width), and those of q, k and v beside them no longer do. So MONAI 1.4 writes them with "
    "include_fc=False, and does not use them. If that network did use them, build this one with use_proj_attn=True."
)
KEPT = (
    "output projections were loaded that were never trained: their weights still have torch's initial distribution, "
    "uniform within 1/sqrt(width), and those of q, k and v beside them no longer do. So MONAI 1.4 writes them with "
    "include_fc=False, and does not use them: then the outputs differ, and this network should be built with "
    "use_proj_attn=False."
)
STALE = (
    "cross attentions were loaded that were never trained. MONAI 1.4 and 1.5 wrote them without using them: then the "
    "outputs differ, and this network should be built with with_cross_attention=False."
)


def adapt_projection(block: Any, state_dict: dict[str, torch.Tensor], prefix: str, loading: Loading) -> None:
    """
    Bring the output projection of a checkpoint to the form of an attention block. Changes ``state_dict``.

    A checkpoint without any projection gets identities where the block has one. A projection that its network never
    used is dropped where the block has none.

    Args:
        block: the :class:`AttentionBlock`.
        state_dict: the checkpoint.
        prefix: of the block's keys.
        loading: what is known about the checkpoint.
    """
    if f"{prefix}out_proj.weight" not in state_dict:
        if block.use_proj_attn and _was_without(block, state_dict, prefix, loading):
            write_identity(block, state_dict, prefix)
        return
    if loading.is_old or block.attention_kind != "self" or loading.facts.projection_used:
        return
    if loading.facts.projection_used is False:
        _drop(state_dict, prefix)
        if block.use_proj_attn:
            write_identity(block, state_dict, prefix)
    elif loading.projections_were_never_trained:
        loading.note(KEPT if block.use_proj_attn else DROPPED, f"{prefix}out_proj.weight")
        if not block.use_proj_attn:
            _drop(state_dict, prefix)


def write_identity(block: Any, state_dict: dict[str, torch.Tensor], prefix: str) -> None:
    """Give the block at ``prefix`` a projection that changes nothing. Changes ``state_dict``."""
    values = input_weights(state_dict, prefix)[0]
    width = block.inner_dim
    state_dict[f"{prefix}out_proj.weight"] = torch.eye(width, dtype=values.dtype, device=values.device)
    state_dict[f"{prefix}out_proj.bias"] = torch.zeros(width, dtype=values.dtype, device=values.device)


def note_stale_cross_attention(state_dict: dict[str, torch.Tensor], prefix: str, loading: Loading) -> None:
    """Have the user warned where the block at ``prefix`` was trained, and its cross attention was not."""
    own, cross = input_weights(state_dict, f"{prefix}attn."), input_weights(state_dict, f"{prefix}cross_attn.")
    if own and cross and only_one_untrained(cross, own):
        loading.note(STALE, f"{prefix}cross_attn")


def _drop(state_dict: dict[str, torch.Tensor], prefix: str) -> None:
    for kind in ("weight", "bias"):
        state_dict.pop(f"{prefix}out_proj.{kind}", None)


def _was_without(block: Any, state_dict: dict[str, torch.Tensor], prefix: str, loading: Loading) -> bool:
    """
    Whether the block's network had no projection, rather than that the checkpoint has lost it: no other block of the
    kind has one, and the rest of the block is there.
    """
    return (
        not loading.is_old
        and not loading.holds_projections(block.attention_kind)
        and block.inner_dim == block.hidden_input_size
        and bool(input_weights(state_dict, prefix))
    )
