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

"""What one row of the table is made of. All of it is data, which travels to the processes that do the work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["Case", "Goals", "Growth", "Input", "Setting"]

NO_SLOWER = 0.97
"""The ratio that counts as equal: what differs between two runs of the same code."""


@dataclass(frozen=True)
class Input:
    """
    A tensor that a network is called with.

    Args:
        shape: its size.
        below: integers from 0 to ``below - 1``; normally distributed numbers where it is 0.
    """

    shape: tuple[int, ...]
    below: int = 0


@dataclass(frozen=True)
class Goals:
    """
    What a case is to reach. None: nothing is asked.

    Args:
        release: time of the release over the fork's, at least.
        flash: time of the release with ``use_flash_attention=True`` over the fork's, at least.
        rival: time of the other package over the fork's, at least.
        limit: time of the fork over the limit's, at most.
        memory: memory of the fork over the release's, at most.
        megabytes: memory of the fork in MB, at most.
    """

    release: float | None = NO_SLOWER
    flash: float | None = None
    rival: float | None = None
    limit: float | None = None
    memory: float | None = None
    megabytes: float | None = None


@dataclass(frozen=True)
class Setting:
    """
    What all cases of a run share.

    Args:
        device: where to compute.
        dtype: floating point type of weights and inputs.
        clock: which clock tells the time, a name in ``benchmarks.measure.CLOCKS``.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    clock: str = "wall"

    @property
    def on_gpu(self) -> bool:
        """Whether work goes on after a call has returned."""
        return self.device.startswith("cuda")


@dataclass(frozen=True)
class Case:
    """
    A piece of work that the fork and the release do alike.

    Args:
        name: its name on the command line.
        title: its name in the table.
        group: the name of all its like on the command line.
        target: dotted name of the class, the same in the fork and in the release.
        options: arguments of the class.
        inputs: what it is called with, by the names of its parameters.
        work: what is measured, a name in ``benchmarks.work.WORK``.
        method: which method is called.
        goals: what it is to reach.
        tokens: number of tokens that attend to one another, or that are sampled.
        release: whether the release takes part.
        flash: whether the release takes part once more, with ``use_flash_attention=True``.
        rival: whether another package takes part, if it is installed.
        compiled: whether the network is compiled.
        memory: whether memory is measured.
        slow: whether ``--quick`` leaves it out.
        curve: the curve of the picture that it belongs to.
    """

    name: str
    title: str
    group: str
    target: str
    options: Mapping[str, Any]
    inputs: Mapping[str, Input]
    work: str = "forward"
    method: str = "__call__"
    goals: Goals = field(default_factory=Goals)
    tokens: int = 0
    release: bool = True
    flash: bool = False
    rival: bool = False
    compiled: bool = False
    memory: bool = True
    slow: bool = False
    curve: str | None = None


@dataclass(frozen=True)
class Growth:
    """
    How the cost of several cases grows with their tokens. It is told where all of them were measured.

    Args:
        title: what grows.
        cases: names of the cases, by their number of tokens.
        cost: "seconds" or "bytes".
        per_doubling: the largest factor by which the cost may grow with each doubling; otherwise the exponent is
            bounded.
        at_most: the bound, of the largest factor per doubling or of the exponent of the fitted power law.
    """

    title: str
    cases: tuple[str, ...]
    cost: str
    at_most: float
    per_doubling: bool = False
