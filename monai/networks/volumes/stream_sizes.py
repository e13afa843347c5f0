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
The sizes of a streamed network: which volumes its steps make, which parts of them a part needs, and how many bytes a
part takes on the device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from monai.networks.blocks.reach import Reach
from monai.networks.blocks.volume_steps import (
    Attend,
    Branch,
    Layer,
    Modulate,
    Normalize,
    Operation,
    Resize,
    Step,
    VolumeSteps,
)
from monai.networks.volumes.slabs import Slabs

__all__ = ["Box", "SizedStep", "Sizes", "Span", "VolumeSize", "needed_box", "nearest_positions", "put"]

Span = tuple[int, int]
"""Where something begins and ends along one axis."""
Box = tuple[Span, ...]
"""A part of a volume: where it begins and ends, axis by axis."""


def put(box: Box, axis: int, span: Span) -> Box:
    """The box with another span along an axis."""
    return (*box[:axis], span, *box[axis + 1 :])


@dataclass(frozen=True)
class VolumeSize:
    """Batch size, number of channels, sizes of the spatial axes and type of a volume."""

    batch: int
    channels: int
    sizes: tuple[int, ...]
    dtype: torch.dtype

    @property
    def whole(self) -> Box:
        """The box of the whole volume."""
        return tuple((0, size) for size in self.sizes)

    def bytes_of(self, lengths: tuple[int, ...]) -> int:
        """How many bytes a part of ``lengths`` positions takes."""
        return self.batch * self.channels * math.prod(lengths) * self.dtype.itemsize

    @property
    def bytes(self) -> int:
        """How many bytes the whole volume takes."""
        return self.bytes_of(self.sizes)

    @property
    def positions(self) -> int:
        """How many positions it has."""
        return math.prod(self.sizes)

    def of_length(self, axis: int, length: int) -> VolumeSize:
        """A volume of as many slices along an axis, and else of the same size."""
        return replace(self, sizes=(*self.sizes[:axis], length, *self.sizes[axis + 1 :]))


@dataclass(frozen=True)
class SizedStep:
    """
    A step, and what flows through it.

    Args:
        step: the step.
        volumes: what each operation gets, and what the last one gives.
        result: what the step makes.
    """

    step: Step
    volumes: tuple[VolumeSize, ...]
    result: VolumeSize

    @property
    def unit(self) -> int:
        """Parts of the result begin at multiples of this number: what lies beside one input."""
        unit = 1
        for operation in self.step.operations:
            if isinstance(operation, Layer):
                unit *= max(reach.up for reach in operation.reaches)
        return unit

    def boxes(self, box: Box) -> list[Box]:
        """Which part each operation needs to get, so that the last one gives ``box``, which stands at the end."""
        boxes = [box]
        for operation, volume in zip(reversed(self.step.operations), reversed(self.volumes[:-1])):
            boxes.insert(0, needed_box(operation, boxes[0], volume.sizes, self.volumes[-1].sizes))
        return boxes

    @property
    def attends(self) -> bool:
        """Whether all positions attend to one another."""
        return any(isinstance(operation, Attend) for operation in self.step.operations)

    def read(self, axis: int, span: Span) -> Iterator[tuple[int, Span]]:
        """Numbers of the volumes that it reads, and which slices along an axis, for some of its result's."""
        if self.attends:
            yield self.step.source, self.volumes[0].whole[axis]
            return
        boxes = self.boxes(put(self.result.whole, axis, span))
        yield self.step.source, boxes[0][axis]
        for operation, box in zip(self.step.operations, boxes[1:]):
            if isinstance(operation, Modulate):
                yield operation.scale.source, box[axis]
                yield operation.shift.source, box[axis]
        if self.step.plus is not None:
            yield self.step.plus.source, span

    def sources(self) -> list[int]:
        """Numbers of the volumes that it reads, one that is read twice twice."""
        return [self.step.source, *(branch.source for branch in self.step.branches)]

    def normalized(self) -> list[int]:
        """Numbers of the volumes whose statistics it needs."""
        chains = [(self.step.source, self.step.operations)]
        chains += [(branch.source, branch.operations) for branch in self.step.branches]
        return [source for source, chain in chains if any(isinstance(operation, Normalize) for operation in chain)]


def needed_box(operation: Operation, box: Box, sizes: tuple[int, ...], resized: tuple[int, ...]) -> Box:
    """
    Which part of its input an operation needs.

    Args:
        operation: the operation.
        box: the part of its output.
        sizes: of its whole input.
        resized: sizes of the output of a :class:`Resize`.
    """
    if isinstance(operation, Layer):
        return tuple(reach.needed(begin, end, size) for reach, (begin, end), size in zip(operation.reaches, box, sizes))
    if isinstance(operation, Resize):
        found = []
        for (begin, end), size, new in zip(box, sizes, resized):
            positions = nearest_positions(size, new)[begin:end]
            found.append((int(positions[0]), int(positions[-1]) + 1))
        return tuple(found)
    return box


@functools.lru_cache(maxsize=64)
def nearest_positions(size: int, new_size: int) -> torch.Tensor:
    """Which position of an axis nearest-neighbor interpolation takes for each position of the new one."""
    positions = torch.arange(size, dtype=torch.float64)[None, None]
    return torch.nn.functional.interpolate(positions, size=new_size, mode="nearest")[0, 0].long()


def _length_needed(reach: Reach, length: int, size: int) -> int:
    """How many inputs a part of ``length`` outputs needs at most, wherever it lies."""
    return min(size, -(-length * reach.down // reach.up) + reach.before + reach.after + reach.down + (reach.up > 1))


def _made_of(operation: Operation, before: tuple[int, ...], after: tuple[int, ...]) -> tuple[int, ...]:
    """How many positions an operation makes, before those of the neighbors are cut away."""
    if not isinstance(operation, Layer):
        return after
    return tuple(
        max(length * reach.up // reach.down, kept) for reach, length, kept in zip(operation.reaches, before, after)
    )


@dataclass
class Meter:
    """Counts the bytes that are held at once."""

    now: int = 0
    most: int = 0

    def hold(self, size: int) -> int:
        """Count ``size`` bytes, and return them."""
        self.now += size
        self.most = max(self.most, self.now)
        return size

    def free(self, size: int) -> None:
        """Stop counting ``size`` bytes."""
        self.now -= size

    def touch(self, size: int) -> None:
        """Count ``size`` bytes for a moment."""
        self.free(self.hold(size))


@dataclass
class Sizes:
    """
    A network's steps for inputs of a certain size, which several ranks may share: each computes a slab of every volume.

    Args:
        steps: the steps.
        inputs: sizes of the inputs.
        cuts: the slabs of every volume's ranks, those of the inputs first; one slab each unless given.
        axis: the spatial axis along which volumes are cut. Defaults to 0.
        rank: the number of this rank. Defaults to 0.
        sized: the steps with their sizes; filled one after another.
        again: numbers of the volumes that are not kept, but computed again where they are read.
        copies_aside: whether a part is on its way to where it rests while the next one is computed. Defaults to False.
    """

    steps: VolumeSteps
    inputs: list[VolumeSize]
    cuts: list[Slabs] = field(default_factory=list)
    axis: int = 0
    rank: int = 0
    sized: list[SizedStep] = field(default_factory=list)
    again: set[int] = field(default_factory=set)
    copies_aside: bool = False
    _held: dict[frozenset[int], list[list[Span]]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.cuts = self.cuts or [Slabs((each.sizes[self.axis],)) for each in self.inputs]

    def volume(self, number: int) -> VolumeSize:
        """Size of a volume."""
        made = number - len(self.inputs)
        return self.inputs[number] if made < 0 else self.sized[made].result

    @property
    def ranks(self) -> int:
        """How many ranks share the volumes."""
        return len(self.cuts[0].lengths)

    def add(self, step: SizedStep) -> None:
        """Add the next step."""
        cut = self.cuts[step.step.source]
        for operation in step.step.operations:
            if isinstance(operation, Layer):
                cut = cut.after(operation.reaches[self.axis], operation.name)
            elif isinstance(operation, Resize):
                cut = self.cuts[operation.like]
        self.sized.append(step)
        self.cuts.append(cut)

    def slab(self, number: int) -> Box:
        """Which part of a volume this rank computes."""
        return put(self.volume(number).whole, self.axis, self.cuts[number].range_of(self.rank))

    def largest_slab(self, number: int) -> VolumeSize:
        """Size of the largest slab of a volume."""
        return self.volume(number).of_length(self.axis, max(self.cuts[number].lengths))

    def held(self) -> list[list[Span]]:
        """Which slices of every volume each rank reads or computes: its slab, and what its steps read around it."""
        key = frozenset(self.again)
        if key not in self._held:
            self._held[key] = self._find_held()
        return self._held[key]

    def _find_held(self) -> list[list[Span]]:
        found = [[cut.range_of(rank) for rank in range(self.ranks)] for cut in self.cuts]
        if self.ranks == 1:
            return found
        first = len(self.inputs)
        for index in reversed(range(len(self.sized))):
            number = first + index
            for rank in range(self.ranks):
                # what is computed again is computed as far as it is read
                span = found[number][rank] if number in self.again else self.cuts[number].range_of(rank)
                for source, (begin, end) in self.sized[index].read(self.axis, span):
                    known = found[source][rank]
                    found[source][rank] = min(known[0], begin), max(known[1], end)
        return found

    def step_of(self, number: int) -> SizedStep:
        """The step that makes a volume."""
        return self.sized[number - len(self.inputs)]

    def readers(self, number: int) -> int:
        """How often the steps read a volume."""
        return sum(step.sources().count(number) for step in self.sized)

    def last_uses(self) -> dict[int, int]:
        """The last step that reads each volume, itself or through volumes that are computed again."""
        last: dict[int, int] = {}
        for index, step in enumerate(self.sized):
            for source in self._sources_that_rest(step):
                last[source] = index
        return last

    def _sources_that_rest(self, step: SizedStep) -> set[int]:
        found: set[int] = set()
        for source in step.sources():
            found |= self._sources_that_rest(self.step_of(source)) if source in self.again else {source}
        return found

    def part_bytes(self, index: int, lengths: tuple[int, ...]) -> int:
        """How many bytes the device holds while step number ``index`` computes a part of ``lengths`` positions."""
        meter = Meter()
        step = self.sized[index]
        if self.copies_aside:
            meter.hold(step.result.bytes_of(lengths))
        result = self._count(step, lengths, meter, set())
        meter.touch(result)  # a part is copied on its way to where it rests
        return meter.most

    def _count(self, step: SizedStep, lengths: tuple[int, ...], meter: Meter, held: set[int]) -> int:
        """Go through a step as it is computed, and return how many bytes its result holds."""
        needed = self._lengths(step, lengths)
        x = self._count_read(step.step.source, needed[0], meter, held)
        for operation, before, after, volumes in zip(
            step.step.operations, needed, needed[1:], zip(step.volumes, step.volumes[1:])
        ):
            into, out = volumes[0].bytes_of(before), volumes[1].bytes_of(_made_of(operation, before, after))
            if isinstance(operation, Modulate):
                for branch in (operation.scale, operation.shift):
                    x += self._count_branch(branch, after, step, meter, held)
            # kernels of convolutions, and casts, work on a copy
            meter.touch(out + max(into, out) if isinstance(operation, (Layer, Modulate)) else out + into)
            meter.hold(out)
            meter.free(x)
            x = out
        if step.step.plus is not None:
            x += self._count_branch(step.step.plus, lengths, step, meter, held)
        result = step.result.bytes_of(lengths)
        meter.hold(result)
        meter.free(x)
        return result

    def _count_branch(
        self, branch: Branch, lengths: tuple[int, ...], step: SizedStep, meter: Meter, held: set[int]
    ) -> int:
        read = self._count_read(branch.source, lengths, meter, held)
        if not branch.operations:
            return read
        made = step.result.bytes_of(lengths)
        meter.touch(made)
        meter.free(read)
        return meter.hold(made)

    def _count_read(self, number: int, lengths: tuple[int, ...], meter: Meter, held: set[int]) -> int:
        if number not in self.again:
            return meter.hold(self.volume(number).bytes_of(lengths))
        if number in held:
            return 0
        held.add(number)
        result = self._count(self.step_of(number), lengths, meter, held)
        return 0 if self.readers(number) > 1 else result  # it stays until it is read for the second time

    @staticmethod
    def _lengths(step: SizedStep, lengths: tuple[int, ...]) -> list[tuple[int, ...]]:
        """How many positions each operation gets at most, and the last one gives."""
        found = [lengths]
        for operation, volume in zip(reversed(step.step.operations), reversed(step.volumes[:-1])):
            after = found[0]
            if isinstance(operation, Layer):
                after = tuple(
                    _length_needed(reach, length, size)
                    for reach, length, size in zip(operation.reaches, after, volume.sizes)
                )
            elif isinstance(operation, Resize):
                new = step.volumes[-1].sizes
                after = tuple(
                    min(size, length * size // goal + 2) for length, size, goal in zip(after, volume.sizes, new)
                )
            found.insert(0, after)
        return found
