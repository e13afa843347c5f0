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

"""The ablation as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.ablation_training import VARIANTS, Curves, Result
from benchmarks.table import describe

__all__ = ["Spread", "differences", "markdown", "read_json", "write_json"]

HEAD = ("network", "projection", "parameters", "training loss", "PSNR [dB]", "step, shortest [ms]", "median [ms]")


@dataclass(frozen=True)
class Spread:
    """
    Mean and standard deviation of one number for each seed.

    Args:
        values: the numbers.
    """

    values: Sequence[float]

    @property
    def mean(self) -> float:
        """Their mean."""
        return mean(self.values)

    @property
    def deviation(self) -> float | None:
        """Their standard deviation (of a sample); one seed has none."""
        return stdev(self.values) if len(self.values) > 1 else None

    def text(self, digits: int, sign: str = "") -> str:
        """Both as text; ``sign="+"`` shows the sign of positive means, too."""
        around = "" if self.deviation is None else f" ± {self.deviation:.{digits}f}"
        return f"{self.mean:{sign}.{digits}f}{around}"


def differences(result: Result, cost: str) -> list[list[float]]:
    """
    With projection less without, of each seed at every point.

    Args:
        result: of a network.
        cost: "psnr" or "loss".
    """
    first, second = (getattr(result.curves[name], cost) for name in VARIANTS)
    return [[a - b for a, b in zip(*rows)] for rows in zip(first, second)]


def last(rows: Sequence[Sequence[float]]) -> Spread:
    """The last point of each seed."""
    return Spread([row[-1] for row in rows])


def markdown(results: Sequence[Result], setting: Mapping[str, Any]) -> str:
    """The results as a Markdown document, aligned to be read as it is."""
    rows = [HEAD, *(row for result in results for row in _rows(result))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    right = [i > 1 for i in range(len(HEAD))]
    rule = tuple("-" * (width - 1) + (":" if ends else "-") for width, ends in zip(widths, right))
    aligned = [
        "| " + " | ".join(c.rjust(w) if ends else c.ljust(w) for c, w, ends in zip(row, widths, right)) + " |"
        for row in (rows[0], rule, *rows[1:])
    ]
    before, end = [0, *results[0].points][-2:]
    recent = f"{end - before} steps" if end - before > 1 else "step"
    notes = [f"- {result.title}: {_note(result)}" for result in results]
    lines = [
        f"`{setting['command']}` on {describe(setting['machine'])}.",
        "",
        f"{setting['data']}; {setting['steps']} steps, {setting['seeds']} seed{'s' * (setting['seeds'] > 1)}. "
        f"Mean ± standard deviation over seeds; training loss: mean of the last {recent}; PSNR of held-out images; "
        "difference: with less without projection, seed by seed.",
        "",
        *aligned,
        "",
        *notes,
    ]
    return "\n".join(lines) + "\n"


def write_json(path: Path, results: Sequence[Result], setting: Mapping[str, Any]) -> None:
    """Write everything that was measured, and the differences that it holds."""
    rows = []
    for result in results:
        paired = {cost: last(differences(result, cost)) for cost in ("psnr", "loss")}
        summary = {
            cost: {"mean": spread.mean, "deviation": spread.deviation, "seeds": list(spread.values)}
            for cost, spread in paired.items()
        }
        rows.append({**asdict(result), "difference": summary})
    path.write_text(json.dumps({**setting, "results": rows}, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> tuple[list[Result], dict[str, Any]]:
    """
    The results of an earlier run, and what they depend on.

    Raises:
        ValueError: if the file is no such run.
    """
    try:
        setting = json.loads(path.read_text(encoding="utf-8"))
        results = []
        for row in setting.pop("results"):
            del row["difference"]  # follows from the curves
            curves = {name: Curves(**row["curves"][name]) for name in VARIANTS}
            results.append(Result(**{**row, "curves": curves}))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} was not written by --json of this ablation: {error!r}") from error
    return results, setting


def _rows(result: Result) -> list[tuple[str, ...]]:
    """A row for each variant, and one for their difference."""
    rows = []
    for name, curves in result.curves.items():
        times = [f"{1e3 * curves.seconds[which]:.1f}" for which in ("min", "median")]
        loss, psnr = last(curves.loss).text(5), last(curves.psnr).text(2)
        rows.append((result.title, name.split()[0], f"{curves.parameters:,}", loss, psnr, *times))
    first, second = result.curves.values()
    apart = [f"{100 * (first.seconds[which] / second.seconds[which] - 1):+.1f}%" for which in ("min", "median")]
    loss, psnr = last(differences(result, "loss")).text(5, "+"), last(differences(result, "psnr")).text(2, "+")
    rows.append((result.title, "difference", f"{first.parameters - second.parameters:+,}", loss, psnr, *apart))
    return rows


def _note(result: Result) -> str:
    paired = last(differences(result, "psnr")).values
    better = sum(value > 0 for value in paired)
    each = ", ".join(f"{value:+.2f}" for value in paired)
    return (
        f"PSNR is higher with projection in {better} of {len(paired)} seeds ({each} dB). Without a network, "
        f"{result.simple} have {result.simple_psnr:.2f} dB."
    )
