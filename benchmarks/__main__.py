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

"""The fork against the release and against the limit, in time and memory: ``python -m benchmarks`` from the root."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks import kernels, operations, picture
from benchmarks import table as tables
from benchmarks import volumes
from benchmarks.case import Setting
from benchmarks.cases import BY_DEFAULT, CASES, GROWTHS, choose
from benchmarks.measure import CLOCKS
from benchmarks.processes import BenchmarkError, Processes
from benchmarks.result import Result, grown
from benchmarks.run import Effort, measure
from benchmarks.training_cases import TRAINING
from fork.referee import RefereeError

DTYPES = ("float32", "bfloat16", "float16", "float64")
KERNELS, OPERATIONS, VOLUMES, SEAMS = "kernels", "operations", "volumes", "seams"
QUICK = Effort(rounds=3, turn=0.1, budget=10.0)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"cases or groups (default: {', '.join(BY_DEFAULT)}), or '{KERNELS}', or '{OPERATIONS}' of training steps,"
        f" or '{VOLUMES}' decoded part by part, or '{SEAMS}' of windows, a picture (--png)",
    )
    parser.add_argument("--device", default="cpu", help="device to run on (%(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="floating point type (%(default)s)")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: time of the CPU, for a machine that others use, too"
    )
    parser.add_argument("--rounds", type=int, help=f"turns of every side, at most ({Effort.rounds})")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns, without the slow cases")
    parser.add_argument("--json", type=Path, help="file to write every number to")
    parser.add_argument("--markdown", type=Path, help="file to write the table to")
    parser.add_argument("--png", type=Path, help="file to draw time and memory against tokens to")
    parser.add_argument("--from", type=Path, dest="source", help="show the --json of an earlier run, measure nothing")
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks; 1 where they cannot be run, or the fork fails. A missed target is a result, not an error."""
    args = parse(argv)
    try:
        if args.list:
            print(listing())
        elif args.names == [KERNELS]:
            run_kernels(args)
        elif args.names == [OPERATIONS]:
            with Processes() as processes:
                print(operations.operations_table(operations.measure_operations(TRAINING, processes)))
        elif args.names == [VOLUMES]:
            run_volumes(args)
        elif args.names == [SEAMS]:
            run_seams(args)
        else:
            return int(run(args))
    except (BenchmarkError, RefereeError, OSError, ValueError) as error:
        print(f"benchmarks failed: {error}", file=sys.stderr)
        return 1
    return 0


def run(args: argparse.Namespace) -> bool:
    """
    Measure the chosen cases, or read an earlier run; print and write what was asked for.

    Returns:
        whether the fork failed in a case.

    Raises:
        BenchmarkError: if they cannot be measured.
        ValueError: if the earlier run holds unknown cases.
    """
    if args.source:
        results, machine = tables.read_json(args.source)
    else:
        results, machine = measured(args)
    by_name = {result.case.name: result for result in results}
    growths = [g for g in (grown(growth, by_name) for growth in GROWTHS) if g is not None]
    print(tables.describe(machine))
    print(tables.table(results))
    print("".join(f"\n{line}" for line in tables.growth_lines(growths)))
    if args.json:
        tables.write_json(args.json, results, growths, machine)
    if args.markdown:
        args.markdown.write_text(tables.markdown(results, growths, machine, command(args)), encoding="utf-8")
    if args.png and not picture.save(args.png, results, machine):
        print(f"no {args.png}: it shows curves, name the group 'curves'", file=sys.stderr)
    return any(result.failed for result in results)


def measured(args: argparse.Namespace) -> tuple[list[Result], dict[str, Any]]:
    """
    Results of the chosen cases, and the machine.

    Raises:
        BenchmarkError: if a case is unknown, or the device does not work.
    """
    cases = choose(args.names, args.quick)
    check_device(args.device, args.clock)
    effort = QUICK if args.quick else Effort()
    if args.rounds is not None:
        if args.rounds < 1:
            raise BenchmarkError(f"--rounds must be at least 1, got {args.rounds}")
        effort = Effort(args.rounds, effort.turn, effort.budget)
    setting = Setting(args.device, getattr(torch, args.dtype), args.clock)
    results = []
    with Processes() as processes:
        machine = describe_machine(args, processes)
        for number, case in enumerate(cases, 1):
            print(f"{number}/{len(cases)} {case.name}", file=sys.stderr, flush=True)
            results.append(measure(case, processes, setting, effort))
    return results, machine


def check_device(name: str, clock: str) -> None:
    """
    Make sure that a device works, and that the clock tells its time.

    Raises:
        BenchmarkError: if that is not so.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BenchmarkError(f"device {name!r}: {str(error).splitlines()[0]}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BenchmarkError(f"device {name!r}: torch {torch.__version__} finds no CUDA GPU here")
    if device.type == "cuda" and clock != "wall":
        raise BenchmarkError(f"--clock {clock} tells nothing about a GPU: leave it out")


def describe_machine(args: argparse.Namespace, processes: Processes) -> dict[str, Any]:
    """What the numbers depend on, in words."""
    device = "one CPU thread" + (", its own time" if args.clock == "cpu" else "")
    if args.device.startswith("cuda"):
        device = f"{torch.cuda.get_device_name(args.device)}, CUDA {torch.version.cuda}"
    return {
        "device": device,
        "processor": processor(),
        "dtype": args.dtype,
        "torch": f"torch {torch.__version__}",
        "fork": f"MONAI {processes.version('fork')}",
        "release": f"against {processes.version('release')}",
        "date": date.today().isoformat(),
    }


def processor() -> str:
    """The name of the CPU, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def command(args: argparse.Namespace) -> str:
    """The command that measures these numbers again."""
    parts = ["python -m benchmarks", *args.names]
    parts += [f"--device {args.device}"] if args.device != "cpu" else []
    parts += [f"--dtype {args.dtype}"] if args.dtype != "float32" else []
    parts += [f"--clock {args.clock}"] if args.clock != "wall" else []
    return " ".join([*parts, "--quick"] if args.quick else parts)


def listing() -> str:
    """The cases by group, a line each."""
    width = max(len(name) for name in CASES)
    return "\n".join(f"{case.group:8} {case.name:{width}}  {case.title}" for case in CASES.values())


def run_kernels(args: argparse.Namespace) -> None:
    """
    Show where torch's own kernel builds the L x L matrix.

    Raises:
        BenchmarkError: if the device does not work.
    """
    check_device(args.device, args.clock)
    rows = []
    for row in kernels.measure_kernels(args.quick, args.device):
        rows.append(row)
        step = "forward + backward" if row.training else "forward"
        print(f"{row.width} {row.dtype} {row.option}, {step}: {row.matrices:.2f} L x L", file=sys.stderr, flush=True)
    text = (
        f"torch {torch.__version__}, {args.device}, one head, {rows[0].tokens} tokens: peak memory of "
        "scaled_dot_product_attention in L x L matrices, forward / forward and backward\n\n"
        f"{kernels.kernel_table(rows)}\n"
    )
    print(text)
    if args.markdown:
        args.markdown.write_text(text, encoding="utf-8")
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")


def run_volumes(args: argparse.Namespace) -> None:
    """
    Decode volumes whole, in windows and part by part.

    Raises:
        BenchmarkError: if the fork or the release is missing.
        RefereeError: if a decode fails.
    """
    effort = volumes.QUICK if args.quick else volumes.VolumeEffort()
    if args.rounds is not None:
        effort = replace(effort, runs=args.rounds)
    with Processes() as processes:
        machine = describe_machine(args, processes)
        rows = volumes.measure_volumes(effort, processes)
    text = f"`{command(args)}` on {tables.describe(machine)}:\n\n{volumes.volume_table(rows, args.clock, effort)}\n"
    print(text)
    if args.markdown:
        args.markdown.write_text(text, encoding="utf-8")
    if args.json:
        content = {"machine": machine, **volumes.volume_json(rows, args.clock)}
        args.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def run_seams(args: argparse.Namespace) -> None:
    """
    Draw what windows change, and what a streamed decode does.

    Raises:
        BenchmarkError: if there is no file to draw to.
    """
    if args.png is None:
        raise BenchmarkError(f"{SEAMS} is a picture: name its file, --png FILE")
    from benchmarks.seams import measure_seams, save_seams  # needs the demo's scan

    seams = measure_seams()
    save_seams(args.png, seams)
    print("\n".join(map(str, seams.decodes)))


if __name__ == "__main__":
    sys.exit(main())
