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

"""A process of its own for a file that may end it, hang it, or take all memory."""

from __future__ import annotations

import gc
import os
import pickle
import select
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Outcome", "apart", "measured", "slowness"]

STATUS = Path("/proc/self/status")
LOOP = 300_000
USUAL = 0.015  # seconds that the loop takes on one core of a common machine


class Outcome(NamedTuple):
    """
    What became of a call.

    Args:
        value: what it gave, or raised.
        seconds: of processor time.
        memory: bytes at its peak, beyond those before.
    """

    value: Any
    seconds: float
    memory: int


def apart(function: Callable[[], Any], timeout: float = 60) -> Any:
    """
    What a function gives, called in a child of this process, which keeps what it has imported.

    Args:
        function: gives what pickle takes.
        timeout: seconds after which the child is killed.

    Raises:
        AssertionError: if the child crashed, or had to be killed.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        gc.freeze()  # the collector need not look through all that the tests have imported
        code = 1
        try:
            with os.fdopen(writer, "wb") as stream:
                pickle.dump(function(), stream)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    data, end = b"", time.monotonic() + timeout
    try:
        while select.select([reader], [], [], max(0.0, end - time.monotonic()))[0]:
            piece = os.read(reader, 1 << 20)
            if not piece:
                break
            data += piece
        else:
            os.kill(child, signal.SIGKILL)
            raise AssertionError(f"it takes longer than {timeout} seconds")
    finally:
        os.close(reader)
        _, status = os.waitpid(child, 0)
    if status:
        raise AssertionError(f"the process ended with status {status} (signal {status & 127})")
    return pickle.loads(data)


def measured(function: Callable[[], Any]) -> Outcome:
    """Call a function in this process, and measure it."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, start = _memory("VmRSS"), time.process_time()
    value = function()
    return Outcome(value, time.process_time() - start, _memory("VmHWM") - before)


def _memory(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


def slowness() -> float:
    """How many times slower this process runs just now than on a common machine that does nothing else; 1 at least."""
    start, total = time.process_time(), 0
    for number in range(LOOP):
        total += number
    return max(1.0, (time.process_time() - start) / USUAL)
