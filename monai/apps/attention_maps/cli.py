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


"""The command ``python -m monai.visualize.attention``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import log, prod
from pathlib import Path
from typing import Any

from monai.apps.commands import OK, Command, Result, as_json, run_command, table
from monai.utils.module import optional_import
from monai.utils.whole_files import check_place, replacing

from .attending import Report, Step, attend
from .command_line import in_flags, make_parser

__all__ = ["main"]

STDOUT = "-"


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command.

    Args:
        arguments: of the command line; by default those of the process.

    Returns:
        the exit code, see ``--help``.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return run_command(Command(make_parser, _run, in_flags), arguments, _json_to_stdout(arguments))


def _run(options: argparse.Namespace, told: Callable[[], list[str]]) -> Result:
    file = None if options.json in (None, STDOUT) else Path(options.json)
    if file is not None:
        check_place(file, options.force)
    with _steps(options.progress) as step:
        report = attend(options, step)
    values = as_json(report)
    if file is not None:
        _write_object(file, {"exit_code": OK, "warnings": told(), **values}, options.force)
    return Result(values, partial(_as_text, report))


def _json_to_stdout(arguments: Sequence[str]) -> bool:
    """Whether the command line asks for an object on stdout, told before it is known to be right."""
    followers = [*arguments[1:], "-"]
    return any(word == "--json" and after.startswith("-") for word, after in zip(arguments, followers))


def _write_object(path: Path, value: dict[str, Any], overwrite: bool) -> None:
    with replacing(path, overwrite) as partial:
        partial.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


@contextmanager
def _steps(wanted: bool | None) -> Iterator[Step]:
    """
    Show on stderr what is being done.

    Args:
        wanted: whether to show a bar; None shows it on a terminal. It needs tqdm.

    Yields:
        a function to call with what is done next, and how many steps are left with it.
    """
    show = sys.stderr.isatty() if wanted is None else wanted
    tqdm, found = optional_import("tqdm", name="tqdm")
    if not (show and found):
        yield lambda label, left: None
        return
    with tqdm(total=None, unit="step", file=sys.stderr) as shown:

        def step(label: str, left: int) -> None:
            shown.total = shown.n + 1 + left
            shown.update(1)
            shown.set_description(label)

        yield step


def _as_text(report: Report) -> str:
    """A report for a terminal."""
    head = ("layer", "call", "head", "query", "token", "grid", "maximum", "at voxel", "at mm", "entropy", "of at most")
    rows = [
        (
            layer.layer,
            layer.call,
            "mean" if layer.head is None else layer.head,
            layer.query,
            layer.token,
            "x".join(map(str, layer.grid)),
            f"{layer.maximum:.3g}",
            ",".join(map(str, layer.voxel)),
            ",".join(f"{value:.1f}" for value in layer.world),
            f"{layer.entropy:.3f}",
            f"{log(prod(layer.grid)):.3f}",
        )
        for layer in report.layers
    ]
    size = " x ".join(map(str, report.image_size))
    peak = "" if report.peak_mib is None else f", peak memory {report.peak_mib:.0f} MiB"
    return "\n".join(
        [
            f"{report.network}, {report.method}, image {size} ({report.orientation})",
            "",
            *table(rows=[head, *rows], right=(1, 4, 6, 9, 10)),
            "",
            *[f"note: {note}" for note in report.notes],
            f"{', '.join(report.files)}: {report.seconds:.2f} s in the network{peak}",
        ]
    )
