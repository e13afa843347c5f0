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

"""Fills the grid: each row in a process of its own, since a script that failed poisons the next."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.networks.exports.columns import COLUMNS, TOLERANCE, run_cell
from tests.networks.exports.row import Row
from tests.networks.exports.rows import ROWS

__all__ = ["Cell", "passes", "run_row"]

ROOT = Path(__file__).resolve().parents[3]
Cell = dict[str, Any]
SECONDS = 900


def run_row(row: Row, columns: Iterable[str], variables: Mapping[str, str] | None = None) -> dict[str, Cell]:
    """
    Run cells of a row in processes of their own.

    Args:
        row: the row.
        columns: names of the columns.
        variables: environment of the processes, in which ``monai`` may be another one; by default this process's.

    Returns:
        cells by column, see :func:`~tests.networks.exports.columns.run_cell`
    """
    environment = {**(os.environ if variables is None else variables), "OMP_NUM_THREADS": "1"}
    cells: dict[str, Cell] = {}
    # the script comes last, for the case that it fails
    left = sorted(columns, key=lambda column: column == "script")
    while left:
        found, ending = _in_process(row.name, left, environment)
        cells.update(found)
        left = [column for column in left if column not in found]
        if left:
            cells[left.pop(0)] = {"error": ending}
    return cells


def _in_process(name: str, columns: list[str], environment: dict[str, str]) -> tuple[dict[str, Cell], str]:
    """The cells that a process finishes, and how it ended."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.networks.exports.runner", name, *columns]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        output, _ = process.communicate(timeout=SECONDS)
        ending = f"the process ended with code {process.returncode}"
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        ending = f"not done after {SECONDS} s"
    return dict(json.loads(line) for line in output.splitlines() if line.startswith("[")), ending


def passes(row: Row, column: str, cell: Cell) -> bool:
    """Whether a cell is as it should be: it agrees, torch cannot and does not, or there is nothing to run."""
    agrees = cell.get("difference", float("inf")) <= TOLERANCE
    return "unavailable" in cell or ("missing" not in cell and agrees != (column in row.cannot))


def _main(name: str, *columns: str) -> None:
    row = next(row for row in ROWS if row.name == name)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what exporters print must not get between the answers
    for column in columns:
        assert column in COLUMNS, column
        print(json.dumps([column, run_cell(row, column)]), file=answers, flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
