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

"""The curves of the ablation: a column for each network, mean and standard deviation over seeds."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.ablation_report import differences
from benchmarks.ablation_training import VARIANTS, Result
from benchmarks.table import describe

__all__ = ["draw", "save"]

COLORS = dict(zip(VARIANTS, ("tab:blue", "tab:red")))
LABELS = {"training loss": "loss", "PSNR of held-out slices [dB]": "psnr"}
DIFFERENCE = "with less without\nprojection [dB]"


def draw(results: Sequence[Result], setting: Mapping[str, Any]) -> Figure:
    """
    Draw loss, PSNR, and the paired difference in PSNR against steps.

    Args:
        results: of the networks, at least one.
        setting: what they depend on.
    """
    figure = Figure(figsize=(1 + 5.2 * len(results), 9), layout="constrained")
    axes = figure.subplots(3, len(results), squeeze=False, sharex="col", height_ratios=(3, 3, 2))
    for column, result in zip(axes.T, results):
        column[0].set_title(result.title)
        column[0].set_yscale("log")
        for axis, cost in zip(column, LABELS.values()):
            for name, curves in result.curves.items():
                _band(axis, result.points, getattr(curves, cost), COLORS[name], name)
        column[1].axhline(result.simple_psnr, color="tab:gray", linestyle="--")
        column[1].annotate(
            f"without a network: {result.simple_psnr:.1f} dB",
            (1, result.simple_psnr),
            xycoords=("axes fraction", "data"),
            xytext=(-4, -4),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=9,
        )
        column[2].axhline(0, color="0.4", linewidth=1)
        _band(column[2], result.points, differences(result, "psnr"), "tab:purple", "difference, seed by seed")
        column[2].set_xlabel("steps")
    for axis, label in zip(axes[:, 0], (*LABELS, f"PSNR {DIFFERENCE}")):
        axis.set_ylabel(label)
    handles = [*axes[1, 0].get_legend_handles_labels()[0], *axes[2, 0].get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    seeds = setting["seeds"]
    band = f"mean and standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    lines = (f"Attention with and without its output projection: {band}", setting["data"], describe(setting["machine"]))
    width = int(14 * figure.get_figwidth())
    figure.suptitle("\n".join(textwrap.fill(line, width) for line in lines), fontsize=9)
    return figure


def save(path: Path, results: Sequence[Result], setting: Mapping[str, Any]) -> None:
    """Write the picture as PNG."""
    draw(results, setting).savefig(path, dpi=110, format="png")


def _band(axis: Axes, steps: Sequence[int], rows: Sequence[Sequence[float]], color: str, label: str) -> None:
    """The mean of the seeds as a line, their standard deviation as a band around it."""
    values = np.asarray(rows)
    center = values.mean(0)
    marker = "o" if len(steps) == 1 else None
    axis.plot(steps, center, color=color, label=label, marker=marker)
    if len(values) > 1:
        spread = values.std(0, ddof=1)
        axis.fill_between(steps, center - spread, center + spread, color=color, alpha=0.2, linewidth=0)
    axis.grid(True, which="major", alpha=0.3)
