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

"""Computes a streamed network: step by step, part by part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from monai.networks.blocks.reach import computes_as_declared
from monai.networks.blocks.volume_statistics import Statistics, normalize, type_of_statistics
from monai.networks.blocks.volume_steps import (
    Attend,
    Branch,
    Layer,
    Modulate,
    Normalize,
    Operation,
    Pointwise,
    Resize,
    Step,
    overwrites,
)
from monai.networks.volumes.exchange import Ranks
from monai.networks.volumes.stream_attention import attend_in_slabs
from monai.networks.volumes.stream_fetch import parts
from monai.networks.volumes.stream_plan import Plan
from monai.networks.volumes.stream_ranks import fetch, over_ranks
from monai.networks.volumes.stream_sizes import Box, SizedStep, Sizes, VolumeSize, nearest_positions
from monai.networks.volumes.stream_storage import Layout, Resting, Storage, Transfers, part_of

__all__ = ["Run", "measure_steps", "sizes_after"]

IN_PLACE = {F.silu, F.relu}


class Operations:
    """
    Computes the operations of steps on parts.

    Args:
        read: gives a part of a volume on the device, by the volume's number, and whether it is a copy that may be
            overwritten.
        statistics: gives mean and variance of the groups of a volume.
    """

    def __init__(
        self,
        read: Callable[[int, Box], tuple[torch.Tensor, bool]],
        statistics: Callable[[int, int], tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        self.read = read
        self.statistics = statistics

    def part(self, step: SizedStep, box: Box) -> torch.Tensor:
        """Compute a part of what a step makes."""
        x, own = self._chain(step.step.operations, step.step.source, step.boxes(box), step.volumes)
        if step.step.plus is not None:
            x = _sum(x, own, self._branch(step.step.plus, box)[0])
        for operation in step.step.then:
            x = _pointwise(operation.function, x, True)
        return x

    def _branch(self, branch: Branch, box: Box) -> tuple[torch.Tensor, bool]:
        """Compute a part of what is added to a result, or modulates one; and whether it may be overwritten."""
        return self._chain(branch.operations, branch.source, [box] * (len(branch.operations) + 1))

    def _chain(
        self,
        operations: Sequence[Operation],
        source: int,
        boxes: Sequence[Box],
        volumes: Sequence[VolumeSize] = (),
    ) -> tuple[torch.Tensor, bool]:
        """
        Compute operations one after another.

        Args:
            operations: the operations.
            source: number of the volume that the first one gets.
            boxes: which part each of them gets, and the last one gives.
            volumes: the same of whole volumes; only a :class:`Resize` asks for them.

        Returns:
            the part, and whether it may be overwritten
        """
        x, own = self.read(source, boxes[0])
        for index, operation in enumerate(operations):
            if not own and overwrites(operation):
                x, own = x.clone(), True
            given = x
            if isinstance(operation, Resize):
                x = _resize(x, volumes[index], volumes[index + 1], boxes[index], boxes[index + 1])
            else:
                x = self._apply(operation, x, own, source, boxes[index], boxes[index + 1])
            own = own or not _same_memory(x, given)
        return x, own

    def _apply(
        self, operation: Operation, x: torch.Tensor, own: bool, source: int, given: Box, box: Box
    ) -> torch.Tensor:
        """The part of an operation's result in ``box``, of the part ``x`` of its input in ``given``."""
        if isinstance(operation, Layer):
            return _layer(operation, x, given, box)
        if isinstance(operation, Normalize):
            return self._normalize(operation, x, source)
        if isinstance(operation, Modulate):
            return self._modulate(operation, x, box)
        if isinstance(operation, Pointwise):
            return _pointwise(operation.function, x, own)
        raise TypeError(f"{operation} is no operation on parts.")

    def _modulate(self, operation: Modulate, x: torch.Tensor, box: Box) -> torch.Tensor:
        scale, own = self._branch(operation.scale, box)
        shift, _ = self._branch(operation.shift, box)
        if own and x.dtype == scale.dtype == shift.dtype and x.shape == scale.shape:
            return scale.add_(1).mul_(x).add_(shift)
        return x * (1 + scale) + shift

    def _normalize(self, operation: Normalize, x: torch.Tensor, source: int) -> torch.Tensor:
        module: Any = operation.module
        mean, variance = self.statistics(source, operation.groups or x.shape[1])
        if computes_as_declared(module, "apply_statistics"):
            found: torch.Tensor = module.apply_statistics(x, mean, variance)
            return found
        x = x.to(_type_of_norm(module, x))
        return normalize(x, mean, variance, module.weight, module.bias, module.eps)


def _same_memory(x: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors lie in the same memory: some layers return what they get."""
    return x.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _type_of_norm(module: nn.Module, x: torch.Tensor) -> torch.dtype:
    """Which type a norm gives here: autocast decides it, too."""
    found: torch.Tensor = module(x.new_zeros((1, x.shape[1]) + (2,) * (x.dim() - 2)))
    return found.dtype


def _layer(layer: Layer, x: torch.Tensor, given: Box, box: Box) -> torch.Tensor:
    """Run a layer, and cut what it makes of the neighbors away."""
    x = layer.call(x)
    for axis, (reach, (first, _), (begin, end)) in enumerate(zip(layer.reaches, given, box)):
        x = x.narrow(axis + 2, reach.skipped(begin, first), end - begin)
    return x


def _pointwise(function: Callable[..., torch.Tensor], x: torch.Tensor, own: bool) -> torch.Tensor:
    return function(x, inplace=True) if own and function in IN_PLACE else function(x)


def _sum(x: torch.Tensor, own: bool, other: torch.Tensor) -> torch.Tensor:
    return x.add_(other) if own and torch.result_type(x, other) == x.dtype else other + x


def _resize(x: torch.Tensor, old: VolumeSize, new: VolumeSize, box: Box, new_box: Box) -> torch.Tensor:
    for axis, (size, goal) in enumerate(zip(old.sizes, new.sizes)):
        begin, end = new_box[axis]
        positions = nearest_positions(size, goal)[begin:end] - box[axis][0]
        x = x.index_select(axis + 2, positions.to(x.device))
    return x


def measure_steps(sizes: Sizes, device: torch.device) -> Sizes:
    """
    Find the sizes of all volumes: channels and types by running each step on a few positions.

    Args:
        sizes: the steps, and the sizes of the inputs; the others are added to it.
        device: the device that computes.

    Raises:
        ValueError: if an axis is too short for a layer, or volumes of other sizes are added.
    """
    sizes.copies_aside = device.type == "cuda"
    for step in sizes.steps.steps:
        sizes.add(_measured(step, sizes, device))
    return sizes


def _measured(step: Step, sizes: Sizes, device: torch.device) -> SizedStep:
    source = sizes.volume(step.source)
    axes = [source.sizes]
    for operation in step.operations:
        axes.append(sizes_after(operation, axes[-1], sizes))
    if step.plus is not None:
        _refuse_other_sizes(axes[-1], sizes.volume(step.plus.source).sizes)
    blank = [VolumeSize(source.batch, source.channels, each, source.dtype) for each in axes]
    if isinstance(step.operations[0], Attend):
        return SizedStep(step, (source, source), source)
    volumes = [source]

    def read(number: int, box: Box) -> tuple[torch.Tensor, bool]:
        volume = sizes.volume(number)
        shape = (1, volume.channels, *(end - begin for begin, end in box))
        return torch.zeros(shape, dtype=volume.dtype, device=device), True

    def statistics(number: int, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = type_of_statistics(sizes.volume(number).dtype)
        return torch.zeros(1, groups, dtype=dtype, device=device), torch.ones(1, groups, dtype=dtype, device=device)

    run = Operations(read, statistics)
    for index in range(len(step.operations)):
        trial = SizedStep(Step(step.source, step.operations[: index + 1]), tuple(blank[: index + 2]), blank[index + 1])
        found = run.part(trial, _corner(axes[index + 1]))
        volumes.append(VolumeSize(source.batch, found.shape[1], axes[index + 1], found.dtype))
    whole = SizedStep(step, tuple(blank), blank[-1])
    found = run.part(whole, _corner(axes[-1]))
    return SizedStep(step, tuple(volumes), VolumeSize(source.batch, found.shape[1], axes[-1], found.dtype))


def _refuse_other_sizes(made: tuple[int, ...], added: tuple[int, ...]) -> None:
    """
    Raises:
        ValueError: if what is added to a result has other sizes.
    """
    if made != added:
        raise ValueError(
            f"a residual block adds {' x '.join(map(str, added))} positions to {' x '.join(map(str, made))}: its "
            "layers should keep the size."
        )


def _corner(sizes: tuple[int, ...]) -> Box:
    return tuple((0, min(1, size)) for size in sizes)


def sizes_after(operation: Operation, before: tuple[int, ...], sizes: Sizes) -> tuple[int, ...]:
    """
    Sizes of what an operation makes.

    Args:
        operation: the operation.
        before: sizes of what it gets.
        sizes: those of the other volumes.

    Raises:
        ValueError: if an axis is too short for a layer.
    """
    if isinstance(operation, Resize):
        return sizes.volume(operation.like).sizes
    if not isinstance(operation, Layer):
        return before
    after = tuple(reach.output_size(size) for reach, size in zip(operation.reaches, before))
    if min(after) < 1:
        raise ValueError(f"{operation.name} makes nothing of {' x '.join(map(str, before))} positions: too few.")
    return after


class Run:
    """
    One computation of a streamed network.

    Args:
        plan: how it is computed.
        inputs: the inputs, (B, C, sizes) each, on any device.
        storage: where volumes rest.
        device: the device that computes.
        layout: what is contiguous in the result.
        advance: called after every part.
        ranks: those that share the volumes, or None. The inputs are this rank's slabs then, and so is the result.
    """

    def __init__(
        self,
        plan: Plan,
        inputs: Sequence[torch.Tensor],
        storage: Storage,
        device: torch.device,
        layout: Layout,
        advance: Callable[[], Any],
        ranks: Ranks | None = None,
    ) -> None:
        self.plan = plan
        self.storage = storage
        self.layout = layout
        self.advance = advance
        self.ranks = ranks
        self.transfers = Transfers(device)
        self.resting = {number: self._resting(number, x) for number, x in enumerate(inputs)}
        self.known: dict[int, Statistics] = {}
        self.passing: dict[int, tuple[Box, torch.Tensor]] = {}
        self.operations = Operations(self._read, self._statistics)

    def result(self) -> torch.Tensor:
        """Compute all steps, and return what the last one makes, where it rests."""
        sizes = self.plan.sizes
        for number in range(len(sizes.inputs)):
            self._know_input(number)
        for index in range(len(sizes.sized)):
            if self.plan.runs(index):
                self._run(index)
            self._forget(index)
        self.transfers.finish()
        return self.resting[len(sizes.inputs) + len(sizes.sized) - 1].slab

    def _resting(self, number: int, slab: torch.Tensor) -> Resting:
        axis = self.plan.sizes.axis
        return Resting(slab, axis, self.plan.sizes.slab(number)[axis][0])

    def _know_input(self, number: int) -> None:
        """Gather the statistics of an input that a norm reads, slice by slice, and get what other ranks have of it."""
        statistics = Statistics() if self.plan.is_normalized(number) else None
        if statistics is not None:
            for part in self.resting[number].slab.split(1, 2):
                statistics.add(self.transfers.read(part))
        self._share(number, statistics)

    def _run(self, index: int) -> None:
        sizes, lengths = self.plan.sizes, self.plan.lengths[index]
        step, number = sizes.sized[index], len(sizes.inputs) + index
        slab = sizes.slab(number)
        statistics = Statistics() if self.plan.is_normalized(number) else None
        layout = self.layout if index == len(sizes.sized) - 1 else Layout.SLABS
        target = None
        if number not in sizes.again:
            begin, end = slab[sizes.axis]
            target = self._resting(number, self.storage.empty(step.result.of_length(sizes.axis, end - begin), layout))
        for box, part in self._parts(step, slab, lengths):
            if statistics is not None:
                statistics.add(part)
            if target is not None:
                self.transfers.write(target.within(box), part)
            del part  # before the next one is computed
            self.advance()
        if target is not None:
            self.resting[number] = target
        self._share(number, statistics)

    def _share(self, number: int, statistics: Statistics | None) -> None:
        """Add up the statistics of all ranks, and get what this one reads of the slabs of others."""
        sizes = self.plan.sizes
        if self.ranks is not None and statistics is not None:
            area = sizes.volume(number).of_length(sizes.axis, 1).positions
            statistics = over_ranks(statistics, self.ranks, [length * area for length in sizes.cuts[number].lengths])
        if statistics is not None:
            self.known[number] = statistics
        if self.ranks is not None and number in self.plan.fetches:
            held = self.plan.held[number][self.ranks.rank]
            fetch(self.plan.fetches[number], self.resting[number], held, self.storage, self.transfers, self.ranks)

    def _parts(self, step: SizedStep, slab: Box, lengths: tuple[int, ...]) -> Any:
        operation = step.step.operations[0]
        if isinstance(operation, Attend):
            yield from attend_in_slabs(
                operation.module, step.result, slab, lengths[0], lambda box: self._read(step.step.source, box)[0]
            )
            return
        for box in parts(slab, lengths):
            self.passing.clear()
            yield box, self.operations.part(step, box)
        self.passing.clear()

    def _read(self, number: int, box: Box) -> tuple[torch.Tensor, bool]:
        """A part of a volume on the device, and whether it may be overwritten."""
        if number not in self.plan.sizes.again:
            return self.resting[number].read(box, self.transfers)
        if number in self.passing:
            held_box, held = self.passing[number]
            return part_of(held, _within(box, held_box)), False
        part = self.operations.part(self.plan.sizes.step_of(number), box)
        if self.plan.sizes.readers(number) > 1:
            self.passing[number] = box, part
            return part, False
        return part, True

    def _statistics(self, number: int, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.known[number].of_groups(groups)

    def _forget(self, index: int) -> None:
        """Let go of what no later step reads."""
        for number, last in self.plan.last_uses.items():
            if last == index:
                self.resting.pop(number, None)


def _within(box: Box, outer: Box) -> Box:
    return tuple((begin - first, end - first) for (begin, end), (first, _) in zip(box, outer))
