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
How a streamed network fits into the memory of a device: where its volumes rest, and how large the parts are.

All of it is arithmetic on sizes, before anything is computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from monai.networks.blocks.volume_statistics import type_of_statistics
from monai.networks.blocks.volume_steps import Attend
from monai.networks.volumes.stream_attention import attends_in_slabs
from monai.networks.volumes.stream_fetch import Fetch, make_fetch
from monai.networks.volumes.stream_sizes import SizedStep, Sizes, Span, VolumeSize

__all__ = ["MemoryTooSmall", "Plan", "bytes_in_one_piece", "make_plan"]

THICKNESSES = (32, 8, 1)
"""Every axis is cut down to the first thickness before one is cut further: thin parts are slow."""
SHARE_AT_REST = 0.5
"""Which part of the device's memory volumes may take that rest on it."""
ATTENTION_AT_ONCE = 12
"""Norm, tokens, q, k, v, the kernel's copies of them, its result, projection and sum: volumes that attention holds."""
ATTENTION_IN_PARTS = 2
"""Keys and values of the whole volume."""
STATISTICS_AT_ONCE = 6
"""Copies of the statistics of one volume while a norm computes with them: of its groups, scales and shifts."""


class MemoryTooSmall(ValueError):
    """No part fits into the memory that is allowed."""


@dataclass(frozen=True)
class Plan:
    """
    How a streamed network is computed.

    Args:
        sizes: the steps and their sizes. Volumes in ``sizes.again`` are computed again where they are read.
        lengths: how large the parts of each step are, axis by axis.
        last_uses: the last step that reads each volume that rests.
        held: which slices of each volume every rank reads or computes.
        fetches: how ranks get what they read of the slabs of others, by the number of the volume.
        device: how many bytes the device holds at most, beside the weights and the inputs.
        storage: how many bytes rest at most in the storage.
    """

    sizes: Sizes
    lengths: list[tuple[int, ...]]
    last_uses: dict[int, int]
    held: list[list[Span]]
    fetches: dict[int, Fetch]
    device: int
    storage: int

    @property
    def number_of_parts(self) -> int:
        """How many parts are computed in all."""
        return sum(self.parts_of(index) for index in range(len(self.lengths)))

    def parts_of(self, index: int) -> int:
        """In how many parts a step is computed; 0 where it is computed on the way to others only."""
        if not self.runs(index):
            return 0
        slab = self.sizes.slab(len(self.sizes.inputs) + index)
        return math.prod(-(-(end - begin) // length) for (begin, end), length in zip(slab, self.lengths[index]))

    def runs(self, index: int) -> bool:
        """Whether a step is computed by itself: its result rests, or others need statistics of it."""
        number = len(self.sizes.inputs) + index
        return number not in self.sizes.again or self.is_normalized(number)

    def is_normalized(self, number: int) -> bool:
        """Whether statistics of a volume are needed."""
        return any(number in step.normalized() for step in self.sizes.sized)


def make_plan(sizes: Sizes, memory: int, rests_on_device: bool, before: int = 0) -> Plan:
    """
    Choose where volumes rest, and how large the parts are.

    Args:
        sizes: the steps and their sizes. It says in ``again`` afterwards what is not kept.
        memory: how many bytes the device may hold.
        rests_on_device: whether there is no other storage, so that volumes rest there or are computed again.
        before: how many bytes the device holds before the first step. Defaults to 0.

    Raises:
        MemoryTooSmall: if that does not fit, or there is a step of which no part does, with the smallest memory that
            suffices.
    """
    plan = _try_plan(sizes, memory, rests_on_device)
    if isinstance(plan, Plan) and before <= memory:
        return replace(plan, device=max(plan.device, before))
    if isinstance(plan, Plan):
        raise MemoryTooSmall(
            f"memory={memory:,} bytes are too few for a first run on a few positions: the smallest that does is "
            f"memory={before:,}."
        )
    smallest = max(before, _smallest_memory(sizes, max(memory, 1), rests_on_device))
    step = sizes.sized[plan]
    raise MemoryTooSmall(
        f"memory={memory:,} bytes are too few for step {plan + 1} of {len(sizes.sized)}, which makes "
        f"{step.result.channels} channels of {' x '.join(map(str, step.result.sizes))}: the smallest that does is "
        f"memory={smallest:,}" + (", or less with storage='cpu' or a folder." if rests_on_device else ".")
    )


def _try_plan(sizes: Sizes, memory: int, rests_on_device: bool) -> Plan | int:
    """A plan, or the number of the first step of which no part fits."""
    sizes.again = set()
    if not rests_on_device:
        return _plan_with(sizes, memory, rests_on_device)
    # the more volumes rest, the less is computed again; limits that do not depend on the memory make sure that what
    # fits into a smaller one fits
    limits = sorted({0, *_bytes_at_rest(sizes, sizes.last_uses())}, reverse=True)
    found: Plan | int = 0
    for limit in (limit for limit in limits if limit <= memory * SHARE_AT_REST):
        _compute_again(sizes, limit)
        found = _plan_with(sizes, memory, rests_on_device)
        if isinstance(found, Plan):
            break
    return found


def _plan_with(sizes: Sizes, memory: int, rests_on_device: bool) -> Plan | int:
    """Choose the parts, when it is known what rests."""
    last_uses, held, first = sizes.last_uses(), sizes.held(), len(sizes.inputs)
    at_rest = _bytes_at_rest(sizes, last_uses, held)
    lengths, fetches, most = [], {}, 0
    statistics = _bytes_of_statistics(sizes)
    for index in range(len(sizes.sized)):
        resting = statistics + (at_rest[index] if rests_on_device else 0)
        found = _largest_parts(sizes, index, memory - resting)
        if found is None:
            return index
        lengths.append(found[0])
        most = max(most, resting + found[1])
        for number in (first + index, *(range(first) if index == 0 else ())):
            if number in sizes.again or held[number] == _slabs(sizes, number):
                continue
            fetch = make_fetch(sizes.volume(number), sizes.axis, _slabs(sizes, number), held[number], memory - resting)
            if fetch is None:
                return index
            fetches[number] = fetch
            most = max(most, resting + fetch.bytes)
    return Plan(sizes, lengths, last_uses, held, fetches, most, 0 if rests_on_device else max(at_rest))


def _bytes_of_statistics(sizes: Sizes) -> int:
    """How many bytes the statistics of all volumes take, and what is computed of them: as much for every channel."""
    numbers = {number for step in sizes.sized for number in step.normalized()}
    found = [sizes.volume(number) for number in numbers]
    own = [2 * each.batch * each.channels * type_of_statistics(each.dtype).itemsize for each in found]
    return sum(own) + STATISTICS_AT_ONCE * max(own, default=0)


def _slabs(sizes: Sizes, number: int) -> list[Span]:
    """The slabs of all ranks of a volume."""
    return [sizes.cuts[number].range_of(rank) for rank in range(sizes.ranks)]


def _smallest_memory(sizes: Sizes, memory: int, rests_on_device: bool) -> int:
    """The smallest memory for which there is a plan, to a tenth of a percent."""
    low, high = memory, memory * 2
    while not isinstance(_try_plan(sizes, high, rests_on_device), Plan):
        low, high = high, high * 2
    while high - low > max(1, high // 1000):
        middle = (low + high) // 2
        if isinstance(_try_plan(sizes, middle, rests_on_device), Plan):
            high = middle
        else:
            low = middle
    return high


def _compute_again(sizes: Sizes, memory: int) -> None:
    """Do not keep some volumes, so that those that rest at the same time take at most ``memory`` bytes."""
    first = len(sizes.inputs)
    sizes.again = again = set()
    attended = {step.step.source for step in sizes.sized if step.attends}
    for index, step in enumerate(sizes.sized):
        number = first + index
        kept = index == len(sizes.sized) - 1 or step.attends or number in attended
        if not kept and max(_bytes_at_rest(sizes, sizes.last_uses())[: index + 1]) > memory:
            again.add(number)


def _bytes_at_rest(sizes: Sizes, last_uses: dict[int, int], held: list[list[Span]] | None = None) -> list[int]:
    """How many bytes rest while each step is computed, with its result: slabs, or what the ranks hold around them."""
    first, found = len(sizes.inputs), []
    taken = [_bytes_of_one(sizes, number, held) for number in range(first + len(sizes.sized))]
    for index in range(len(sizes.sized)):
        resting = sum(taken[number] for number in range(first) if last_uses.get(number, -1) >= index)
        for made in range(index + 1):
            number = first + made
            kept = number not in sizes.again
            if kept and (made == index or last_uses.get(number, made) >= index):
                resting += taken[number]
        found.append(resting)
    return found


def bytes_in_one_piece(sizes: Sizes) -> int:
    """How many bytes the device holds at most where the network itself computes its steps, with inputs made for it."""
    found, resting = 0, _bytes_at_rest(sizes, sizes.last_uses())
    for index, (step, others) in enumerate(zip(sizes.sized, resting)):
        own = ATTENTION_AT_ONCE * step.result.bytes if step.attends else sizes.part_bytes(index, step.result.sizes)
        found = max(found, own + others)
    return found + sum(each.bytes for each in sizes.inputs)


def _bytes_of_one(sizes: Sizes, number: int, held: list[list[Span]] | None) -> int:
    """How many bytes a rank's part of a volume takes at most where it rests; the slabs of inputs rest elsewhere."""
    lengths = list(sizes.cuts[number].lengths)
    if held is not None:
        lengths = [end - begin for begin, end in held[number]]
    if number < len(sizes.inputs):
        lengths = [length - own for length, own in zip(lengths, sizes.cuts[number].lengths)]
    return sizes.volume(number).of_length(sizes.axis, max(lengths)).bytes


def _largest_parts(sizes: Sizes, index: int, memory: int) -> tuple[tuple[int, ...], int] | None:
    """The largest parts of a step that fit into ``memory`` bytes, and how many bytes they take; None if none fits."""
    step = sizes.sized[index]
    if step.attends:
        return _largest_parts_of_attention(step, memory)
    whole = sizes.largest_slab(len(sizes.inputs) + index).sizes
    lengths, unit = list(whole), step.unit
    taken = sizes.part_bytes(index, tuple(lengths))
    for thickness in THICKNESSES:
        for axis in _cut_first(len(lengths)):
            while taken > memory and lengths[axis] > thickness * unit:
                lengths[axis] = _next_smaller(whole[axis], lengths[axis], unit)
                taken = sizes.part_bytes(index, tuple(lengths))
    return (tuple(lengths), taken) if taken <= memory else None


def _cut_first(axes: int) -> tuple[int, ...]:
    """
    In which order axes are cut: slabs along the first one are contiguous where they rest. The second one is cut last,
    as on one thread of a CPU torch takes a kernel that is ten times slower, and needs 27 times the input, for 3-D
    convolutions of few channels times positions along the first two axes.
    """
    return (0, *range(axes - 1, 0, -1))


def _next_smaller(size: int, length: int, unit: int) -> int:
    """The length of parts of which there is at least one more, all of about the same length."""
    pieces = -(-size // length) + 1
    units = -(-size // unit)
    return max(1, min(length // unit - 1, -(-units // pieces))) * unit


def _largest_parts_of_attention(step: SizedStep, memory: int) -> tuple[tuple[int, ...], int] | None:
    """Attention takes slabs along the first axis, beside the keys and values of the whole volume."""
    volume, operation = step.result, step.step.operations[0]
    size, *others = volume.sizes
    assert isinstance(operation, Attend)
    in_slabs = attends_in_slabs(operation.module)
    for number in range(1, size + 1 if in_slabs else 2):
        length = -(-size // number)
        slab = ATTENTION_AT_ONCE * volume.bytes_of((length, *others))
        taken = slab if number == 1 else slab + _keys_and_values(operation, volume)
        if taken <= memory:
            return (length, *others), taken
    return None


def _keys_and_values(operation: Attend, volume: VolumeSize) -> int:
    """How many bytes the keys and values of a volume take, with their copies in the type of the attention."""
    block: Any = operation.module
    dtype = block.attn.attention_dtype
    cast: float = 0 if dtype in (None, volume.dtype) else dtype.itemsize / volume.dtype.itemsize
    return math.ceil(ATTENTION_IN_PARTS * volume.bytes * (1 + cast))
