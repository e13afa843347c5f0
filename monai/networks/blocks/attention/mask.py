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

__all__ = ["allowed_keys", "attention_weights", "causal_buffer", "lower_triangle", "mask_of_part", "resolve_mask"]

NOT_A_MASK = (
    'Nonzero means "attend" here: pass a mask of bools, integers, or the numbers 0 and 1. Of a mask that is added to '
    "the logits, 0 to attend and -inf not to, pass attn_mask == 0; of probabilities, attn_mask > 0.5. A finite bias is "
    "no mask: a position embedding of your own may add one to the logits, see rel_pos_embedding."
)


def resolve_mask(attn_mask: torch.Tensor, batch: int, heads: int, queries: int, keys: int) -> torch.Tensor:
    """
    Bring an attention mask to the form that every path of the core takes.

    Args:
        attn_mask: nonzero where a query may attend to a key: (B, K) over keys, (B, Q, K), or (B, 1 or heads, Q, K);
            a batch size of 1 serves the whole batch. Of floating type, it holds 0 and 1 alone.
        batch: B, the batch size.
        heads: number of attention heads.
        queries: Q, number of query tokens.
        keys: K, number of key tokens.

    Returns:
        bool tensor that broadcasts to (B, heads, Q, K).

    Raises:
        ValueError: if the mask has another shape, or other floating values. Values are looked at in eager mode and in
            TorchScript; a traced, compiled or exported graph, and a graph captured for CUDA, take any value but 0 for
            "attend".
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
    if mask.is_floating_point():
        _refuse_other_values(mask)
    return mask != 0


def _refuse_other_values(mask: torch.Tensor) -> None:
    """
    Raises:
        ValueError: if a mask holds values other than 0 and 1, where its values can be read now.
    """
    if torch.jit.is_scripting():
        if bool(((mask != 0) & (mask != 1)).any()):
            raise ValueError("attn_mask holds other floating values than 0 and 1: pass bools, True to attend.")
    elif _holds_others(mask):
        values = mask[(mask != 0) & (mask != 1)].flatten()[:1000].tolist()
        found = list(dict.fromkeys(map(str, values)))[:5]
        raise ValueError(f"attn_mask holds other floating values than 0 and 1: {', '.join(found)}. {NOT_A_MASK}")


def _holds_others(mask: torch.Tensor) -> bool:
    """Whether a mask holds values other than 0 and 1; False where its values cannot be read."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or mask.is_meta:
        return False
    if mask.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    try:
        return bool(((mask != 0) & (mask != 1)).any())
    except RuntimeError:  # a tensor without values: inside of torch.func.vmap, make_fx or a fake mode
        return False


def lower_triangle(queries: int, keys: int, first: int = 0, device: Optional[torch.device] = None) -> torch.Tensor:
    """Causal mask of the queries from number ``first`` on: bool (1, 1, queries, keys), True where key <= query."""
    rows = torch.arange(first, first + queries, device=device)
    return (torch.arange(keys, device=device) <= rows[:, None])[None, None]  # which every exporter knows, unlike tril


def causal_buffer(
    length: int, dtype: torch.dtype = torch.float32, device: Optional[torch.device] = None
) -> torch.Tensor:
    """
    The causal mask of ``length`` tokens as blocks register it: (1, 1, length, length), ones and zeros, as floats since
    averages of weights take nothing else. It is never on the meta device, which nothing can be moved away from. That of
    no tokens has one axis, so that ``net.to(memory_format=torch.channels_last_3d)`` leaves it alone.
    """
    if torch.empty(0, device=device).is_meta:
        device = torch.device("cpu")
    if length == 0:
        return torch.ones(0, dtype=dtype, device=device)
    return lower_triangle(length, length, device=device).to(dtype)


def allowed_keys(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The queries of a mask that may attend to nothing, and the mask with these attending to everything.

    Kernels and exporters disagree about rows without a key; what such a query then gets is cleared afterwards.
    """
    dead = ~mask.any(dim=-1, keepdim=True)
    return dead, mask | dead


def attention_weights(logits: torch.Tensor, mask: Optional[torch.Tensor]) -> torch.Tensor:
    """
    Softmax of attention logits over the keys that the mask allows.

    Args:
        logits: (B, heads, Q, K).
        mask: bool, broadcastable to the logits, or None. A query without any key gets zeros.
    """
    if mask is None:
        return logits.softmax(dim=-1)
    dead, allowed = allowed_keys(mask)
    return logits.masked_fill(~allowed, float("-inf")).softmax(dim=-1).masked_fill(dead, 0.0)


def mask_of_part(
    mask: Optional[torch.Tensor], causal: bool, start: int, part: torch.Tensor, k: torch.Tensor
) -> Optional[torch.Tensor]:
    """The mask between some queries, ``part``, whose first one is number ``start``, and the keys ``k``."""
    if causal:
        return lower_triangle(part.shape[2], k.shape[2], start, part.device)
    if mask is not None and mask.shape[2] > 1:
        return mask[:, :, start : start + part.shape[2]]
    return mask
