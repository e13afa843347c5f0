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

"""Measures cases: the sides of a case take turns, several rounds long, and the shortest time of each side counts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from benchmarks.case import Case, Setting
from benchmarks.limit import LIMITS
from benchmarks.measure import LONG
from benchmarks.processes import Processes
from benchmarks.result import Result
from benchmarks.work import DECODING
from fork.referee import RefereeError

__all__ = ["Effort", "measure"]

SIDES = {
    "fork": ("fork", "network"),
    "release": ("release", "network"),
    "flash": ("release", "flash"),
    "limit": ("fork", "limit"),
    "rival": ("fork", "rival"),
}
"""Whose process does which work."""
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""How far outputs may lie apart, in parts of the largest, before the table says that they differ."""
RIVAL = "x-transformers==2.31.10"
MANY = 500


class ForkFailed(RuntimeError):
    """The fork raised."""


@dataclass(frozen=True)
class Effort:
    """
    How thoroughly to measure.

    Args:
        rounds: how often every side has its turn.
        turn: about how many seconds a turn takes.
        budget: after how many seconds a case has had rounds enough; what takes half of them has one call.
    """

    rounds: int = 7
    turn: float = 0.25
    budget: float = 60.0


def measure(case: Case, processes: Processes, setting: Setting, effort: Effort) -> Result:
    """
    Measure time and memory of a case.

    Args:
        case: the case.
        processes: of the fork and the release.
        setting: device and type.
        effort: how thoroughly.

    Returns:
        what was measured; ``failed``, and a note, where the fork raises.
    """
    reason = _obstacle(case, setting)
    if reason:
        return Result(case, {}, {}, (f"not measured: {reason}",))
    notes: list[str] = []
    try:
        return _measure(case, _labels(case, notes), processes, setting, effort, notes)
    except ForkFailed as error:
        return Result(case, {}, {}, (*notes, str(error)), failed=True)


def _measure(
    case: Case, labels: Sequence[str], processes: Processes, setting: Setting, effort: Effort, notes: list[str]
) -> Result:
    if case.work == "state_dict":
        sizes = {label: _ask(processes, label, "size", case, setting, notes) for label in labels}
        return Result(case, {}, _known(sizes), tuple(notes))
    seconds = _seconds(case, labels, processes, setting, effort, notes)
    peaks = {label: _ask(processes, label, "peak", case, setting, notes) for label in seconds if case.memory}
    return Result(case, seconds, _known(peaks), tuple(notes))


def _obstacle(case: Case, setting: Setting) -> str | None:
    """Why a case cannot be measured here."""
    if case.compiled and not setting.on_gpu and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        return "torch.compile needs a C++ compiler: install g++ or clang++"
    return None


def _labels(case: Case, notes: list[str]) -> list[str]:
    """The sides of a case."""
    wanted = {
        "fork": True,
        "release": case.release,
        "flash": case.flash,
        "limit": case.work in DECODING
        or (case.target.rpartition(".")[2] in LIMITS and case.work not in ("state_dict", "dropout", "step", "load")),
        "rival": case.rival,
    }
    if case.rival and find_spec("x_transformers") is None:
        wanted["rival"] = False
        notes.append(f"x-transformers is not installed, so that it was not measured: pip install {RIVAL}")
    return [label for label in SIDES if wanted[label]]


def _seconds(
    case: Case, labels: Sequence[str], processes: Processes, setting: Setting, effort: Effort, notes: list[str]
) -> dict[str, float]:
    """Shortest time of every side that works."""
    prepared = {label: _ask(processes, label, "prepare", case, setting, notes) for label in labels}
    prepared = _known(prepared)
    _compare({label: output for label, (output, _) in prepared.items()}, setting, notes)
    first = {label: took for label, (_, took) in prepared.items()}
    best = {label: took if took > LONG else float("inf") for label, took in first.items()}
    turns = {label: took for label, took in first.items() if took <= effort.budget / 2}  # the others were timed once
    one_round = sum(max(effort.turn, took) for took in turns.values())
    rounds = max(1, min(effort.rounds, int(effort.budget / one_round))) if turns else 0
    for _ in range(rounds):
        for label, took in turns.items():
            process, variant = SIDES[label]
            calls = max(1, min(MANY, round(effort.turn / took)))
            best[label] = min(best[label], processes.ask(process, "seconds", variant, calls, took <= LONG))
    for process in {SIDES[label][0] for label in labels}:
        processes.ask(process, "forget")
    return best


def _ask(processes: Processes, label: str, request: str, case: Case, setting: Setting, notes: list[str]):
    """A side's answer; None, and a note, where it fails. The fork must not."""
    process, variant = SIDES[label]
    try:
        return processes.ask(process, request, case, variant, setting, memory=request == "peak")
    except RefereeError as error:
        reason = " ".join(str(error).split())
        if label == "fork":
            raise ForkFailed(f"the fork fails: {reason}") from None
        notes.append(f"{label} fails: {reason[:200]}")
        return None


def _known(answers: dict) -> dict:
    return {label: answer for label, answer in answers.items() if answer is not None}


def _compare(outputs: dict[str, torch.Tensor], setting: Setting, notes: list[str]) -> None:
    """Note where the release's result is another one than the fork's: the times are then of different work."""
    ours = outputs["fork"]
    for label in ("release", "flash"):
        theirs = outputs.get(label)
        if theirs is None:
            continue
        if theirs.shape != ours.shape:
            notes.append(f"the result of {label} has {theirs.numel()} numbers, the fork's {ours.numel()}")
            continue
        apart = float((theirs - ours).abs().max() / ours.abs().max())
        if not apart <= TOLERANCE[setting.dtype]:
            notes.append(f"the result of {label} is another one, by {apart:.0%} of the largest number")
