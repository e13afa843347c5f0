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


"""The commands ``inspect``, ``convert`` and ``verify``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from monai.apps.commands import OK, Command, Result, as_json, run_command

from .command_line import facts_of, in_flags, make_parser, weights_of
from .conversion import convert_checkpoint
from .inspection import inspect_checkpoint
from .network_config import raw_network_config, read_network_config
from .reports import as_text
from .verification import verify_checkpoint

__all__ = ["main"]

DIFFERENT = 1
"""Exit code where a network gives other outputs than the package that wrote the file."""


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run a command.

    Args:
        arguments: of the command line; by default those of the process.

    Returns:
        the exit code, see ``--help``.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return run_command(Command(make_parser, _run, in_flags), arguments, "--json" in arguments)


def _run(options: argparse.Namespace, told: Callable[[], list[str]]) -> Result:
    report, code = COMMANDS[options.command](options)
    return Result({"command": options.command, **as_json(report)}, partial(as_text, report), code)


def _inspect(options: argparse.Namespace) -> tuple[Any, int]:
    return inspect_checkpoint(options.file, options.name, not options.quick, options.progress), OK


def _convert(options: argparse.Namespace) -> tuple[Any, int]:
    report = convert_checkpoint(
        options.file,
        options.output,
        read_network_config(options.config),
        layout=options.to,
        name=options.name,
        facts=facts_of(options),
        options=weights_of(options),
        overwrite=options.force,
        progress=options.progress,
    )
    return report, OK


def _verify(options: argparse.Namespace) -> tuple[Any, int]:
    if options.against_config and not options.against:
        raise ValueError("--against-config needs --against, the package that it is for.")
    report = verify_checkpoint(
        options.file,
        read_network_config(options.config),
        name=options.name,
        facts=facts_of(options),
        options=weights_of(options),
        size=options.size,
        batch=options.batch,
        seed=options.seed,
        inputs=options.inputs,
        against=options.against,
        against_config=raw_network_config(options.against_config) if options.against_config else None,
        tolerance=options.tolerance,
    )
    return report, OK if report.comparison is None or report.comparison.agrees else DIFFERENT


COMMANDS: dict[str, Callable[[argparse.Namespace], tuple[Any, int]]] = {
    "inspect": _inspect,
    "convert": _convert,
    "verify": _verify,
}
