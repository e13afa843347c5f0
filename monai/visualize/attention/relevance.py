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

"""Attention followed through the layers of a network, with and without gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn as nn

from monai.networks.blocks.attention.block import AttentionBlock
from monai.networks.blocks.attention.token_grid import TokenGrid

from .blocks import attention_blocks, choose_blocks, unwrapped
from .capture import AttentionCall, attention_call, is_recomputed, plain, row_chunks
from .maps import AttentionMap
from .places import Place, Queries, image_size, token_grids

__all__ = ["attention_relevance", "attention_rollout"]


def attention_rollout(
    maps: Sequence[AttentionMap], discard_ratio: float = 0.0, tokens: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Follow attention through the layers of a transformer: how much each of its last tokens draws from each of its first
    (Abnar and Zuidema, https://arxiv.org/abs/2005.00928).

    Every layer passes half of a token on as it is (the residual connection) and half by its attention, averaged over
    the heads; the rollout is the product over the layers.

    Args:
        maps: all rows of each layer's self attention, from the first layer to the last: the maps of
            ``capture_attention(net, queries="all")`` of one forward pass.
        discard_ratio: fraction of each row's weights, the smallest ones, that is left out as noise; the rest is scaled
            to sum to one again. Defaults to 0.0.
        tokens: numbers of the last tokens to follow, (N,); None for all.

    Returns:
        (B, N, T), every row summing to one; N is T, the number of tokens, unless ``tokens`` is given.

    Raises:
        ValueError: if there is no map, a map does not hold all rows of a self attention, the maps differ in their
            number of tokens, or ``discard_ratio`` is outside of [0, 1).

    Example::

        with torch.no_grad(), capture_attention(vit, average_heads=True) as capture:
            vit(image)
        rollout = attention_rollout(capture.maps, tokens=torch.tensor([0]))  # of the class token
        on_patches = dataclasses.replace(capture.maps[-1], weights=rollout[:, None]).on_grid()
    """
    if not 0 <= discard_ratio < 1:
        raise ValueError(f"discard_ratio should be at least 0 and less than 1, got {discard_ratio}.")
    _check_layers(maps)
    count = maps[0].weights.shape[-1]
    result = torch.eye(count, device=maps[0].weights.device).expand(maps[0].weights.shape[0], -1, -1)
    if tokens is not None:
        result = result[:, tokens.to(result.device)]
    # from the last layer down: few rows stay few
    for layer in reversed(maps):
        attention = _discard_smallest(layer.weights.float().mean(dim=1), discard_ratio)
        step = 0.5 * (attention + torch.eye(count, device=attention.device))
        # a row that masks emptied passes its token on
        result = torch.bmm(result, step / step.sum(dim=-1, keepdim=True))
    return result


def _check_layers(maps: Sequence[AttentionMap]) -> None:
    if len(maps) == 0:
        raise ValueError("attention_rollout needs at least one map, one for each layer.")
    tokens = maps[0].weights.shape[-1]
    for layer in maps:
        found = tuple(layer.weights.shape[-2:])
        every = found == (tokens, tokens) and torch.equal(layer.queries.cpu(), torch.arange(tokens))
        if not every:
            raise ValueError(
                f"{layer.name!r} holds {found[0]} rows of {found[1]} keys, but a rollout takes all rows of layers of "
                f'self attention between the same {tokens} tokens: capture with queries="all" and choose such blocks.'
            )


def _discard_smallest(attention: torch.Tensor, ratio: float) -> torch.Tensor:
    """Set the smallest weights of each row to zero, and scale the rest to sum to one."""
    count = int(attention.shape[-1] * ratio)
    if count == 0:
        return attention
    smallest = attention.topk(count, dim=-1, largest=False).indices
    kept = attention.scatter(-1, smallest, 0.0)
    return kept / kept.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(kept.dtype).tiny)


def attention_relevance(
    net: nn.Module,
    inputs: torch.Tensor | Sequence[Any],
    target: int | torch.Tensor | Callable[[Any], torch.Tensor],
    queries: Any = "class",
    blocks: str | Sequence[str] = "*",
    chunk_size: int | None = None,
) -> AttentionMap:
    """
    Tell which tokens of a vision transformer speak for a result: attention weighted by the result's gradient
    (Chefer, Gur and Wolf, https://arxiv.org/abs/2103.15679, the rule of self attention).

    Each layer adds ``mean over heads of (gradient x attention)+`` times the relevance so far, which starts as the
    identity. The fused kernel computes the forward and backward pass; the layers' matrices are made a few rows at a
    time, and the gradients of parameters stay as they were.

    Args:
        net: a :class:`~monai.networks.nets.ViT` or another network in which one stack of self attention works on the
            same tokens, in evaluation mode.
        inputs: the network's input, or a sequence of its positional arguments.
        target: class whose logit is explained, one for the batch or (B,); or a function of the network's output that
            gives a number to explain, whose items of the batch do not mix. Logits are the output, or the first of
            several outputs, (B, classes).
        queries: the tokens whose relevance is given, see :func:`capture_attention`. Defaults to the class token.
        blocks: the layers, by name pattern. Defaults to all.
        chunk_size: number of rows computed at a time; None chooses.

    Returns:
        a map named "relevance": its weights, (B, 1, N, T), are what each token is worth for each of the queries; they
        are at least zero and do not sum to one. ``on_grid()`` folds them to the patches.

    Raises:
        RuntimeError: if the network is compiled or scripted, drops attention weights in training mode, or no chosen
            block was called.
        TypeError: if ``target`` is none of these.
        ValueError: if a chosen block attends to a context, the blocks differ in their tokens, or a class, the queries
            or the blocks do not exist.

    Example::

        relevance = attention_relevance(vit, image, target=1).on_grid()  # (B, 1, 1, patches along every axis)
    """
    chosen, asked = choose_blocks(attention_blocks(net), blocks), Queries(queries)
    _check_blocks(chosen)
    args = (inputs,) if torch.is_tensor(inputs) else tuple(inputs)
    with torch.inference_mode(False), torch.enable_grad():
        args = tuple(_differentiable(value) for value in args)
        calls = _run(net, chosen, args, target)
    last = calls[-1]
    layout = token_grids(unwrapped(net))[last.block]
    attention = _place(calls, layout, image_size(unwrapped(net), args, {}), asked)
    rows = torch.eye(last.call.k.shape[2], device=last.call.q.device)[attention.queries]
    rows = rows.expand(last.call.q.shape[0], -1, -1)
    with torch.no_grad():
        for layer in reversed(calls):
            rows = rows + layer.pull_back(rows, chunk_size)
    return AttentionMap(**{**vars(attention), "weights": rows[:, None]})


class _Layer:
    """A call of a block, and the gradient of the heads' result in it."""

    def __init__(self, block: AttentionBlock) -> None:
        self.block = block
        self.heads: torch.Tensor
        self.gradient: torch.Tensor | None = None
        self.call: AttentionCall

    def pull_back(self, rows: torch.Tensor, chunk_size: int | None) -> torch.Tensor:
        """``rows``, (B, N, T), times the layer's mean over heads of (gradient x attention)+, (B, T, T)."""
        result = torch.zeros_like(rows)
        if self.gradient is None:  # the target does not depend on this layer's attention
            return result
        gradient, v = self.block.split_heads(self.gradient).float(), self.call.v.float()
        queries = torch.arange(self.call.q.shape[2], device=rows.device)
        for part, weights in row_chunks(self.block, self.call, queries, chunk_size):
            of_weights = torch.matmul(gradient[:, :, part], v.transpose(-2, -1))
            weighted = (of_weights * weights).clamp_min(0).mean(dim=1)
            result += torch.bmm(rows[:, :, part], weighted)
        return result


def _check_blocks(blocks: dict[str, AttentionBlock]) -> None:
    for name, block in blocks.items():
        if block.attention_kind != "self":
            raise ValueError(f"{name!r} attends to a context; the rule is that of self attention: choose other blocks.")
        if block.drop_weights.training and block.drop_weights.p > 0:
            raise RuntimeError(f"{name!r} drops attention weights at random in training: call net.eval() first.")


def _differentiable(value: Any) -> Any:
    """A copy of an image that gradients flow to, so that layers without trainable parameters have some too."""
    if not torch.is_tensor(value) or not value.is_floating_point():
        return value
    return plain(value).detach().clone().requires_grad_()


def _run(net: nn.Module, blocks: dict[str, AttentionBlock], args: tuple, target: Any) -> list[_Layer]:
    """Run the network and give the layers, in the order of their calls, the gradients of the target."""
    layers: list[_Layer] = []
    handles = []
    for block in blocks.values():
        handles.append(block.register_forward_pre_hook(partial(_begin, layers)))
        handles.append(block.out_rearrange.register_forward_hook(partial(_keep_heads, layers)))
        handles.append(block.register_forward_hook(partial(_finish, layers), with_kwargs=True))
    try:
        score = _score(net(*args), target)
        if not layers:
            raise RuntimeError(f"none of the chosen blocks was called: {list(blocks)}.")
        gradients = torch.autograd.grad(score, [layer.heads for layer in layers], allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    for layer, gradient in zip(layers, gradients):
        layer.gradient = gradient
    return layers


def _begin(layers: list[_Layer], block: nn.Module, args: tuple) -> None:
    if not is_recomputed():
        layers.append(_Layer(block))  # type: ignore[arg-type]


def _keep_heads(layers: list[_Layer], rearrange: nn.Module, args: tuple, output: torch.Tensor) -> None:
    """The result of all heads, (B, T, heads x D), before the output projection."""
    if not is_recomputed():
        layers[-1].heads = output


def _finish(layers: list[_Layer], block: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
    if not is_recomputed():
        layers[-1].call = attention_call(layers[-1].block, args, kwargs)


def _score(output: Any, target: Any) -> torch.Tensor:
    """The number to explain, summed over the batch."""
    if callable(target):
        score = target(output)
        if not torch.is_tensor(score):
            raise TypeError(f"target should give a tensor, got {type(score).__name__}.")
        return score.sum()
    logits = output if torch.is_tensor(output) else output[0]
    if isinstance(target, bool) or not isinstance(target, (int, torch.Tensor)):
        raise TypeError(f"target should be a class number, (B,) class numbers or a function, got {target!r}.")
    if logits.dim() != 2:
        raise ValueError(
            f"the network's output has the shape {list(logits.shape)}, not (B, classes): give a function of the output "
            "as target."
        )
    classes = torch.as_tensor(target, device=logits.device).expand(logits.shape[0])
    if classes.min() < 0 or classes.max() >= logits.shape[1]:
        raise ValueError(f"target {target} is no class of the network's {logits.shape[1]}.")
    out: torch.Tensor = logits.gather(1, classes[:, None]).sum()
    return out


def _place(layers: list[_Layer], layout: TokenGrid, image: tuple[int, ...] | None, asked: Queries) -> AttentionMap:
    """The relevance's map, without its weights: which queries there are, and where tokens lie."""
    tokens = layers[-1].call.k.shape[2]
    for layer in layers:
        if layer.call.k.shape[2] != tokens:
            raise ValueError(
                f"the chosen blocks work on {layer.call.k.shape[2]} and {tokens} tokens: choose a stack of blocks that "
                "work on the same ones."
            )
    grid = layout.check(layout.grid_on(image), tokens)
    image = image if grid is not None else None
    covered = layout.covered(image)
    queries = asked.tokens(Place("relevance", tokens, layout.class_tokens, grid, image, covered))
    queries = queries.to(layers[-1].call.q.device)
    empty = torch.empty(0)
    return AttentionMap("relevance", 0, empty, queries, grid, grid, layout.class_tokens, image, covered)
