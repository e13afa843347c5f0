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

"""Results as text, as Markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES
from benchmarks.result import MEGA, Check, Grown, Result

__all__ = ["describe", "growth_lines", "markdown", "read_json", "table", "write_json"]

HEAD = ("case", "ms", "release ms", "speed", "vs flash", "vs limit", "MB", "release MB", "targets")
LEGEND = (
    "speed: time of the release over the fork's; vs flash: the same where the release has use_flash_attention=True; "
    "vs limit: time of the fork over that of bare torch calls; MB: by how much memory grows at most"
)


def cells(result: Result, marks: str = "") -> tuple[str, ...]:
    """A row of the table."""
    return (
        result.case.title + marks,
        _milliseconds(result.seconds.get("fork")),
        _milliseconds(result.seconds.get("release")),
        _times(result.speed_over("release")),
        _times(result.speed_over("flash")),
        _times(result.over_limit()),
        _megabytes(result.bytes.get("fork")),
        _megabytes(result.bytes.get("release")),
        "failed" if result.failed else verdict(result.checks()),
    )


def verdict(checks: Sequence[Check]) -> str:
    """Whether targets are met, and if not, by how much they are missed."""
    missed = [str(check) for check in checks if not check.met]
    if missed:
        return f"missed: {'; '.join(missed)}"
    return "met" if checks else ""


def table(results: Sequence[Result]) -> str:
    """The results as aligned text, with the notes below."""
    marks, notes = _marks(results)
    rows = [HEAD, *(cells(r, m) for r, m in zip(results, marks))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    lines = [
        "  ".join(c.ljust(w) if i in (0, len(HEAD) - 1) else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths)))
        for row in rows
    ]
    lines = [line.rstrip() for line in lines]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:], "", LEGEND, *notes])


def markdown(results: Sequence[Result], growths: Sequence[Grown], machine: Mapping[str, Any], command: str) -> str:
    """The results as a Markdown document."""
    marks, notes = _marks(results)
    rows = [HEAD, ("---", *["---:"] * (len(HEAD) - 2), "---"), *(cells(r, m) for r, m in zip(results, marks))]
    lines = [f"`{command}` on {describe(machine)}:", "", *(f"| {' | '.join(row)} |" for row in rows), "", LEGEND + "."]
    listed = [*growth_lines(growths), *notes]
    return "\n".join([*lines, *([""] if listed else []), *(f"- {line}" for line in listed)]) + "\n"


def growth_lines(growths: Sequence[Grown]) -> list[str]:
    """How costs grow, a line each."""
    return [
        f"{grown.growth.title}: exponent {grown.exponent:.2f}; by doubling "
        f"{', '.join(f'{factor:.2f}x' for factor in grown.doublings)}; {verdict([grown.check])}"
        for grown in growths
    ]


def describe(machine: Mapping[str, Any]) -> str:
    """The machine and the versions, one line."""
    return ", ".join(str(value) for value in machine.values())


def write_json(path: Path, results: Sequence[Result], growths: Sequence[Grown], machine: Mapping[str, Any]) -> None:
    """Write everything that was measured."""
    content = {
        "machine": dict(machine),
        "results": [result.as_row() for result in results],
        "growth": [grown.as_row() for grown in growths],
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> tuple[list[Result], dict[str, Any]]:
    """
    The results and the machine of an earlier run.

    Raises:
        ValueError: if a case of the run is no longer known.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    unknown = [row["name"] for row in content["results"] if row["name"] not in CASES]
    if unknown:
        raise ValueError(f"{path} holds cases that are no longer known: {', '.join(unknown)}.")
    fields = ("seconds", "bytes", "notes", "failed")
    results = [Result(CASES[row["name"]], **{name: row[name] for name in fields}) for row in content["results"]]
    return results, content["machine"]


def _notes(result: Result) -> list[str]:
    rival = result.speed_over("rival")
    if rival is None:
        return list(result.notes)
    return [*result.notes, f"x-transformers, with its cache: {_milliseconds(result.seconds['rival'])} ms, {rival:.2f}x"]


def _marks(results: Sequence[Result]) -> tuple[list[str], list[str]]:
    """A mark behind each title that has notes, and the notes, equal ones once."""
    known: dict[str, int] = {}
    marks = []
    for result in results:
        numbers = [known.setdefault(note, len(known) + 1) for note in _notes(result)]
        marks.append(f" [{', '.join(map(str, numbers))}]" if numbers else "")
    return marks, [f"[{number}] {note}" for note, number in known.items()]


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{1e3 * seconds:,.{0 if seconds >= 1 else 1 if seconds >= 0.01 else 3}f}"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x" if ratio < 100 else f"{ratio:.0f}x"


def _megabytes(number: int | None) -> str:
    return "" if number is None else f"{number / MEGA:,.{1 if number < 100 * MEGA else 0}f}"
