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

"""Checks of the pull requests: each on what it depends on, in a temporary tree."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fork.series.mail import Author, mail
from fork.series.pull import Pull, Reader
from fork.series.style import installed, offenders
from fork.series.tree import Tree

__all__ = ["NO", "Checker", "Result", "merged_problems", "table"]

SETTINGS = ("--override-ini=addopts=", "--override-ini=python_functions=no_functions")  # upstream's are all methods
# Bytecode would outlive the patch that it was made with: Python knows it by a file's size and the second of its change.
VARIABLES = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
YES, NO, UNTRIED = "ok", "FAILS", "-"


@dataclass
class Result:
    """
    What came of one pull request.

    Args:
        name: of the pull request.
        lines: added and removed.
        depends: on how many others.
        cells: a word a check.
        problems: what is wrong, in words.
        remarks: what is worth knowing and not wrong.
        seconds: how long the checks took.
    """

    name: str
    lines: tuple[int, int]
    depends: int
    cells: dict[str, str]
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Checker:
    """
    Applies pull requests to a tree and runs what belongs to each.

    Args:
        tree: the release, or a checkout of upstream.
        author: of the patches.
        with_tests: whether to run tests. Defaults to True.
        upstream: reads upstream's tests, which run after each patch; None if there is no copy of them.
    """

    def __init__(self, tree: Tree, author: Author, with_tests: bool = True, upstream: Reader | None = None) -> None:
        self.tree = tree
        self.author = author
        self.with_tests = with_tests
        self.upstream = upstream
        self.styles = installed()

    def check(self, pull: Pull, before: Sequence[Pull], must_fail: bool) -> Result:
        """
        Check one pull request.

        Args:
            pull: the pull request.
            before: those that it depends on, in their order.
            must_fail: whether its tests have to fail without it.
        """
        start = time.monotonic()
        names = ["am", "style", *(["before"] if must_fail else []), "tests", "upstream"]
        result = Result(pull.name, pull.changed_lines(), len(pull.depends), dict.fromkeys(names, UNTRIED))
        problems = self._apply([*before, pull])
        result.cells["am"] = NO if problems else YES
        result.problems += problems
        if not problems:
            self._style(pull, before, result)
            if self.with_tests:
                self._tests(pull, before, result, must_fail)
        result.seconds = time.monotonic() - start
        return result

    def _apply(self, pulls: Sequence[Pull]) -> list[str]:
        return self.tree.apply(mail(each, number, len(pulls), self.author) for number, each in enumerate(pulls, 1))

    def _style(self, pull: Pull, before: Sequence[Pull], result: Result) -> None:
        """The tools find no fault with a file that they found none with before."""
        paths = sorted(path for path in pull.new if path.endswith(".py"))
        found = {tool: offenders(tool, self.tree.folder, paths) for tool in self.styles}
        bad = {tool: those for tool, those in found.items() if those}
        if bad and pull.old:
            self._apply(before)
            for tool, those in bad.items():
                those -= offenders(tool, self.tree.folder, sorted(path for path in those if path in pull.old))
            self._apply([*before, pull])
        result.problems += [f"{tool}: {', '.join(sorted(those))}" for tool, those in bad.items() if those]
        result.cells["style"] = NO if any(bad.values()) else YES if self.styles else UNTRIED

    def _tests(self, pull: Pull, before: Sequence[Pull], result: Result, must_fail: bool) -> None:
        if pull.tests:
            result.cells["tests"] = self._run(pull.tests, result.problems)
        theirs = self._lay_out(pull.upstream_tests)
        if theirs:
            words: list[str] = []
            result.cells["upstream"] = self._run(theirs, words)
            if words and self._same_without(before, words):
                result.cells["upstream"] = YES
                result.remarks.append(f"upstream's own tests fail as they do without it: {words[0]}")
            else:
                result.problems += words
        if must_fail and pull.tests:
            self._apply(before)
            for path in pull.new:
                if path.startswith("tests/"):
                    place = self.tree.folder / path
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(pull.new[path])
            passing = [path for path in pull.tests if self._run([path], []) == YES]
            result.cells["before"] = NO if passing else "fails"
            result.problems += [f"{path} passes without the patch" for path in passing]

    def _same_without(self, before: Sequence[Pull], words: Sequence[str]) -> bool:
        """Whether these tests of upstream fail without the patch, too; applies what comes before it alone."""
        failed = [word.split(" ")[1] for word in words if word.startswith("FAILED ")]
        self._apply(before)
        self._lay_out(sorted({test.partition("::")[0] for test in failed}))
        others: list[str] = []
        self._run(failed, others)
        return len(failed) == len(words) == len(others)

    def _lay_out(self, paths: Sequence[str]) -> list[str]:
        """Put these tests of upstream into the tree; those that there are."""
        found = []
        for path in paths:
            data = self.tree.read(path) or (self.upstream(path) if self.upstream else None)
            if data is not None:
                place = self.tree.folder / path
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(data)
                found.append(path)
        return found

    def _run(self, paths: Sequence[str], problems: list[str]) -> str:
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider"]
        variables = {**os.environ, **VARIABLES, "PYTHONPATH": _path(self.tree)}
        done = subprocess.run(
            [*command, *SETTINGS, *paths],
            cwd=self.tree.folder,
            env=variables,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        if done.returncode:
            lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
            problems += lines or (done.stdout + done.stderr).strip().splitlines()[-1:]
        return NO if done.returncode else YES


def _path(tree: Tree) -> str:
    """The tree before everything else that the user has put on the path."""
    return os.pathsep.join(filter(None, [str(tree.folder), os.environ.get("PYTHONPATH", "")]))


def table(title: str, width: int, results: Iterable[Result], say: Callable[[str], None] = print) -> bool:
    """
    Print what came of the pull requests, each as soon as it is known, and then what is wrong with them.

    Args:
        title: heads the column of their names.
        width: of this column.
        results: made one after the other.
        say: prints a line.

    Returns:
        whether nothing is wrong.
    """
    done: list[Result] = []
    for result in results:
        if not done:
            columns = "  ".join(f"{name:>8}" for name in result.cells)
            say(f"{title:<{width}}  {'+':>5} {'-':>5}  needs  {columns}  seconds")
        say(_row(result, width))
        done.append(result)
    for result in done:
        for problem in result.problems:
            say(f"  {result.name}: {problem}")
        for remark in result.remarks:
            say(f"  {result.name}, remark: {remark}")
    return not any(result.problems for result in done)


def _row(result: Result, width: int) -> str:
    cells = "  ".join(f"{cell:>8}" for cell in result.cells.values())
    added, removed = result.lines
    return f"{result.name:<{width}}  {added:>5} {removed:>5}  {result.depends:>5}  {cells}  {result.seconds:>7.1f}"


def merged_problems(tree: Tree, pulls: Sequence[Pull], author: Author, merged: Mapping[str, bytes]) -> list[str]:
    """
    What is wrong with the tree after all of these pull requests.

    Args:
        tree: the release.
        pulls: the features in their order.
        author: of the patches.
        merged: every file that ``monai/`` should hold in the end.
    """
    problems = tree.apply(mail(each, number, len(pulls), author) for number, each in enumerate(pulls, 1))
    if problems:
        return problems
    there = tree.git("ls-files", "-z", "monai").decode().split("\0")
    paths = sorted({*filter(None, there), *merged})
    return [f"{path} is not the fork's in the end" for path in paths if tree.read(path) != merged.get(path)]
