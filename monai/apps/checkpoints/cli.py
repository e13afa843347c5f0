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
import io
import json
import math
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import Any, NoReturn

from monai.networks.checkpoints.untrusted import CheckpointRefused, printable
from monai.networks.state_dict.hooks import CheckpointFacts

from .command_line import UsageError, in_flags, make_parser
from .conversion import convert_checkpoint
from .inspection import inspect_checkpoint
from .network_config import raw_network_config, read_network_config
from .reports import as_json, as_text
from .verification import verify_checkpoint

__all__ = [
    "BAD_INPUT",
    "INTERRUPTED",
    "OK",
    "code_of",
    "facts_of",
    "fail",
    "main",
    "message_of",
    "print_object",
    "run_as_process",
    "texts_of",
]

OK, DIFFERENT, BAD_INPUT, REFUSED, BROKEN, INTERRUPTED = 0, 1, 2, 3, 70, 130
LONGEST_LINE = 800  # of an error
TO_END = 1.0  # seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run a command.

    Args:
        arguments: of the command line; by default those of the process.

    Returns:
        the exit code, see ``--help``.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    as_object = "--json" in arguments
    try:
        options = make_parser().parse_args(arguments)
    except SystemExit:  # help was asked for
        return OK
    except UsageError as error:
        return fail(str(error), BAD_INPUT, as_object)
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught, redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)
            report, code = COMMANDS[options.command](options)
    except KeyboardInterrupt:
        return fail("interrupted.", INTERRUPTED, as_object)
    except Exception as error:
        return fail(message_of(error), code_of(error), as_object, caught)
    told = texts_of(caught)
    if as_object:
        print_object({"command": options.command, "exit_code": code, "warnings": told, **as_json(report)})
        return code
    for text in told:
        print(f"warning: {text}", file=sys.stderr)
    print(as_text(report))
    return code


def run_as_process(command: Callable[[], int]) -> NoReturn:
    """
    Run a command, ``main``, and end the process with its exit code.

    Signals that end the process let it remove what it was writing first. Characters that the output cannot show are
    escaped.
    """
    _end_in_order()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does
    try:
        code = command()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def _end_in_order() -> None:
    """Turn signals into exceptions; a second one right after the first is not to stop the removal of a file."""
    latest = -math.inf

    def end(number: int, _: Any) -> None:
        nonlocal latest
        before, latest = latest, time.monotonic()
        if latest - before < TO_END:
            return
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # the last of which Windows does not have
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, end)


def code_of(error: Exception) -> int:
    """The exit code of an error."""
    if isinstance(error, CheckpointRefused):
        return REFUSED
    if isinstance(error, (OSError, ValueError, TypeError, MemoryError)):
        return BAD_INPUT
    return REFUSED if type(error) is RuntimeError else BROKEN


def message_of(error: Exception) -> str:
    """What a user reads of an error, with the flags of the command line in place of arguments in Python."""
    if code_of(error) == BROKEN:
        return f"this should not have happened, please report it:\n{''.join(traceback.format_exception(error))}"
    if isinstance(error, MemoryError):
        return "the memory does not suffice."
    if isinstance(error, OSError) and error.strerror:  # one of the system's, not of ours
        return f"{error.filename or 'the file'}: {error.strerror}."
    return in_flags(str(error))


def fail(message: str, code: int, as_object: bool, caught: Sequence[warnings.WarningMessage] = ()) -> int:
    """Print why a command ended, as text or as an object, and give back its exit code."""
    text = "\n".join(printable(_shortened(line), kept="\t") for line in message.split("\n"))
    if as_object:
        print_object({"error": text, "exit_code": code, "warnings": texts_of(caught)})
    else:
        print(f"error: {text}", file=sys.stderr)
    return code


def _shortened(line: str) -> str:
    """A line without its middle, where that is a list of a thousand keys: the remedy stands at the end."""
    if len(line) <= LONGEST_LINE:
        return line
    half = LONGEST_LINE // 2
    return f"{line[:half]} ... ({len(line) - 2 * half:,} characters) ... {line[-half:]}"


def print_object(value: dict[str, Any]) -> None:
    """Print one JSON object."""
    print(json.dumps(value, indent=2, allow_nan=False))


def texts_of(caught: Sequence[warnings.WarningMessage]) -> list[str]:
    """The warnings, each of them once."""
    return list(dict.fromkeys(printable(in_flags(" ".join(str(warning.message).split()))) for warning in caught))


def facts_of(options: argparse.Namespace) -> CheckpointFacts:
    """What the options of a command tell about a checkpoint."""
    answers = {"yes": True, "no": False, None: None}
    return CheckpointFacts(
        cross_attention_scaled=answers[options.cross_attention_scaled],
        transposed_upsampling=answers[options.transposed_upsampling],
        projection_used=answers[options.projection_used],
    )


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
