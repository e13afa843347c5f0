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
MAISI as NV-Generate-CTMR configures it, with random weights and few channels: sampling with a ControlNet, and decode.

``python -m benchmarks.maisi`` from the root measures the release whole, and the fork whole, in windows, streamed and on
several processes: time, memory, and the difference from the release's whole volume, each in processes of its own.
"""

from __future__ import annotations

import argparse
import json
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

import monai
from benchmarks.__main__ import processor
from benchmarks.maisi_model import MaisiTask
from benchmarks.maisi_rank import add_task, flags, task_of
from benchmarks.maisi_worker import DECODE, SAMPLING, Cost, Outcome
from benchmarks.measure import CLOCKS, FIXED_ALLOCATION
from benchmarks.processes import BenchmarkError, Processes
from benchmarks.result import MEGA, percent
from fork.referee import ROOT, Referee, RefereeError

__all__ = ["MaisiRow", "Plan", "difference", "main", "maisi_table", "measure_maisi"]

WORKER = "benchmarks.maisi_worker:MaisiWorker"
RELEASE, WINDOWS, WHOLE, SPLIT = "release", "windows", "whole", "split"
WAYS = {
    RELEASE: "whole, release",
    WHOLE: "whole, fork",
    WINDOWS: "windows, fork",
    "cpu": "streamed, memory",
    "folder": "streamed, folder",
    SPLIT: "split, torchrun",
}
"""The ways to make a volume, in their order: the others are compared with the first whole one."""
DECODES_OF_THE_WHOLE = (WINDOWS, "cpu", "folder")
"""Ways that differ in the decode alone: they decode the latent of the whole volume."""


@dataclass(frozen=True)
class Plan:
    """
    How to measure.

    Args:
        ways: names of ``WAYS``.
        ranks: processes of a split volume.
        runs: how often each way is timed; the shortest time counts.
        once: whether one run tells time and memory, for volumes that take minutes.
    """

    ways: tuple[str, ...] = tuple(WAYS)
    ranks: int = 2
    runs: int = 2
    once: bool = False

    def __post_init__(self) -> None:
        unknown = [way for way in self.ways if way not in WAYS]
        if unknown:
            raise ValueError(f"ways {', '.join(unknown)} are unknown: choose from {', '.join(WAYS)}.")
        if self.ranks < 2 or self.runs < 1:
            raise ValueError(f"ranks={self.ranks} should be at least 2, and runs={self.runs} at least 1.")

    @property
    def passes(self) -> tuple[tuple[int, bool], ...]:
        """How many runs are timed and whether memory is watched, for each process of its own."""
        return ((0, True),) if self.once else ((self.runs, False), (0, True))


@dataclass(frozen=True)
class MaisiRow:
    """
    One way to make one volume.

    Args:
        task: what was made.
        way: how.
        costs: of the stages "sampling" and "decode".
        planned: bytes that a streamed decode said it needs on the device.
        largest: largest difference from the whole volume over its largest value, None if there is none to compare with.
        distance: the same in the L2 norm.
    """

    task: MaisiTask
    way: str
    costs: dict[str, Cost]
    planned: int | None = None
    largest: float | None = None
    distance: float | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Measure MAISI; 1 where that cannot be."""
    args = parse(argv)
    try:
        plan = Plan(tuple(args.ways), args.ranks, args.runs, args.once)
        tasks = [task_of(args, size) for size in args.sizes]
        with Processes() as processes:
            rows = [row for task in tasks for row in measure_maisi(task, plan, processes, args.clock)]
    except (BenchmarkError, RefereeError, OSError, ValueError) as error:
        print(f"maisi failed: {error}", file=sys.stderr)
        return 1
    machine = f"{processor()}, torch {torch.__version__}, MONAI {monai.__version__}, {date.today().isoformat()}"
    text = f"`{command(args, plan, tasks[0])}` on {machine}:\n\n{maisi_table(rows, args.clock)}\n"
    print(text)
    if args.markdown:
        args.markdown.write_text(text, encoding="utf-8")
    if args.json:
        content = {"machine": machine, "rows": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.maisi", description=__doc__)
    plan = Plan()
    add_task(parser)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128], help="voxels along every axis (%(default)s)")
    parser.add_argument("--ways", nargs="+", default=plan.ways, help=f"of {', '.join(WAYS)} (all)")
    parser.add_argument("--ranks", type=int, default=plan.ranks, help="processes of a split volume (%(default)s)")
    parser.add_argument("--runs", type=int, default=plan.runs, help="the shortest of so many times (%(default)s)")
    parser.add_argument("--once", action="store_true", help="one run tells time and memory")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of the rank that computes most")
    parser.add_argument("--json", type=Path, help="file to write every number to")
    parser.add_argument("--markdown", type=Path, help="file to write the table to")
    return parser.parse_args(argv)


def measure_maisi(task: MaisiTask, plan: Plan, processes: Processes, clock: str = "wall") -> list[MaisiRow]:
    """
    Make a volume in every way, and tell each row as soon as it is measured.

    Args:
        task: what to make.
        plan: how to measure.
        processes: know the fork and the release.
        clock: the one whose time is told on the way. Defaults to that on the wall.

    Raises:
        BenchmarkError: if a split volume fails.
        RefereeError: if another one does.
    """
    rows: list[MaisiRow] = []
    whole: Any = None
    for way in (way for way in WAYS if way in plan.ways):
        print(f"{task.scheduler} {task.size}^3 {WAYS[way]}", file=sys.stderr, flush=True)
        latent = whole.latent if whole is not None and way in DECODES_OF_THE_WHOLE else None
        outcome = _merged([_make(task, way, latent, timed, watched, plan, processes) for timed, watched in plan.passes])
        apart = (None, None) if whole is None else difference(outcome.image, whole.image)
        rows.append(MaisiRow(task, way, dict(outcome.costs), outcome.planned, *apart))
        print(maisi_table(rows[-1:], clock).splitlines()[-1], file=sys.stderr, flush=True)
        if whole is None and way in (RELEASE, WHOLE):
            whole = outcome
    return rows


def difference(image: torch.Tensor, whole: torch.Tensor) -> tuple[float, float]:
    """Largest difference over the largest value of the whole, and the same in the L2 norm."""
    apart = image.double() - whole.double()
    return float(apart.abs().max() / whole.abs().max()), float(apart.norm() / whole.double().norm())


def _make(
    task: MaisiTask, way: str, latent: Any, timed: int, watched: bool, plan: Plan, processes: Processes
) -> Outcome:
    """Let fresh processes make a volume."""
    which = "release" if way == RELEASE else "fork"
    variables = {**processes.variables[which], **(FIXED_ALLOCATION if watched else {})}
    if way == SPLIT:
        return _split(task, plan.ranks, timed, watched, variables)
    with Referee(WORKER, variables) as referee:
        processes.check_origin(which, referee.ask("where"))
        decode = WHOLE if way == RELEASE else way
        outcome: Outcome = referee.ask("run", task, decode, latent, timed, watched)
        return outcome


def _split(task: MaisiTask, ranks: int, timed: int, watched: bool, variables: dict[str, str]) -> Outcome:
    """Let torchrun make a volume."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "outcome")
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        ranks_do = ["-m", "benchmarks.maisi_rank", *flags(task), "--size", str(task.size), "--timed", str(timed)]
        words = [*torchrun, *ranks_do, *(["--watched"] if watched else []), "--out", str(out)]
        done = subprocess.run(words, cwd=ROOT, env=variables, capture_output=True, text=True)
        if done.returncode or not out.is_file():
            said = [line for line in done.stderr.splitlines() if "Error" in line or "failed:" in line]
            raise BenchmarkError(f"{ranks} processes: {(said or ['they ended without a word'])[0].strip()}")
        outcome: Outcome = pickle.loads(out.read_bytes())  # written by our own process
        return outcome


def _merged(passes: Sequence[Outcome]) -> Outcome:
    """Times of the first pass, memory of the last one."""
    first, last = passes[0], passes[-1]
    costs = {
        stage: Cost(cost.seconds, last.costs[stage].process, last.costs[stage].tensors)
        for stage, cost in first.costs.items()
    }
    return Outcome(costs, first.latent, first.image, first.planned)


def maisi_table(rows: Iterable[MaisiRow], clock: str) -> str:
    """The table as Markdown."""
    head = ("scheduler", "volume", "way", "sampling s", "MB", "tensors", "decode s", "MB", "tensors", "largest", "L2")
    under = ["---" if name in ("scheduler", "volume", "way") else "---:" for name in head]
    lines = [head, under, *(_cells(row, clock) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: MaisiRow, clock: str) -> tuple[str, ...]:
    return (
        row.task.scheduler if row.task.sampled else "none",
        f"{row.task.size}^3",
        WAYS[row.way],
        *_cost_cells(row.costs.get(SAMPLING), clock),
        *_cost_cells(row.costs.get(DECODE), clock),
        "" if row.largest is None else f"{row.largest:.1e}",
        "" if row.distance is None else percent(row.distance),
    )


def _cost_cells(cost: Cost | None, clock: str) -> tuple[str, ...]:
    if cost is None:
        return ("", "", "")
    numbers = (cost.process, cost.tensors)
    return (f"{cost.seconds[clock]:.2f}", *("" if each is None else f"{each / MEGA:,.0f}" for each in numbers))


def command(args: argparse.Namespace, plan: Plan, task: MaisiTask) -> str:
    """The command that measures these numbers again."""
    default = Plan()
    parts = ["python -m benchmarks.maisi", f"--sizes {' '.join(map(str, args.sizes))}", *flags(task)]
    parts += [f"--ways {' '.join(plan.ways)}"] if plan.ways != default.ways else []
    parts += [f"--ranks {plan.ranks}"] if plan.ranks != default.ranks else []
    parts += [f"--runs {plan.runs}"] if plan.runs != default.runs else []
    parts += ["--once"] if plan.once else []
    parts += [f"--clock {args.clock}"] if args.clock != "wall" else []
    return " ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
