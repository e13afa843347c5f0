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

"""Recording rows of attention while a network runs as it always does."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn as nn

from monai.data.meta_tensor import MetaTensor
from monai.networks.blocks.attention.block import AttentionBlock
from monai.networks.state_dict.torch_private import runs_backward

from .blocks import attention_blocks, choose_blocks, unwrapped
from .maps import AttentionMap
from .places import NO_GRID, Place, Queries, call_arguments, image_size, token_grids

__all__ = [
    "AttentionCall",
    "AttentionCapture",
    "attention_call",
    "capture_attention",
    "is_recomputed",
    "plain",
    "row_chunks",
]

CHUNK = 2**24
"""Number of attention weights that are computed at once unless ``chunk_size`` is given: 64 MB in float32."""


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """
    What an attention block computed with in one call.

    Args:
        x: the block's input, (B, Q, C).
        q: queries, (B, heads, Q, D).
        k: keys, (B, heads, K, D).
        v: values, (B, heads, K, D).
        attn_mask: the mask that the block was given.
        own_keys: whether the keys are the block's own tokens.
    """

    x: torch.Tensor
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    attn_mask: torch.Tensor | None
    own_keys: bool


def attention_call(block: AttentionBlock, args: tuple, kwargs: dict[str, Any]) -> AttentionCall:
    """
    Compute q, k and v of a call of ``block`` again, without gradient; inside of its forward hook, so that autocast is
    as it was.
    """
    values = {name: plain(value) for name, value in call_arguments(block, args, kwargs).items()}
    x, context = values["x"], values.get("context")
    with torch.no_grad():
        q, k, v = block.project(x) if context is None else block.project(x, context)  # type: ignore[operator]
    return AttentionCall(x, q, k, v, values.get("attn_mask"), context is None)


def plain(value: Any) -> Any:
    """A tensor without metadata, which the blocks would carry through every operation; anything else as it is."""
    return value.as_tensor() if isinstance(value, MetaTensor) else value


def is_recomputed() -> bool:
    """Whether a backward pass is running: then activation checkpointing calls the modules a second time."""
    return runs_backward()


def row_chunks(
    block: AttentionBlock, call: AttentionCall, queries: torch.Tensor, chunk_size: int | None = None
) -> Iterator[tuple[slice, torch.Tensor]]:
    """
    The attention weights of some queries, a few at a time.

    Args:
        block: the block that was called.
        call: see :func:`attention_call`.
        queries: numbers of the queries, (N,).
        chunk_size: number of queries at a time; by default as many as make :data:`CHUNK` weights.

    Yields:
        a part of ``range(N)`` and its rows, (B, heads, queries of the part, K)
    """
    if chunk_size is None:
        chunk_size = max(1, CHUNK // max(1, call.k[..., 0].numel()))
    for start in range(0, queries.numel(), chunk_size):
        part = queries[start : start + chunk_size]
        yield slice(start, start + part.numel()), block.attention_rows(call.x, call.q, call.k, part, call.attn_mask)


def _rows(
    block: AttentionBlock, call: AttentionCall, queries: torch.Tensor, average_heads: bool, chunk_size: int | None
) -> torch.Tensor:
    """Rows of all ``queries``, (B, heads or 1, N, K)."""
    batch, heads, keys = call.k.shape[:3]
    shape = (batch, 1 if average_heads else heads, queries.numel(), keys)
    result = None
    for part, rows in row_chunks(block, call, queries, chunk_size):
        if average_heads:
            rows = rows.mean(dim=1, keepdim=True)
        if rows.shape == shape:
            return rows
        result = rows.new_empty(shape) if result is None else result
        result[:, :, part] = rows
    if result is None:  # an empty batch or no query
        result = call.q.new_empty(shape)
    return result


class AttentionCapture:
    """
    Context manager that records attention, see :func:`capture_attention`.

    Attributes:
        maps: what was recorded, in the order of the calls. Entering the context again empties it.
    """

    def __init__(
        self,
        net: nn.Module,
        blocks: str | Sequence[str] = "*",
        queries: Any = "all",
        average_heads: bool = False,
        chunk_size: int | None = None,
    ) -> None:
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size should be a number of queries, at least 1, got {chunk_size}.")
        self.maps: list[AttentionMap] = []
        self.average_heads, self.chunk_size = average_heads, chunk_size
        self.blocks = choose_blocks(attention_blocks(net), blocks)
        self.queries = Queries(queries)
        self._net = net
        self._layouts = token_grids(unwrapped(net))
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._image: tuple[int, ...] | None = None
        self._net_runs = False
        self._holder_sizes: dict[nn.Module, tuple[int, ...] | None] = {}
        self._check_queries()

    def _check_queries(self) -> None:
        """Refuse, before anything runs, queries that a chosen block cannot have."""
        for asked, lack, has in (
            (self.queries.on_image, "lie on no grid, so that no voxel belongs to their tokens", "has_grid"),
            (self.queries.kind == "class", "have no class token", "class_tokens"),
        ):
            without = [name for name, block in self.blocks.items() if not getattr(self._layouts[block], has)]
            if asked and without:
                others = [name for name in self.blocks if name not in without]
                remedy = f"choose blocks={others}" if others else "choose other queries: 'all', or token numbers"
                raise ValueError(f"the blocks {without} {lack}: {remedy}.")

    def __enter__(self) -> AttentionCapture:
        if self._handles:
            raise RuntimeError("this capture is recording already: make another one by capture_attention().")
        attention_blocks(self._net)  # it may have been compiled meanwhile
        self.maps = []
        self._image, self._net_runs = None, False
        self._register()
        return self

    def __exit__(self, exc_type: Any, exc: Any, traceback: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._holder_sizes = {}
        if exc_type is None and not self.maps:
            warnings.warn(
                "capture_attention recorded nothing: none of the chosen blocks was called inside the context. Compiled "
                "and scripted copies of the network, and its cached decoder, run without the hooks.",
                stacklevel=2,
            )

    def _register(self) -> None:
        hold = self._handles.append
        hold(self._net.register_forward_pre_hook(self._enter_net, with_kwargs=True))
        hold(self._net.register_forward_hook(self._leave_net, always_call=True))
        for child in unwrapped(self._net).children():
            hold(child.register_forward_pre_hook(self._enter_child, with_kwargs=True))
        holders = [self._layouts[block].holder for block in self.blocks.values()]
        for holder in dict.fromkeys(holder for holder in holders if holder is not None):
            hold(holder.register_forward_pre_hook(partial(self._enter_holder, holder), with_kwargs=True))
        for name, block in self.blocks.items():
            hold(block.register_forward_hook(partial(self._record, name, block), with_kwargs=True))

    def _enter_net(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._image, self._net_runs = image_size(unwrapped(module), args, kwargs), True

    def _leave_net(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._net_runs = False

    def _enter_child(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Methods such as ``encode`` pass by the network's own call: then a part of it is given the image."""
        if not self._net_runs and not is_recomputed():
            self._image = image_size(module, args, kwargs)

    def _enter_holder(self, holder: nn.Module, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._holder_sizes[holder] = image_size(module, args, kwargs)

    def _record(
        self,
        name: str,
        original: AttentionBlock,
        block: AttentionBlock,  # `original`, or its replica on another device
        args: tuple,
        kwargs: dict[str, Any],
        output: Any,
    ) -> None:
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            raise RuntimeError(
                f"attention of {name!r} cannot be captured while the network is traced, compiled or exported: leave "
                "the context first."
            )
        if is_recomputed():
            return
        image = self._image  # before the block's own parts are called again, which are given no image
        call = attention_call(block, args, kwargs)
        layout = self._layouts.get(original, NO_GRID)
        grid = layout.grid_on(image) if layout.holder is None else self._holder_sizes.get(layout.holder)
        grid = layout.check(grid, call.q.shape[2])
        key_grid = grid if call.own_keys else NO_GRID.check(layout.key_grid, call.k.shape[2])
        image = image if grid is not None or key_grid is not None else None
        covered = layout.covered(image)
        place = Place(name, call.q.shape[2], layout.class_tokens, grid, image, covered)
        queries = self.queries.tokens(place).to(call.q.device)
        with torch.no_grad():
            weights = _rows(block, call, queries, self.average_heads, self.chunk_size)
        earlier = [m for m in self.maps if m.name == name and m.weights.device == weights.device]
        class_tokens = layout.class_tokens if call.own_keys else 0
        self.maps.append(
            AttentionMap(name, len(earlier), weights, queries, grid, key_grid, class_tokens, image, covered)
        )


def capture_attention(
    net: nn.Module,
    blocks: str | Sequence[str] = "*",
    queries: Any = "all",
    average_heads: bool = False,
    chunk_size: int | None = None,
) -> AttentionCapture:
    """
    Record what the attention blocks of a network attend to, while it runs as it always does.

    Inside the context every call of a chosen block adds an :class:`AttentionMap` to ``maps``: the softmax rows of the
    chosen queries, as ``save_attn=True`` would keep them, computed from the block's inputs beside the fused kernel.
    Outputs and gradients stay as they are. The memory grows with the number of queries times that of keys; only
    ``queries="all"`` makes whole matrices. A sliding window gives maps of each window. On several GPUs
    ``DataParallel`` gives a map for each part of the batch.

    Args:
        net: a network with attention blocks of :mod:`monai.networks.blocks`, not compiled and not scripted.
        blocks: name pattern of the blocks, or several (:mod:`fnmatch`), such as ``"blocks.*.attn"``. A pattern may
            match the name of a module around the block as well: ``"*middle_block*"``. Defaults to all blocks.
        queries: whose attention is recorded: ``"all"`` (the default); ``"class"``, the class token; voxel coordinates
            of the network's input image, a sequence of (x, y) or (x, y, z) in the order of its axes; a bool mask over
            its spatial shape, with or without a channel axis, for every token whose cell holds any of the mask; or a
            1-D integer tensor of token numbers, which suits blocks on no grid.
        average_heads: whether to keep the mean over the heads. Defaults to False.
        chunk_size: number of queries at a time; None (the default) makes as many as fit 64 MB.

    Raises:
        RuntimeError: if the network, or a part of it, is compiled, scripted, or decodes on cached keys and values.
        TypeError: if ``queries`` or ``blocks`` is of none of these types.
        ValueError: if there is no attention block, a pattern matches none (the message lists their names), or a chosen
            block has no such queries; in the forward pass, if they lie outside of the image it is given.

    Example::

        with torch.no_grad(), capture_attention(net, blocks="blocks.*", queries=[(40, 52, 31)]) as capture:
            net(image)
        for attention in capture.maps:
            print(attention.name, attention.on_grid().shape)  # (B, heads, 1, patches along every axis)
    """
    return AttentionCapture(net, blocks, queries, average_heads, chunk_size)
