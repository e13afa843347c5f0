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

"""Time and memory against the number of tokens, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.result import Result
from benchmarks.table import describe

__all__ = ["save"]

TITLES = {
    "sablock": "SABlock 256 wide, 8 heads",
    "rel-pos-2d": "with relative positions in 2-D",
    "rel-pos-3d": "the same in 3-D, wrong in the release",
    "decode": "tokens sampled, 4 layers 128 wide",
    "volume-64": "volume, one head of 64 channels",
    "volume-512": "volume, one head of 512 channels",
    "gpu-sablock": "SABlock 1024 wide, 16 heads",
}
"""Titles of the curves, in their order."""
LINES = {
    "release": ("release", "tab:red", "s-"),
    "fork": ("fork", "tab:blue", "o-"),
    "limit": ("limit: bare torch calls", "tab:gray", "--"),
    "rival": ("x-transformers", "tab:green", "^"),
}
MEGA = 1e6


def save(path: Path, results: Sequence[Result], machine: Mapping[str, Any]) -> bool:
    """
    Draw every curve of which at least two cases were measured.

    Args:
        path: the PNG to write.
        results: what was measured.
        machine: where.

    Returns:
        whether there was anything to draw.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    curves = {curve: [r for r in results if r.case.curve == curve] for curve in TITLES}
    curves = {curve: sorted(rows, key=lambda r: r.case.tokens) for curve, rows in curves.items() if len(rows) > 1}
    if not curves:
        return False
    figure, axes = plt.subplots(
        2,
        len(curves),
        figsize=(1 + 3.8 * len(curves), 7.5),
        squeeze=False,
        sharex="col",
        sharey="row",
        layout="constrained",
    )
    for column, (curve, rows) in enumerate(curves.items()):
        _draw(axes[0, column], rows, "seconds", 1e3)
        _draw(axes[1, column], rows, "bytes", 1 / MEGA)
        axes[0, column].set_title(TITLES[curve])
        axes[1, column].set_xlabel("tokens")
    axes[0, 0].set_ylabel("time of a call [ms]")
    axes[1, 0].set_ylabel("peak memory of a call [MB]")
    handles, labels = _legend(axes)
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.suptitle(f"The fork against the release\n{describe(machine)}", fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True


def _draw(axis: Any, rows: Sequence[Result], cost: str, unit: float) -> None:
    """One panel: a line for each side, and how far apart the release and the fork are at the last point of both."""
    axis.set_xscale("log", base=4)
    axis.set_yscale("log")
    axis.xaxis.set_major_formatter(lambda tokens, _: f"{tokens:.0f}")
    axis.grid(True, which="major", alpha=0.3)
    axis.margins(x=0.12)
    for label, (name, color, style) in LINES.items():
        points = [(r.case.tokens, unit * getattr(r, cost)[label]) for r in rows if getattr(r, cost).get(label)]
        if points:
            axis.plot(*zip(*points), style, color=color, label=name, markersize=4)
    both = [r for r in rows if getattr(r, cost).get("fork") and getattr(r, cost).get("release")]
    if both:
        ours, theirs = (unit * getattr(both[-1], cost)[label] for label in ("fork", "release"))
        middle = (both[-1].case.tokens, (ours * theirs) ** 0.5)
        axis.annotate("", (middle[0], theirs), (middle[0], ours), arrowprops={"arrowstyle": "<->", "color": "0.4"})
        text = f"{theirs / ours:.{0 if theirs > 10 * ours else 1}f}x"
        axis.annotate(text, middle, xytext=(4, 0), textcoords="offset points", va="center")


def _legend(axes: Any) -> tuple[list[Any], list[str]]:
    """The lines of all panels, each name once."""
    found: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, name in zip(*axis.get_legend_handles_labels()):
            found.setdefault(name, handle)
    return list(found.values()), list(found)
