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

"""The grid as a table in markdown, the release against the fork."""

from __future__ import annotations

from tests.networks.exports.columns import TOLERANCE
from tests.networks.exports.row import Row
from tests.networks.exports.runner import Cell

__all__ = ["as_markdown", "as_text"]

Cells = dict[str, dict[str, Cell]]  # by the row's name and the column
RANDOM = "onnxruntime draws other random numbers than torch, so that `{}({})` is exported, which draws none."


def as_text(row: Row, column: str, cell: Cell) -> str:
    """A cell in a few words."""
    close = cell.get("difference", float("inf")) <= TOLERANCE
    if ("error" in cell or "difference" in cell) and not close and column in row.cannot:
        return f"cannot: {row.cannot[column]}"
    if "difference" in cell:
        return f"{'ok' if close else 'DIFFERS'} {cell['difference']:.1e}"
    kind, words = next(iter(cell.items()))
    return f"{kind.upper() if kind == 'error' else kind}: {words}"


def as_markdown(rows: list[Row], columns: list[str], fork: Cells, release: Cells | None = None) -> str:
    """
    Table of networks and columns, with a footnote for whatever does not pass.

    Args:
        rows: rows that have run.
        columns: names of the columns.
        fork: cells of the fork.
        release: cells of the release.
    """
    notes: list[str] = []
    lines = [
        "| network | options | " + " | ".join(columns) + " |",
        "|---|---" + "|---" * len(columns) + "|",
    ]
    for network in dict.fromkeys(row.network for row in rows):
        own = [row for row in rows if row.network == network]
        texts = []
        for column in columns:
            text = _mark(own, column, fork, notes)
            texts.append(text if release is None else f"{_mark(own, column, release, notes)} → {text}")
        lines.append(f"| {network} | {len(own)} | {' | '.join(texts)} |")
    lines += ["", _legend(release is not None), ""]
    return "\n".join([*lines, *(f"{number}. {note}" for number, note in enumerate(notes, 1))]) + "\n"


def _legend(compared: bool) -> str:
    sides = "Release → fork. " if compared else ""
    return (
        f"{sides}✓: every option set agrees with eager Python to 1e-5, for several batch sizes and, where the network "
        "takes any, image sizes; ✗: none does; 2/3: two of three do. The numbers lead to what went wrong."
    )


def _mark(rows: list[Row], column: str, cells: Cells, notes: list[str]) -> str:
    """Mark of a network's option sets with the numbers of their footnotes."""
    found = [(row, cells[row.name][column]) for row in rows if "missing" not in cells[row.name][column]]
    if not found:
        return "–"
    good = [row for row, cell in found if cell.get("difference", 1.0) <= TOLERANCE]
    mark = "✓" if len(good) == len(found) else f"{len(good)}/{len(found)}" if good else "✗"
    numbers = sorted({_number(note, notes) for row, cell in found for note in _words(row, column, cell)})
    return f"{mark} <sup>{', '.join(map(str, numbers))}</sup>" if numbers else mark


def _number(note: str, notes: list[str]) -> int:
    if note not in notes:
        notes.append(note)
    return notes.index(note) + 1


def _words(row: Row, column: str, cell: Cell) -> list[str]:
    """What a footnote says about a cell, if anything."""
    if "unavailable" in cell:
        return [f"not run: {cell['unavailable']}."]
    failed = "error" in cell or cell["difference"] > TOLERANCE
    if failed and column in row.cannot:
        return [row.cannot[column]]
    if "error" in cell:
        return [f"`{cell['error'].replace('`', '')}`"]
    if failed:
        return [f"the outputs differ by {cell['difference']:.1e}."]
    if column == "onnx" and row.deterministic:
        method, further = row.deterministic
        return [RANDOM.format(method, ", ".join(f"{name}={value}" for name, value in further.items()))]
    return []
