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
Layers that run on a slab in a few chunks, where nothing is kept for a backward pass.

A chunk inside of a slab is a view of it, so that a layer never needs a copy of the slab with its neighbors, and what a
kernel allocates for itself is as large as a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn

from monai.networks.blocks.reach import CONVOLUTIONS, Reach, reach_of
from monai.networks.volumes.exchange import empty_beside

__all__ = ["Surrounded", "convolution_in", "in_chunks"]

LARGE = 2**20
"""Bytes of a slab from which on it is worth a chunk."""
MOST = 8
"""How many chunks there are at most."""
SHORTEST = 4
"""How many slices a chunk has at least."""
POSITIONS = 20480
"""On a CPU torch convolves by oneDNN only if the first four sizes of its input multiply to more."""
MORE_WORK = 1.1
"""How much more than in one piece a layer may compute that pads every chunk."""

Call = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Surrounded:
    """
    A slab of a volume, and slices of other ranks on both sides of it.

    Args:
        slab: this rank's.
        before: the slices before it.
        after: the slices behind it.
        dim: the axis along which the volume is cut.
        begin: the number of the slab's first slice in the volume.
        total: how many slices the volume has.
    """

    slab: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor
    dim: int
    begin: int
    total: int

    def cut(self, begin: int, end: int) -> torch.Tensor:
        """Slices of the volume: a view where they are those of the slab."""
        place, parts = self.begin - self.before.shape[self.dim], []
        for part in (self.before, self.slab, self.after):
            first, last = max(begin - place, 0), min(end - place, part.shape[self.dim])
            if first < last:
                parts.append(part.narrow(self.dim, first, last - first))
            place += part.shape[self.dim]
        return parts[0] if len(parts) == 1 else torch.cat(parts, self.dim)


def in_chunks(call: Call, source: Surrounded, reach: Reach, begin: int, end: int, core: Any = None) -> torch.Tensor:
    """
    Run a layer on a slab, chunk by chunk.

    Args:
        call: the layer, on a part of the volume.
        source: the slab, and what the layer reaches.
        reach: how far it looks.
        begin: the first of its outputs that is wanted, in the volume.
        end: where they end.
        core: the convolution that is all of the layer, see :func:`convolution_in`, or None.
    """
    out: torch.Tensor | None = None
    steps = _steps(source, reach, begin, end, core is None)
    for first, last in zip(steps, steps[1:]):
        part = _part(call, source, reach, first, last) if core is None else _window(call, source, first, last, core)
        if len(steps) == 2:
            return part
        if out is None:
            out = empty_beside(part, source.dim, end - begin)
        out.narrow(source.dim, first - begin, last - first).copy_(part)
        del part  # before the next one is computed
    assert out is not None
    return out


def _steps(source: Surrounded, reach: Reach, begin: int, end: int, pads: bool) -> list[int]:
    """Where chunks of the outputs begin, and the end of the last one."""
    slab, length = source.slab, end - begin
    number = min(MOST, length // SHORTEST, slab.numel() * slab.element_size() // LARGE)
    if pads:
        lost = max(1, (reach.before + reach.after) * reach.up // reach.down)
        number = min(number, int((MORE_WORK * (length + lost) - length) / lost))
    if slab.device.type == "cpu" and source.dim < 4:
        others = math.prod(slab.shape[:4]) // slab.shape[source.dim]
        number = min(number, slab.shape[source.dim] // (POSITIONS // others + 1))
    number = max(1, number)
    inner = [(begin + length * each // number) // reach.up * reach.up for each in range(1, number)]
    return [begin, *inner, end]


def _part(call: Call, source: Surrounded, reach: Reach, begin: int, end: int) -> torch.Tensor:
    """Some outputs of any layer: those that it makes of what lies beyond the part are left out."""
    first, last = reach.needed(begin, end, source.total)
    return call(source.cut(first, last)).narrow(source.dim, reach.skipped(begin, first), end - begin)


def _window(call: Call, source: Surrounded, begin: int, end: int, core: _Core) -> torch.Tensor:
    """Some outputs of a convolution, which pads nothing but the ends of the volume."""
    first = begin * core.stride - core.padding
    last = (end - 1) * core.stride - core.padding + core.span
    x = source.cut(max(first, 0), min(last, source.total))
    missing = [max(-first, 0), max(last - source.total, 0)]
    if any(missing):
        x = nn.functional.pad(x, [0, 0] * (x.dim() - 1 - source.dim) + missing)
    with core.unpadded():
        return call(x)


@dataclass
class _Core:
    """
    The convolution that is all of a layer.

    Args:
        conv: the convolution.
        axis: the spatial axis along which the volume is cut.
    """

    conv: Any
    axis: int

    @property
    def stride(self) -> int:
        """Its stride along the axis."""
        return int(self.conv.stride[self.axis])

    @property
    def padding(self) -> int:
        """How many slices it adds at both ends."""
        return int(self.conv.padding[self.axis])

    @property
    def span(self) -> int:
        """How many slices it looks at."""
        return int(self.conv.dilation[self.axis] * (self.conv.kernel_size[self.axis] - 1) + 1)

    @contextmanager
    def unpadded(self) -> Iterator[None]:
        """Let it add nothing along the axis."""
        kept = self.conv.padding
        self.conv.padding = (*kept[: self.axis], 0, *kept[self.axis + 1 :])
        try:
            yield
        finally:
            self.conv.padding = kept


def convolution_in(layer: nn.Module, reach: Reach, axis: int) -> _Core | None:
    """The convolution that is all of a layer; None if there is none, or more than it."""
    inner: list[Any] = [each for each in layer.modules() if isinstance(each, CONVOLUTIONS)]
    if len(inner) != 1 or isinstance(inner[0].padding, str) or inner[0].padding_mode != "zeros":
        return None
    if inner[0] is layer:
        return _Core(layer, axis)
    same = hasattr(layer, "in_one_piece") and reach_of(inner[0], axis) == reach
    return _Core(inner[0], axis) if same else None
