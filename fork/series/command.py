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

"""``python -m fork series``: the pull requests, written to a folder or checked."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fork.files import package_files
from fork.overlay import check, contents
from fork.pin import VERSION_FILE, ForkError, Pin
from fork.pulls import FEATURES, FIXES, TEST_DATA, UPSTREAM_TESTS
from fork.series import features, fixes
from fork.series.check import NO, Checker, Result, merged_problems, table
from fork.series.features import Feature
from fork.series.fixes import Fix
from fork.series.mail import Author, author_of, file_name, mail
from fork.series.pull import Pull, Section, skeletons
from fork.series.style import installed
from fork.series.tree import Tree, git_reader, tree_of_checkout, tree_of_release
from fork.wheel import pristine

__all__ = ["Series", "check_series", "write_series"]


@dataclass(frozen=True)
class Series:
    """
    The pull requests of a fork.

    Args:
        pin: the fork.
        fixes: what is wrong in the release.
        features: the parts of the fork.
        upstream: test files and helpers that upstream has.
        reads: patterns of the test data that files of tests/ read.
    """

    pin: Pin
    fixes: Sequence[Fix] = FIXES
    features: Sequence[Feature] = FEATURES
    upstream: frozenset[str] = UPSTREAM_TESTS
    reads: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: TEST_DATA)

    @cached_property
    def release(self) -> Path:
        """The folder that holds the release, which the fork fits."""
        check(self.pin)
        release = pristine(self.pin.root)
        check(self.pin, release)
        return release

    @cached_property
    def parts(self) -> dict[str, list[Pull]]:
        """The pull requests, fixes first."""
        taken = [path for fix in self.fixes for path in fix.tests if path in self.upstream]
        if taken:
            raise ForkError(f"upstream has a file '{taken[0]}' of its own: give the test of the fix another name")
        return {
            "fixes": fixes.fix_pulls(self.pin.root, self._read, self.fixes),
            "features": (
                features.feature_pulls(self.pin, self.release, self.features, self.upstream, self.reads, self.fix_tests)
                if self.features
                else []
            ),
        }

    @property
    def fix_tests(self) -> set[str]:
        """Tests that go with the fixes."""
        return {path for fix in self.fixes for path in fix.tests}

    @property
    def extra(self) -> dict[str, bytes]:
        """What upstream has beside ``monai/`` and the pull requests need: titles of the documentation, packages."""
        sections: list[Section] = [
            each for part in (self.fixes, self.features) for one in part for each in one.sections
        ]
        packages = {path: b"" for path in self.upstream if path.endswith("/__init__.py")}
        return {**skeletons(sections), **packages}

    def _read(self, path: str) -> bytes | None:
        place = self.release / path
        return place.read_bytes() if place.is_file() else None


def write_series(series: Series, folder: Path, author: str | None = None, say: Callable[[str], None] = print) -> None:
    """
    Write the pull requests as mail patches, each part into a folder of its own.

    Args:
        series: the pull requests.
        folder: an empty folder, or one that does not exist.
        author: ``Name <address>``; by default whom git's settings name.
        say: prints a line.

    Raises:
        ForkError: if the folder holds something, or a pull request cannot be made.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ForkError(f"'{folder}' is not empty: name a new folder")
    who = author_of(series.pin.root, author)
    for part, pulls in series.parts.items():
        for number, pull in enumerate(pulls, 1):
            path = folder / part / file_name(number, pull)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(mail(pull, number, len(pulls), who))
            added, removed = pull.changed_lines()
            say(f"{part}/{path.name}  +{added} -{removed}  needs {', '.join(pull.depends) or 'nothing'}")
    for test, reason in features.contract_tests(series.pin.root, series.upstream, series.reads)[1].items():
        say(f"stays here: {test}, {reason}")


def check_series(
    series: Series,
    *,
    only: Sequence[str] = (),
    with_tests: bool = True,
    in_the_end: bool | None = None,
    onto: Path | None = None,
    tests_from: Path | None = None,
    author: str | None = None,
    say: Callable[[str], None] = print,
) -> bool:
    """
    Check the pull requests and print a table.

    Args:
        series: the pull requests.
        only: names of those to check; by default all.
        with_tests: whether to run tests.
        in_the_end: whether to compare what all features end in with the fork; by default where ``only`` is empty.
        onto: a git checkout of upstream, or a bare repository, to apply them to instead of the release.
        tests_from: a git copy of upstream whose tests of the touched blocks are run, too; by default ``onto``.
        author: ``Name <address>``; by default whom git's settings name.
        say: prints a line.

    Returns:
        whether all is well.

    Raises:
        ForkError: if a pull request cannot be made, or there is none of a name in ``only``.
    """
    parts = {part: [pull for pull in pulls if not only or pull.name in only] for part, pulls in series.parts.items()}
    unknown = set(only) - {pull.name for pulls in parts.values() for pull in pulls}
    if unknown:
        names = ", ".join(pull.name for pulls in series.parts.values() for pull in pulls)
        raise ForkError(f"there is no pull request '{sorted(unknown)[0]}', only {names}")
    who = author_of(series.pin.root, author)
    with tempfile.TemporaryDirectory() as scratch:
        tree = _tree(series, Path(scratch), who, onto, tests_from)
        copy = tests_from or onto
        checker = Checker(tree, who, with_tests, git_reader(copy) if copy else None)
        say(f"base {_base(series, tree, onto)}; style: {', '.join(installed()) or 'no tool is installed, so not run'}")
        fine = True
        for part, pulls in parts.items():
            width = max(len(part), *(len(pull.name) for pull in pulls), 0)
            fine = table(part, width, (_checked(series, checker, part, pull) for pull in pulls), say) and fine
        if not onto and (not only if in_the_end is None else in_the_end):
            problems = merged_problems(tree, series.parts["features"], who, _merged(series))
            say("in the end: " + ("the fork's monai/, byte for byte" if not problems else "another monai/"))
            for problem in problems:
                say(f"  {problem}")
            fine = fine and not problems
    return fine


def _checked(series: Series, checker: Checker, part: str, pull: Pull) -> Result:
    if part == "fixes":
        result = checker.check(pull, [], must_fail=True)
        if result.cells["am"] == NO:
            result = _made_anew(series, checker, pull, result)
        changed = sum(result.lines)
        result.remarks += [f"{changed} changed lines, more than {fixes.MOST_LINES}"] * (changed > fixes.MOST_LINES)
        return result
    all_features = series.parts["features"]
    before = [each for each in all_features if each.name in pull.depends]
    result = checker.check(pull, before, must_fail=False)
    code = pull.new_code()
    result.remarks += [f"{code} new lines of code, more than {features.MOST_LINES}"] * (code > features.MOST_LINES)
    late = features.order_problems(all_features).get(pull.name)
    result.problems += [f"imports from later features: {late}"] if late else []
    return result


def _made_anew(series: Series, checker: Checker, pull: Pull, result: Result) -> Result:
    """A fix that does not apply as a patch, with its edits made in the files of this tree."""
    checker.tree.apply([])
    fix = next(each for each in series.fixes if each.name == pull.name)
    try:
        anew = fixes.fix_pulls(series.pin.root, checker.tree.read, [fix])[0]
    except ForkError as error:
        result.problems = [str(error)]
        return result
    result = checker.check(anew, [], must_fail=True)
    result.remarks.append("the patch against the release does not apply, its edits do")
    return result


def _tree(series: Series, scratch: Path, who: Author, onto: Path | None, tests_from: Path | None) -> Tree:
    if onto:
        git_reader(onto)  # refuses what is no repository
        return tree_of_checkout(scratch, onto, who)
    return tree_of_release(
        scratch, series.release, _with_helpers(series, tests_from), who, git_reader(tests_from) if tests_from else None
    )


def _with_helpers(series: Series, tests_from: Path | None) -> dict[str, bytes]:
    """What stands beside the release: with a copy of upstream, the helpers of its tests, too."""
    read = git_reader(tests_from) if tests_from else None
    helpers = (path for path in series.upstream if not Path(path).name.startswith(("test_", "__init__")))
    found = {path: read(path) for path in [*helpers, "tests/test_utils.py"]} if read else {}
    return {**series.extra, **{path: data for path, data in found.items() if data is not None}}


def _base(series: Series, tree: Tree, onto: Path | None) -> str:
    if not onto:
        return f"MONAI {series.pin.version} ({series.pin.wheel})"
    line = tree.git("log", "-1", "--format=%h of %cs, %s").decode().strip()
    different = sorted(
        path
        for path in [*series.pin.replaces, *series.pin.amends]
        if tree.read(path) != (series.release / path).read_bytes()
    )
    return f"{line}; {len(different)} of the files that the fork changes are not {series.pin.version}'s there"


def _merged(series: Series) -> dict[str, bytes]:
    files = {path: (series.release / path).read_bytes() for path in package_files(series.release)}
    files |= contents(series.pin, series.release)
    return {path: data for path, data in files.items() if path != VERSION_FILE or data}
