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

"""Slabs: which part of a volume each of several ranks holds, along one spatial axis."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from monai.networks.blocks.reach import Reach

__all__ = ["Slabs", "even_slabs"]


@dataclass(frozen=True)
class Slabs:
    """
    How long the slabs of all ranks are, in the order of the ranks.

    Args:
        lengths: number of slices of each slab.
    """

    lengths: tuple[int, ...]

    @property
    def total(self) -> int:
        """How many slices the volume has."""
        return sum(self.lengths)

    @property
    def begins(self) -> tuple[int, ...]:
        """Where the slabs begin, and the end of the volume."""
        return (0, *accumulate(self.lengths))

    def range_of(self, rank: int) -> tuple[int, int]:
        """Where the slab of a rank begins and ends."""
        begins = self.begins
        return begins[rank], begins[rank + 1]

    def times(self, factor: int) -> Slabs:
        """The slabs where every slice has become ``factor`` of them."""
        return Slabs(tuple(length * factor for length in self.lengths))

    def conflicts_with(self, other: Slabs) -> bool:
        """Whether a rank's own length does not tell which of two cuts it belongs to."""
        return self != other and any(mine == its for mine, its in zip(self.lengths, other.lengths))

    def after(self, reach: Reach, layer: str) -> Slabs:
        """
        The slabs that a layer makes of these.

        Args:
            reach: how far it looks.
            layer: its name, for messages.

        Raises:
            ValueError: if a slab begins inside of one of the layer's strides, or nothing is left of one.
        """
        for begin in self.begins[1:-1]:
            if begin % reach.down:
                raise ValueError(
                    f"{layer} has a stride of {reach.down}, but a slab begins at slice {begin} of its input (slabs of "
                    f"{list(self.lengths)} slices): cut the volume at multiples of the network's total stride, as "
                    "scatter() does."
                )
        size = reach.output_size(self.total)
        ends = [min(end * reach.up // reach.down, size) for end in self.begins[1:-1]]
        begins = [0, *ends, size]
        lengths = tuple(end - begin for begin, end in zip(begins, begins[1:]))
        if min(lengths) < 1:
            raise ValueError(
                f"{layer} leaves slabs of {list(lengths)} slices of slabs of {list(self.lengths)}: use fewer ranks, "
                "another axis or a larger volume."
            )
        return Slabs(lengths)

    def needed_for(self, outputs: Slabs, reach: Reach) -> list[tuple[int, int]]:
        """Which slices of the volume each rank needs for its slab of a layer's ``outputs``: begins and ends."""
        needed = [reach.needed(*outputs.range_of(rank), self.total) for rank in range(len(self.lengths))]
        own = (self.range_of(rank) for rank in range(len(self.lengths)))
        return [(min(first, begin), max(last, end)) for (first, last), (begin, end) in zip(needed, own)]


def even_slabs(length: int, unit: int, ranks: int, axis: int) -> Slabs:
    """
    Cut an axis at multiples of a unit, as evenly as can be; the last slab gets what is left.

    Args:
        length: number of slices.
        unit: see above.
        ranks: number of slabs.
        axis: which spatial axis it is, for messages.

    Raises:
        ValueError: if there are fewer units than slabs.
    """
    units = length // unit
    if units < ranks:
        raise ValueError(
            f"{length} slices along axis {axis} are {units} times {unit}, the network's total stride there: too few "
            f"for {ranks} ranks. Use fewer ranks, another axis or a larger volume."
        )
    begins = [units * rank // ranks * unit for rank in range(ranks)] + [length]
    return Slabs(tuple(end - begin for begin, end in zip(begins, begins[1:])))
