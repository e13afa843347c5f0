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

"""Seconds and bytes of a function without arguments."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.case import Setting

__all__ = [
    "CLOCKS",
    "FIXED_ALLOCATION",
    "LONG",
    "MeasureError",
    "anonymous_growth",
    "flat",
    "peak_bytes",
    "rss_anon",
    "seconds",
]

FIXED_ALLOCATION = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
"""Environment of a process in which freed memory goes back to the system at once, so that its peaks are real ones."""


class MeasureError(RuntimeError):
    """Something cannot be measured on this machine; the text says what."""


def flat(output: Any) -> torch.Tensor:
    """All numbers of a tensor, or of nested lists and tuples of tensors, as one vector on the CPU."""
    if isinstance(output, torch.Tensor):
        return output.detach().double().flatten().cpu()
    return torch.cat([flat(part) for part in output])


LONG = 2.0
"""Beside so many seconds, what only happens in a first call is nothing: there is no need to warm up."""
EVERY = 0.005
"""Seconds between two looks at the memory of the process."""
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""What tells the time: the clock on the wall, or the time that the CPU spent on this process, where others are busy."""


def seconds(call: Callable[[], Any], calls: int, setting: Setting, warm: bool = True) -> float:
    """
    Shortest time of some calls.

    Args:
        call: what to measure.
        calls: how often.
        setting: the device that is waited for, and the clock.
        warm: whether a call that does not count goes first.
    """
    now = CLOCKS[setting.clock]
    if warm:
        call()
    collects = gc.isenabled()
    gc.disable()
    best = float("inf")
    try:
        for _ in range(calls):
            _wait(setting)
            start = now()
            call()
            _wait(setting)
            best = min(best, now() - start)
    finally:
        if collects:
            gc.enable()
    return best


def peak_bytes(call: Callable[[], Any], setting: Setting) -> int:
    """
    By how much memory grows at most during a call: the process's own memory, or the memory of its tensors on a GPU.

    Args:
        call: what to measure; on the CPU in a process with ``FIXED_ALLOCATION``.
        setting: where it computes.

    Raises:
        MeasureError: if the system does not tell the peak.
    """
    gc.collect()
    if setting.on_gpu:
        device = setting.device
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if sys.platform != "linux":
        raise MeasureError("memory on the CPU is measured on Linux alone, through /proc")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    before = _status("VmRSS")
    kept = call()  # until the peak was read
    peak = _status("VmHWM")
    del kept
    return max(0, peak - before)


def rss_anon() -> int:
    """
    Bytes of memory that are the process's own: pages of mapped files are not.

    Raises:
        MeasureError: if the system does not tell.
    """
    if sys.platform != "linux":
        raise MeasureError("memory on the CPU is measured on Linux alone, through /proc")
    return _status("RssAnon")


def anonymous_growth(call: Callable[[], Any]) -> int:
    """
    By how many bytes the process's own memory grows during a call; mapped files are not its own.

    Args:
        call: what to measure, in a process with ``FIXED_ALLOCATION``.

    Raises:
        MeasureError: if the system does not tell.
    """
    start = most = rss_anon()
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(EVERY):
            most = max(most, rss_anon())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        kept = call()
    finally:
        done.set()
        thread.join()
    most = max(most, rss_anon())
    del kept
    return most - start


def _status(field: str) -> int:
    """A number of bytes in /proc/self/status."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(field + ":"):
                return 1024 * int(line.split()[1])
    raise MeasureError(f"/proc/self/status has no {field}")


def _wait(setting: Setting) -> None:
    if setting.on_gpu:
        torch.cuda.synchronize(setting.device)
