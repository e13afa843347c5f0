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
What a piece of work asks torch for: how many operations, and how many numbers they write. Unlike times, which vary by a
tenth on a machine that others use, these are the same in every run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.case import Case, Setting

if TYPE_CHECKING:
    from benchmarks.processes import Processes

__all__ = ["OperationsRow", "count_operations", "measure_operations", "operations_table"]


@dataclass(frozen=True)
class OperationsRow:
    """
    The operations of a case, each as (of the fork, of the release).

    Args:
        case: the case.
        calls: how many operations.
        numbers: how many numbers they write.
    """

    case: Case
    calls: tuple[int, int]
    numbers: tuple[int, int]


class _Counter(TorchDispatchMode):
    """Counts operations but those that only look at a tensor in another way, and copy nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.calls += 1
            results = out if isinstance(out, (tuple, list)) else (out,)
            self.numbers += sum(result.numel() for result in results if isinstance(result, torch.Tensor))
        return out


def count_operations(call: Callable[[], Any]) -> tuple[int, int]:
    """How many operations a call, with its backward pass, asks torch for, and how many numbers they write."""
    call()  # what is made once and kept
    with _Counter() as counter:
        call()
    return counter.calls, counter.numbers


def measure_operations(cases: Iterable[Case], processes: Processes) -> Iterator[OperationsRow]:
    """
    Count the operations of cases.

    Args:
        cases: the cases.
        processes: of the fork and the release.
    """
    for case in cases:
        ours, theirs = (processes.ask(which, "operations", case, "network", Setting()) for which in ("fork", "release"))
        yield OperationsRow(case, (ours[0], theirs[0]), (ours[1], theirs[1]))


def operations_table(rows: Iterable[OperationsRow]) -> str:
    """The rows as Markdown."""
    lines = ["| step | operations | release | numbers written | release |", "| --- | ---: | ---: | ---: | ---: |"]
    for row in rows:
        cells = [f"{row.calls[0]:,}", f"{row.calls[1]:,}", *(f"{count / 1e6:,.1f} M" for count in row.numbers)]
        lines.append(f"| {row.case.title} | {' | '.join(cells)} |")
    return "\n".join(lines)
