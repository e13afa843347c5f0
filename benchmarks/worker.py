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

"""What a process of the benchmarks does on request; the same in the fork's process and in the release's."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

import monai
from benchmarks.case import Case, Setting
from benchmarks.measure import LONG, MeasureError, flat, peak_bytes, seconds
from benchmarks.operations import count_operations
from benchmarks.work import make

__all__ = ["Worker"]

SHORT = 0.5
"""A first call below so many seconds is mostly what only happens once: it is timed again."""


class Worker:
    """Holds the work of one case, made and called on request."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._calls: dict[str, Callable[[], Any]] = {}
        self._setting = Setting()

    def where(self) -> tuple[str, str]:
        """The file and the version of the MONAI in this process."""
        return str(monai.__file__), str(monai.__version__)

    def prepare(self, case: Case, variant: str, setting: Setting) -> tuple[torch.Tensor, float]:
        """Make the work of a case and do it once: the result as one vector, and about how many seconds it takes."""
        self._setting = setting
        call = self._calls[variant] = make(case, variant, setting)
        results: list[Any] = []

        def first() -> None:
            torch.manual_seed(0)
            results.append(call())

        took = self._time(first, 1, warm=False)
        if took < SHORT:
            took = self._time(call, 2)
        return flat(results[0]), took

    def seconds(self, variant: str, calls: int, warm: bool) -> float:
        """Shortest time of some calls of the prepared work."""
        return self._time(self._calls[variant], calls, warm)

    def _time(self, call: Callable[[], Any], calls: int, warm: bool = True) -> float:
        return seconds(call, calls, self._setting, warm)

    def forget(self) -> None:
        """Let the prepared work go."""
        self._calls.clear()

    def size(self, case: Case, variant: str, setting: Setting) -> int:
        """The number of bytes that the work of a case tells itself."""
        out: int = make(case, variant, setting)()
        return out

    def operations(self, case: Case, variant: str, setting: Setting) -> tuple[int, int]:
        """How many operations the work of a case asks torch for, and how many numbers they write."""
        return count_operations(make(case, variant, setting))

    def peak(self, case: Case, variant: str, setting: Setting) -> int:
        """
        Peak memory of a case in a process of its own, forked from this one, which has done no work yet.

        Raises:
            MeasureError: if the work raises, or its process ends.
        """
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_peak, args=(theirs, case, variant, setting), daemon=True)
        process.start()
        theirs.close()
        try:
            answer = ours.recv()
        except EOFError:
            process.join()
            raise MeasureError(f"the process ended with code {process.exitcode}, out of memory perhaps") from None
        process.join()
        if isinstance(answer, str):
            raise MeasureError(answer)
        out: int = answer
        return out


def _peak(pipe: Connection, case: Case, variant: str, setting: Setting) -> None:
    """Send the peak memory of the second call, as the first one loads what stays, or else what went wrong."""
    try:
        call = make(case, variant, setting)
        start = time.perf_counter()
        peak = peak_bytes(call, setting)
        if time.perf_counter() - start < LONG:
            peak = peak_bytes(call, setting)
        pipe.send(peak)
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
