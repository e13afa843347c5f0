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

"""Attention by torch's fused kernel, in parts where that would build the matrix, and what FLOP counters see of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from monai.networks.blocks.attention.derivatives import differentiable_twice
from monai.networks.blocks.attention.mask import allowed_keys, attention_weights, lower_triangle, mask_of_part
from monai.networks.state_dict.torch_private import dispatch_modes

__all__ = ["count_attention", "fused_attention", "fused_attention_with_bias", "runs_now", "sum_over_axes"]

COUNTER = "torch.utils.flop_counter"
_counted: list[Any] = []


def runs_now() -> bool:
    """Whether sizes are those of data: not while a graph is traced or compiled, which is to serve other sizes too."""
    if torch.jit.is_scripting():
        return True
    else:
        return not (torch.compiler.is_compiling() or torch.jit.is_tracing())


def fused_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: Optional[torch.Tensor],
    causal: bool,
    scale: float,
    dropout_p: float,
    part: Optional[int] = None,
) -> torch.Tensor:
    """
    Attention by torch's fused kernel. Where that would build the attention matrix, some queries are computed at a time,
    and again in the backward pass, instead of keeping what that needs of all of them.

    Args:
        q: queries (B, heads, Q, D).
        k: keys (B, heads, K, D).
        v: values (B, heads, K, D).
        mask: bool, broadcastable to (B, heads, Q, K), or None. A query without any key gets zeros.
        causal: whether query i attends to keys 0 to i only.
        scale: factor of the logits.
        dropout_p: probability with which an attention weight is dropped.
        part: number of logits that are computed at once where the kernel would build them all. By default 32 MiB of
            them where they are more than 512 MiB: less would not be quicker in parts, and from 32 MiB on a freed block
            goes back to the system, where smaller ones leave gaps (glibc).

    Returns:
        (B, heads, Q, D)
    """
    if runs_now():
        logits = _logits_of_the_kernel(q, k, mask, dropout_p)
        if logits > 0:
            at_once = 33554432 // q.element_size() if part is None else part
            if logits > (16 * at_once if part is None else part):
                size = (q.shape[2] * at_once + logits - 1) // logits  # rounded up, not to fall below the 32 MiB
                return _in_parts(q, k, v, mask, causal, scale, dropout_p, size)
    return _at_once(q, k, v, mask, causal, scale, dropout_p)


def _at_once(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: Optional[torch.Tensor],
    causal: bool,
    scale: float,
    dropout_p: float,
) -> torch.Tensor:
    if dropout_p > 0.0 and q.is_cpu:  # the kernel of the CPU has no dropout
        if causal:
            mask = lower_triangle(q.shape[2], k.shape[2], device=q.device)
        weights = attention_weights(torch.matmul(q * scale, k.transpose(-2, -1)), mask)
        return torch.matmul(F.dropout(weights, dropout_p).to(v.dtype), v)
    if mask is None:
        return _kernel(q, k, v, None, causal, scale, dropout_p)
    dead, allowed = allowed_keys(mask)
    return _kernel(q, k, v, allowed, False, scale, dropout_p).masked_fill(dead, 0.0)


def _kernel(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: Optional[torch.Tensor],
    causal: bool,
    scale: float,
    dropout_p: float,
) -> torch.Tensor:
    """One call of torch's kernel, to which in eager mode FLOP counters and second derivatives have access."""
    if not torch.jit.is_scripting():
        count_attention()
    out = F.scaled_dot_product_attention(q, k, v, mask, dropout_p, causal, scale=scale)
    if not torch.jit.is_scripting():
        if out.requires_grad and runs_now():
            return differentiable_twice(out, q, k, v, mask, causal, scale, dropout_p)
    return out


def _logits_of_the_kernel(q: torch.Tensor, k: torch.Tensor, mask: Optional[torch.Tensor], dropout_p: float) -> int:
    """
    How many numbers, of a size of Q x K, torch's kernel holds at a time (``python -m benchmarks kernels``).

    The CPU's kernel has no dropout and turns a mask into floats; CUDA's kernels have no float64, and not all of them
    take any width of a head. Other devices have no kernel that works piece by piece.
    """
    if q.is_cuda:
        builds_matrix = q.dtype == torch.float64 or q.shape[3] % 8 != 0
    else:
        builds_matrix = dropout_p > 0.0 or not q.is_cpu
    if builds_matrix:
        return q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
    if mask is not None and mask.shape[2] > 1:
        return mask.numel()
    return 0


def _in_parts(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: Optional[torch.Tensor],
    causal: bool,
    scale: float,
    dropout_p: float,
    size: int,
) -> torch.Tensor:
    """``size`` queries at a time; the backward pass computes them again, but for TorchScript's."""
    parts: list[torch.Tensor] = []
    for start in range(0, q.shape[2], size):
        part = q[:, :, start : start + size]
        keys, values = k, v
        if causal:
            seen = min(start + part.shape[2], k.shape[2])
            keys, values = k[:, :, :seen], v[:, :, :seen]
        part_mask = mask_of_part(mask, causal, start, part, keys)
        if torch.jit.is_scripting() or not torch.is_grad_enabled():
            parts.append(_at_once(part, keys, values, part_mask, False, scale, dropout_p))
        else:
            args = (part, keys, values, part_mask, False, scale, dropout_p)
            parts.append(checkpoint(_at_once, *args, use_reentrant=False))
    return torch.cat(parts, dim=2)


def fused_attention_with_bias(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    terms: list[torch.Tensor],
    mask: Optional[torch.Tensor],
    causal: bool,
    scale: float,
    size: Optional[int] = None,
) -> torch.Tensor:
    """
    Attention by torch's fused kernel with a bias on the logits that is a sum over the axes of the keys' grid. The bias
    is made for some queries at a time: quick on a CPU, where the kernel takes no gradient of it.

    Args:
        q: queries (B, heads, Q, D).
        k: keys (B, heads, K, D).
        v: values (B, heads, K, D).
        terms: what each axis adds, (B, heads, Q, length of the axis), in the order of the axes.
        mask: bool, broadcastable to (B, heads, Q, K), or None. A query without any key gets zeros.
        causal: whether query i attends to keys 0 to i only.
        scale: factor of the logits, without the bias.
        size: number of queries at a time. By default as many as have 2^20 logits, 32 to 128: measured to be quickest,
            as their bias stays in the cache of the processor.

    Returns:
        (B, heads, Q, D)
    """
    if size is None:
        size = min(128, max(32, 1048576 // max(1, k.shape[0] * k.shape[1] * k.shape[2])))
    parts: list[torch.Tensor] = []
    for start in range(0, q.shape[2], size):
        part = q[:, :, start : start + size]
        end = start + part.shape[2]
        bias = sum_over_axes([term[:, :, start:end] for term in terms])
        part_mask = mask_of_part(mask, causal, start, part, k)
        if part_mask is None:
            parts.append(_with_bias(part, k, v, bias, scale))
        else:
            dead, allowed = allowed_keys(part_mask)
            bias = bias.masked_fill(~allowed, float("-inf"))
            parts.append(_with_bias(part, k, v, bias, scale).masked_fill(dead, 0.0))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _with_bias(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, scale: float) -> torch.Tensor:
    if not torch.jit.is_scripting():
        count_attention()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


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


def count_attention() -> None:
    """
    Teach :class:`torch.utils.flop_counter.FlopCounterMode` to count attention on a CPU, once somebody has imported it.

    It counts as torch does for its other fused kernels: two products of matrices forward, five backward, as the kernel
    computes the logits again, where the explicit path has four. A formula that torch or the user has stays.
    """
    if torch.compiler.is_compiling() or _counted:
        return
    counter: Any = sys.modules.get(COUNTER)
    if counter is None:
        return
    formulas: dict[str, Callable] = {
        "_scaled_dot_product_flash_attention_for_cpu": _forward_operations,
        "_scaled_dot_product_flash_attention_for_cpu_backward": _backward_operations,
    }
    for name, formula in formulas.items():
        operation = getattr(torch.ops.aten, name, None)
        if operation is not None and operation not in counter.flop_registry:
            counter.register_flop_formula(operation)(formula)
            _add_to_running(counter, operation)
    _counted.extend(formulas)


def _add_to_running(counter: Any, operation: Any) -> None:
    """A counter that is on already copied the formulas when it was made."""
    for mode in dispatch_modes():
        running = getattr(mode, "counter", None)
        if isinstance(running, counter.FlopCounterMode):
            running.flop_registry.setdefault(operation, counter.flop_registry[operation])


def _forward_operations(q: Sequence[int], k: Sequence[int], v: Sequence[int], *args: Any, **kwargs: Any) -> int:
    batch, heads, queries, width = q
    return 2 * batch * heads * queries * k[2] * (width + v[3])


def _backward_operations(
    gradient: Sequence[int], q: Sequence[int], k: Sequence[int], v: Sequence[int], *args: Any, **kwargs: Any
) -> int:
    batch, heads, queries, width = q
    return 2 * batch * heads * queries * k[2] * (3 * width + 2 * v[3])
