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
Volumes decoded part by part against the release: memory against volume size, time, operations and difference.

``python -m benchmarks volumes`` runs every measurement in a process of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from benchmarks.measure import FIXED_ALLOCATION
from benchmarks.processes import Processes
from benchmarks.result import MEGA, Check, exponent, percent
from benchmarks.volume_worker import STORAGES, Decoded, Peak, VolumeTask
from fork.referee import Referee

__all__ = ["QUICK", "VolumeEffort", "VolumeRow", "measure_volumes", "volume_checks", "volume_json", "volume_table"]

WORKER = "benchmarks.volume_worker:VolumeWorker"
NAMES = {
    "whole": "whole, release",
    "windows": "windows of half the size, release",
    "cpu": "streamed, memory",
    "folder": "streamed, folder",
    "none": "streamed, no storage",
}
"""The ways to decode, in their order."""
FLAT, SLOWER, OF_WINDOWS = 0.1, 1.3, 1 / 3
"""Bounds: exponent of the memory, time over the whole decode, operations over those of windows."""
STREAMED_FROM, WINDOWS_FROM = 128, 160
"""Sizes from which the bounds of the time hold, over the whole decode and over windows."""


@dataclass(frozen=True)
class VolumeEffort:
    """
    What to measure.

    Args:
        sizes: voxels along every axis, for memory.
        timed: those of them that are timed, in every way.
        again: up to which size volumes are decoded without storage, where much is computed again.
        runs: how often each way decodes; the shortest time counts.
        task: budget and channels.
    """

    sizes: tuple[int, ...] = (64, 96, 128, 160, 192)
    timed: tuple[int, ...] = (96, 128, 160, 192)
    again: int = 128
    runs: int = 2
    task: VolumeTask = VolumeTask("folder", 0)


QUICK = VolumeEffort((32, 48), (32,), 32, 1, VolumeTask("folder", 0, 3 * 2**20))


@dataclass(frozen=True)
class VolumeRow:
    """
    One way to decode one volume.

    Args:
        task: what was decoded, and how.
        peak: memory and operations.
        seconds: shortest time by each clock; empty where it was not timed.
        difference: largest difference from the whole decode over its largest value, or None.
        distance: the same in the L2 norm.
    """

    task: VolumeTask
    peak: Peak
    seconds: Mapping[str, float]
    difference: float | None = None
    distance: float | None = None


def measure_volumes(effort: VolumeEffort, processes: Processes) -> list[VolumeRow]:
    """
    Decode volumes in every way.

    Args:
        effort: what to measure.
        processes: know the fork and the release.

    Raises:
        RefereeError: if a decode fails.
    """
    rows = []
    for size in effort.sizes:
        whole = None
        for way in NAMES if size in effort.timed else ("folder",):
            if way == "none" and size > effort.again:
                continue
            task = replace(effort.task, way=way, size=size)
            print(f"{size}^3 {NAMES[way]}", file=sys.stderr, flush=True)
            peak: Peak = _ask(processes, task, "peak", FIXED_ALLOCATION, task)
            if size not in effort.timed:
                rows.append(VolumeRow(task, peak, {}))
                continue
            decoded: Decoded = _ask(processes, task, "decode", {}, task, effort.runs)
            whole = decoded.image if whole is None else whole
            rows.append(VolumeRow(task, peak, decoded.seconds, *_differences(decoded.image, whole)))
    return rows


def _ask(processes: Processes, task: VolumeTask, request: str, more: Mapping[str, str], *args: Any) -> Any:
    """Ask a fresh process."""
    which = "fork" if task.way in STORAGES else "release"
    with Referee(WORKER, {**processes.variables[which], **more}) as referee:
        processes.check_origin(which, referee.ask("where"))
        return referee.ask(request, *args)


def _differences(image: torch.Tensor, whole: torch.Tensor) -> tuple[float, float]:
    apart = image.double() - whole.double()
    return float(apart.abs().max() / whole.abs().max()), float(apart.norm() / whole.double().norm())


def volume_checks(rows: Sequence[VolumeRow], clock: str) -> list[Check]:
    """The bounds, with what was measured."""
    found = {(row.task.way, row.task.size): row for row in rows}
    kept = [row for row in rows if row.task.way == "folder"]
    checks = []
    if len(kept) > 1:
        voxels = [row.task.size**3 for row in kept]
        device = [row.peak.device or 0 for row in kept]
        grown = [row.peak.anonymous for row in kept]
        checks.append(
            Check("device memory grows with the voxels to the power of", exponent(voxels, device), FLAT, False)
        )
        if min(grown) > 0:
            checks.append(
                Check(
                    "the process's memory grows with the voxels to the power of", exponent(voxels, grown), FLAT, False
                )
            )
    for (way, size), row in found.items():
        whole, windows = found.get(("whole", size)), found.get(("windows", size))
        if way not in STORAGES or way == "none" or not row.seconds:
            continue
        if size >= STREAMED_FROM and whole:
            ratio = row.seconds[clock] / whole.seconds[clock]
            checks.append(Check(f"{size}^3, {way}: time over the whole decode", ratio, SLOWER, False))
        if size >= WINDOWS_FROM and windows:
            ratio = row.seconds[clock] / windows.seconds[clock]
            checks.append(Check(f"{size}^3, {way}: time over windows", ratio, 1.0, False))
            ratio = row.peak.operations / windows.peak.operations
            checks.append(Check(f"{size}^3, {way}: operations over windows", ratio, OF_WINDOWS, False))
    return checks


def volume_table(rows: Sequence[VolumeRow], clock: str, effort: VolumeEffort) -> str:
    """Both tables as Markdown, and the bounds."""
    budget = f"{effort.task.memory / 2**20:.0f} MiB"
    memory = [
        (f"{row.task.size}^3", _megabytes(row.peak.device), _megabytes(row.peak.anonymous))
        for row in rows
        if row.task.way == "folder"
    ]
    wholes = {row.task.size: row for row in rows if row.task.way == "whole"}
    times = [_cells(row, wholes[row.task.size], clock) for row in rows if row.seconds and row.task.size in wholes]
    checks = [f"- {'met' if check.met else 'missed'}: {check}" for check in volume_checks(rows, clock)]
    parts = [
        f"Memory with {budget}, storage a folder:",
        "",
        *_lines(("volume", "device MB", "process MB"), memory),
        "",
        f"Decodes, streamed with {budget}:",
        "",
        *_lines(("volume", "decode", "s", "time", "GFLOP", "operations", "MB", "largest difference", "L2"), times),
        "",
        "time, operations: over the release's whole decode; MB: by how much the process's own memory grows, without "
        "the pages of mapped files; differences: from the whole decode, over its largest value and its norm",
    ]
    return "\n".join([*parts, *(["", *checks] if checks else [])])


def volume_json(rows: Iterable[VolumeRow], clock: str) -> dict[str, Any]:
    """All of it in types that JSON knows."""
    rows = list(rows)
    checks = [{**asdict(check), "met": check.met} for check in volume_checks(rows, clock)]
    return {"rows": [asdict(row) for row in rows], "checks": checks}


def _cells(row: VolumeRow, whole: VolumeRow, clock: str) -> tuple[str, ...]:
    exact = row.task.way == "whole"
    return (
        f"{row.task.size}^3",
        NAMES[row.task.way],
        f"{row.seconds[clock]:.2f}",
        f"{row.seconds[clock] / whole.seconds[clock]:.2f}x",
        f"{row.peak.operations / 1e9:,.1f}",
        f"{row.peak.operations / whole.peak.operations:.2f}x",
        _megabytes(row.peak.anonymous),
        "" if exact else f"{row.difference:.1e}",
        "" if exact or row.distance is None else percent(row.distance),
    )


def _megabytes(number: int | None) -> str:
    return "" if number is None else f"{number / MEGA:,.0f}"


def _lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    under = ["---" if name in ("volume", "decode") else "---:" for name in head]
    return [f"| {' | '.join(row)} |" for row in (head, under, *rows)]
