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

"""Results of the rows, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from demo.checks import Check
from demo.work import EXACT, Outcome


@dataclass(frozen=True)
class Result:
    """What a row of the table holds; times in seconds per sample."""

    key: str
    title: str
    parameters: int
    outcome: Outcome
    scripted: float
    release: float
    seconds: float
    release_seconds: float

    @property
    def ratio(self) -> float:
        """How many times the release's time is the fork's."""
        return self.release_seconds / self.seconds

    def checks(self) -> list[Check]:
        """Everything that must hold of this row."""
        return [
            *self.outcome.all_checks(),
            Check("difference of the scripted network to the eager one", self.scripted, EXACT),
            Check("difference to the release", self.release, EXACT),
        ]

    def failures(self) -> list[str]:
        """A line for each check that does not hold."""
        return [f"{self.title}: {check}" for check in self.checks() if not check.passed]

    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        return (
            self.title,
            f"{self.parameters:,}",
            self.outcome.loaded,
            f"{self.scripted:.1e}",
            f"{self.release:.1e}",
            f"{1e3 * self.seconds:.1f}",
            f"{1e3 * self.release_seconds:.1f}",
            f"{self.ratio:.2f}x",
        )


HEAD = ("network", "parameters", "weights", "scripted", "release", "ms", "release ms", "speed")


def table(results: Sequence[Result]) -> str:
    """The results as aligned text."""
    rows = [HEAD, *(result.cells() for result in results)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    lines = ["  ".join(_align(i, cell, widths[i]) for i, cell in enumerate(row)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def tasks(results: Sequence[Result]) -> str:
    """What every network did on the scan, as text."""
    width = max(len(result.title) for result in results)
    lines = []
    for result in results:
        outcome = result.outcome
        lines.append(f"{result.title.ljust(width)}  {outcome.figure}: {outcome.before:.3f} -> {outcome.after:.3f}")
        lines += [f"{'':{width}}  {outcome.note}"] if outcome.note else []
    return "\n".join(lines)


def write_json(path: Path, results: Sequence[Result]) -> None:
    """Write every figure of the rows."""
    rows = [asdict(r) | {"ratio": r.ratio, "failures": r.failures()} for r in results]
    for row in rows:
        del row["outcome"]["strip"]
    path.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def _align(column: int, cell: str, width: int) -> str:
    return cell.ljust(width) if HEAD[column] in ("network", "weights") else cell.rjust(width)
