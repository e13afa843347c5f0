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

"""What the ranks of a streamed network read of one another's slabs, and in how many rounds they get it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from monai.networks.volumes.stream_sizes import Box, Span, VolumeSize, put

__all__ = ["Fetch", "make_fetch", "parts"]

COPIES = 3
"""How often the device holds what a rank sends: brought there, made contiguous, and put together."""


@dataclass(frozen=True)
class Fetch:
    """
    How ranks get what they read of the slabs of others.

    Args:
        volume: the volume.
        axis: the spatial axis along which it is cut.
        spans: which slices a rank has that another one reads, by the numbers of both.
        lengths: how large the parts of one round are.
        bytes: how many bytes the device holds in a round at most.
    """

    volume: VolumeSize
    axis: int
    spans: dict[tuple[int, int], Span]
    lengths: tuple[int, ...]
    bytes: int

    def rounds(self) -> Iterator[dict[tuple[int, int], Box]]:
        """What is sent in each round, by the numbers of the rank that has it and the one that reads it."""
        thickness = self.lengths[self.axis]
        longest = max(end - begin for begin, end in self.spans.values())
        for box in parts(put(self.volume.whole, self.axis, (0, longest)), self.lengths):
            first = box[self.axis][0]
            sent = {}
            for pair, (begin, end) in self.spans.items():
                if begin + first < end:
                    sent[pair] = put(box, self.axis, (begin + first, min(end, begin + first + thickness)))
            yield sent


def make_fetch(volume: VolumeSize, axis: int, slabs: Sequence[Span], held: Sequence[Span], memory: int) -> Fetch | None:
    """
    Choose in which parts ranks get what they read of the slabs of others.

    Args:
        volume: the volume.
        axis: the spatial axis along which it is cut.
        slabs: which slices each rank has.
        held: which it reads.
        memory: how many bytes the device may hold meanwhile.

    Returns:
        how they get it, or None if no part fits
    """
    spans = {}
    for giver, (first, last) in enumerate(slabs):
        for taker, (begin, end) in enumerate(held):
            low, high = max(first, begin), min(last, end)
            if giver != taker and low < high:
                spans[giver, taker] = low, high
    longest = max(end - begin for begin, end in spans.values())
    lengths = list(volume.of_length(axis, longest).sizes)
    taken = _bytes(volume, axis, spans, lengths, len(slabs))
    while taken > memory:
        cut = axis if lengths[axis] > 1 else max(range(len(lengths)), key=lambda each: lengths[each])
        if lengths[cut] == 1:
            return None
        lengths[cut] = -(-lengths[cut] // 2)
        taken = _bytes(volume, axis, spans, lengths, len(slabs))
    return Fetch(volume, axis, spans, tuple(lengths), taken)


def _bytes(
    volume: VolumeSize, axis: int, spans: dict[tuple[int, int], Span], lengths: Sequence[int], ranks: int
) -> int:
    """How many bytes a rank holds in a round at most."""
    most = 0
    for rank in range(ranks):
        slices = 0
        for (giver, taker), (begin, end) in spans.items():
            slices += min(end - begin, lengths[axis]) * (COPIES * (giver == rank) + (taker == rank))
        most = max(most, slices)
    return volume.bytes_of(tuple(lengths)) // lengths[axis] * most


def parts(box: Box, lengths: tuple[int, ...]) -> Iterator[Box]:
    """The parts of a box, the last axis first."""
    axes = [
        [(first, min(first + length, end)) for first in range(begin, end, length)]
        for (begin, end), length in zip(box, lengths)
    ]
    yield from itertools.product(*axes)
