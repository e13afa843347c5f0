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


"""What the command lines of this package share: how a command runs, what it prints, and how its process ends."""

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
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, is_dataclass
from typing import Any, NoReturn

from monai.networks.checkpoints.untrusted import CheckpointRefused, printable

__all__ = ["OK", "Command", "Parser", "Result", "UsageError", "as_json", "run_as_process", "run_command", "table"]

OK, BAD_INPUT, REFUSED, BROKEN, INTERRUPTED = 0, 2, 3, 70, 130
"""Exit codes. A command may have one of its own for a result that is not as hoped, which is 1."""
LONGEST_LINE = 800  # of an error
TO_END = 1.0  # seconds


class UsageError(Exception):
    """The command line is not as it should be."""


class Parser(argparse.ArgumentParser):
    """A parser that raises :class:`UsageError` where argparse would end the process, except for ``--help``."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. See {self.prog} --help.")


@dataclass(frozen=True)
class Result:
    """
    What a command found.

    Args:
        values: as ``json.dumps`` takes it.
        text: gives the text for a terminal.
        code: with which its process ends.
    """

    values: dict[str, Any]
    text: Callable[[], str]
    code: int = OK


@dataclass(frozen=True)
class Command:
    """
    A command.

    Args:
        make_parser: makes the parser of its arguments.
        run: does what the options ask for. It is also given a function that tells the warnings until then.
        in_flags: puts the flags of the command line in place of arguments in Python, in a message of the library.
    """

    make_parser: Callable[[], argparse.ArgumentParser]
    run: Callable[[argparse.Namespace, Callable[[], list[str]]], Result]
    in_flags: Callable[[str], str]


def run_command(command: Command, arguments: Sequence[str], as_object: bool) -> int:
    """
    Run a command: print its result, or in one line why there is none. Nothing else reaches stdout.

    Args:
        command: the command.
        arguments: of the command line.
        as_object: whether to print a JSON object.

    Returns:
        the exit code.
    """
    try:
        options = command.make_parser().parse_args(arguments)
    except SystemExit:  # help was asked for
        return OK
    except UsageError as error:
        return _fail(str(error), BAD_INPUT, as_object, [])
    caught: list[warnings.WarningMessage] = []

    def told() -> list[str]:
        texts = (command.in_flags(" ".join(str(warning.message).split())) for warning in caught)
        return list(dict.fromkeys(map(printable, texts)))

    try:
        with warnings.catch_warnings(record=True) as caught, redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)
            result = command.run(options, told)
    except KeyboardInterrupt:
        return _fail("interrupted.", INTERRUPTED, as_object, [])
    except Exception as error:
        return _fail(_message_of(error, command.in_flags), _code_of(error), as_object, told())
    if as_object:
        _print_object({"exit_code": result.code, "warnings": told(), **result.values})
        return result.code
    for text in told():
        print(f"warning: {text}", file=sys.stderr)
    print(result.text())
    return result.code


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


def as_json(report: Any) -> Any:
    """A report as what ``json.dumps`` takes; numbers that are not finite become null."""
    if is_dataclass(report) and not isinstance(report, type):
        derived = [name for name, value in vars(type(report)).items() if isinstance(value, property)]
        return as_json({name: getattr(report, name) for name in (*report.__dataclass_fields__, *derived)})
    if isinstance(report, dict):
        return {str(key): as_json(value) for key, value in report.items()}
    if isinstance(report, (list, tuple)):
        return [as_json(value) for value in report]
    if isinstance(report, float) and not math.isfinite(report):
        return None
    return report if report is None or isinstance(report, (bool, int, float, str)) else str(report)


def table(rows: Sequence[Sequence[Any]], right: Iterable[int] = ()) -> list[str]:
    """
    Lines of a table.

    Args:
        rows: cells, the head first.
        right: columns whose cells end at the same place.
    """
    texts = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts)]
    ends = set(right)
    lines = []
    for row in texts:
        cells = [cell.rjust(w) if i in ends else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _code_of(error: Exception) -> int:
    if isinstance(error, CheckpointRefused):
        return REFUSED
    if isinstance(error, (OSError, ValueError, TypeError, MemoryError, ImportError)):
        return BAD_INPUT
    return REFUSED if type(error) is RuntimeError else BROKEN


def _message_of(error: Exception, in_flags: Callable[[str], str]) -> str:
    """What a user reads of an error."""
    if _code_of(error) == BROKEN:
        return f"this should not have happened, please report it:\n{''.join(traceback.format_exception(error))}"
    if isinstance(error, MemoryError):
        return "the memory does not suffice."
    if isinstance(error, OSError) and error.strerror:  # one of the system's, not of ours
        return f"{error.filename or 'the file'}: {error.strerror}."
    return in_flags(str(error))


def _fail(message: str, code: int, as_object: bool, told: list[str]) -> int:
    """Print why a command ended, as text or as an object, and give back its exit code."""
    text = "\n".join(printable(_shortened(line), kept="\t") for line in message.split("\n"))
    if as_object:
        _print_object({"error": text, "exit_code": code, "warnings": told})
    else:
        print(f"error: {text}", file=sys.stderr)
    return code


def _shortened(line: str) -> str:
    """A line without its middle, where that is a list of a thousand keys: the remedy stands at the end."""
    if len(line) <= LONGEST_LINE:
        return line
    half = LONGEST_LINE // 2
    return f"{line[:half]} ... ({len(line) - 2 * half:,} characters) ... {line[-half:]}"


def _print_object(value: dict[str, Any]) -> None:
    """Print one JSON object."""
    print(json.dumps(value, indent=2, allow_nan=False))
