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


"""What every command line does: its results, errors, warnings and exit codes."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import unittest
import warnings
from collections.abc import Callable
from typing import Any

import torch
from parameterized import parameterized

from monai.apps.commands import Command, Parser, Result, as_json, run_command, table
from monai.networks.checkpoints.untrusted import CheckpointRefused


def run(work: Callable[[], Any], *arguments: str, as_object: bool = False) -> tuple[int, str, str]:
    """Run a command that takes one file and a flag; exit code, stdout and stderr."""

    def make_parser() -> argparse.ArgumentParser:
        parser = Parser(prog="tool")
        parser.add_argument("file", metavar="FILE")
        parser.add_argument("--size", type=int)
        return parser

    command = Command(make_parser, lambda options, told: work(), lambda text: text.replace("size=", "--size "))
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_command(command, arguments or ["a.pt"], as_object)
    return code, out.getvalue(), err.getvalue()


def fails(error: BaseException) -> Callable[[], Result]:
    def work() -> Result:
        warnings.warn("before it", stacklevel=1)
        raise error

    return work


def nothing() -> Result:
    return Result({"a": 1}, lambda: "one", code=1)


def noisy() -> Result:
    print("noise")
    for _ in range(2):
        warnings.warn("choose size=2\n  or 3", stacklevel=1)
    warnings.warn("of another package", DeprecationWarning, stacklevel=1)
    return nothing()


class TestCommands(unittest.TestCase):
    def test_results(self):
        self.assertEqual(run(nothing), (1, "one\n", ""))
        code, out, err = run(nothing, as_object=True)
        self.assertEqual((code, json.loads(out), err), (1, {"a": 1, "exit_code": 1, "warnings": []}, ""))

    def test_what_others_print_is_no_result(self):
        self.assertEqual(run(noisy), (1, "one\n", "noise\nwarning: choose --size 2 or 3\n"))
        _, out, err = run(noisy, as_object=True)
        self.assertEqual((json.loads(out)["warnings"], err), (["choose --size 2 or 3"], "noise\n"))

    @parameterized.expand(
        [
            ("value", ValueError("size=0 is too small."), 2, "--size 0 is too small."),
            ("type", TypeError("no number."), 2, "no number."),
            ("of the system", FileNotFoundError(2, "No such file", "a.pt"), 2, "a.pt: No such file."),
            ("of ours", FileExistsError("a.pt is there."), 2, "a.pt is there."),
            ("memory", MemoryError(), 2, "the memory does not suffice."),
            ("package", ImportError("pip install it."), 2, "pip install it."),
            ("does not fit", RuntimeError("key is missing."), 3, "key is missing."),
            ("refused", CheckpointRefused("damaged."), 3, "damaged."),
            ("interrupted", KeyboardInterrupt(), 130, "interrupted."),
        ]
    )
    def test_errors(self, _, error, code, message):
        self.assertEqual(run(fails(error)), (code, "", f"error: {message}\n"))
        found, out, err = run(fails(error), as_object=True)
        told = json.loads(out)
        self.assertEqual((found, err, told["exit_code"], told["error"]), (code, "", code, message))
        self.assertEqual(told["warnings"], [] if isinstance(error, KeyboardInterrupt) else ["before it"])

    def test_a_mistake_of_ours(self):
        code, out, err = run(fails(KeyError("oops")))
        self.assertEqual((code, out), (70, ""))
        self.assertRegex(err, "please report it(.|\n)*Traceback(.|\n)*KeyError: 'oops'")

    def test_arguments(self):
        for arguments, message in (
            (["a", "--size", "x"], "argument --size: invalid int value: 'x'. See tool --help."),
            (["a", "--siz", "1"], "unrecognized arguments: --siz 1. See tool --help."),
        ):
            self.assertEqual(run(nothing, *arguments), (2, "", f"error: {message}\n"))
        code, out, _ = run(nothing, "--help")
        self.assertEqual((code, out.split()[:2]), (0, ["usage:", "tool"]))

    def test_long_lists_of_keys(self):
        """Of a line with a thousand keys the beginning and the remedy are shown."""
        _, _, err = run(fails(RuntimeError(f"Unexpected: {'key, ' * 1000}: build it otherwise.")))
        self.assertLess(len(err), 1000)
        self.assertRegex(err, r"^error: Unexpected: key.*characters.*build it otherwise\.$")

    def test_control_characters(self):
        """A name in a file must not write to the terminal."""
        self.assertEqual(run(fails(ValueError("\x1b[2J\tkey")))[2], "error: \\x1b[2J\tkey\n")

    def test_table(self):
        self.assertEqual(table([["a", "n"], ["bb", 10], ["c", 5]], right=[1]), ["a    n", "------", "bb  10", "c    5"])

    def test_json(self):
        found = as_json({"a": float("inf"), 2: (1, torch.float), "c": None})
        self.assertEqual(found, {"a": None, "2": [1, "torch.float32"], "c": None})


if __name__ == "__main__":
    unittest.main()
