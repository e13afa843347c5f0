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

"""Derivatives that torch's fused kernels do not have: forward-mode ones, and the gradient of their gradient."""

from __future__ import annotations

from typing import Any, Optional

import torch

from monai.networks.blocks.attention.mask import attention_weights, lower_triangle
from monai.networks.state_dict.torch_private import inputs_of_this_node, is_transformed, saves_through_hooks

__all__ = ["attention_gradients", "differentiable_twice", "kernel_serves"]

FUSED = "ScaledDotProduct"
"""How the names of the fused kernels' nodes in the backward graph begin."""
NO_SECOND_GRADIENT = (
    "the fused kernel has no second derivative of attention with dropout: it keeps to itself what it dropped. Choose "
    "torch's own math: with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH): ..., or no dropout."
)


def kernel_serves() -> bool:
    """
    Whether the fused kernel can do what is done around it. It has no forward-mode derivative, ``torch.func``'s nested
    transforms ask for more than it has, and script-based ONNX export knows it from opset 14 on only.
    """
    if torch.jit.is_scripting():
        return True
    else:
        if torch.jit.is_tracing() and torch.onnx.is_in_onnx_export():
            return False
        return not is_transformed()


def differentiable_twice(
    out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: Optional[torch.Tensor],
    causal: bool,
    scale: float,
    dropout_p: float,
) -> torch.Tensor:
    """
    Where a backward pass is itself to be differentiated (``create_graph=True``), have the gradient of a fused kernel
    computed from the attention matrix. An ordinary backward pass runs the kernel's own.

    Args:
        out: what the kernel returned, with a gradient.
        q: queries (B, heads, Q, D).
        k: keys (B, heads, K, D).
        v: values (B, heads, K, D).
        mask: bool, broadcastable to (B, heads, Q, K), without a query that has no key, or None.
        causal: whether query i attends to keys 0 to i only.
        scale: factor of the logits.
        dropout_p: probability with which an attention weight was dropped.

    Returns:
        ``out``
    """
    if saves_through_hooks():
        result: torch.Tensor = _Twice.apply(q, k, v, out, mask, causal, scale, dropout_p)
        return result
    node: Any = out.grad_fn
    if node is not None and node.name().startswith("Slice"):  # CUDA's kernels widen heads, and cut the result
        node = node.next_functions[0][0]
    if node is None or not node.name().startswith(FUSED):  # other kernels are made of operations that have it all
        return out

    def hook(gradients: tuple[Any, ...], of_out: tuple[Any, ...]) -> Optional[tuple[Any, ...]]:
        if not torch.is_grad_enabled() or of_out[0] is None:
            return None
        if dropout_p > 0.0:
            return tuple(None if gradient is None else _Once.apply(gradient) for gradient in gradients)
        # of the node's own, so that this hook keeps none of them in memory
        explicit = attention_gradients(*inputs_of_this_node(), mask, causal, scale, of_out[0])
        found = [None if fused is None else gradient for fused, gradient in zip(gradients, explicit)]
        return (*found, *gradients[3:])

    node.register_hook(hook)
    return out


def attention_gradients(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: Optional[torch.Tensor],
    causal: bool,
    scale: float,
    gradient: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Gradients of attention, by operations that are differentiable themselves.

    Args:
        q: queries (B, heads, Q, D).
        k: keys (B, heads, K, D).
        v: values (B, heads, K, D).
        mask: bool, broadcastable to (B, heads, Q, K), or None.
        causal: whether query i attends to keys 0 to i only.
        scale: factor of the logits.
        gradient: of the result, (B, heads, Q, D).

    Returns:
        those of q, k and v
    """
    if causal:
        mask = lower_triangle(q.shape[2], k.shape[2], device=q.device)
    weights = attention_weights(torch.matmul(q * scale, k.transpose(-2, -1)), mask)
    of_weights = torch.matmul(gradient, v.transpose(-2, -1))
    of_logits = weights * (of_weights - (of_weights * weights).sum(dim=-1, keepdim=True)) * scale
    of_v = torch.matmul(weights.transpose(-2, -1), gradient)
    return torch.matmul(of_logits, k), torch.matmul(of_logits.transpose(-2, -1), q), of_v


class _Twice(torch.autograd.Function):
    """What the hook of :func:`differentiable_twice` does, as a node of its own with q, k and v of its own."""

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, out: Any, mask: Any, causal: Any, scale: Any, dropout_p: Any) -> Any:
        ctx.save_for_backward(q, k, v, mask)
        ctx.causal, ctx.scale, ctx.dropout_p = causal, scale, dropout_p
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *of_out: Any) -> tuple[Any, ...]:
        none = (None, None, None, None)
        if not torch.is_grad_enabled() or ctx.dropout_p > 0.0:
            return (None, None, None, of_out[0], *none)
        q, k, v, mask = ctx.saved_tensors
        return (*attention_gradients(q, k, v, mask, ctx.causal, ctx.scale, of_out[0]), None, *none)


class _Once(torch.autograd.Function):
    """Hands a gradient on, which has no gradient itself; says so where somebody asks for it."""

    @staticmethod
    def forward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> None:
        raise RuntimeError(NO_SECOND_GRADIENT)
