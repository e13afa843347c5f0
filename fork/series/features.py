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

"""The fork in parts: every file of ``monai/`` belongs to one feature, with its tests and documentation."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from fork.overlay import contents
from fork.pin import ForkError, Pin
from fork.series.data import data_files, too_large
from fork.series.imports import exports_only, imported_files, imported_names, packages_around
from fork.series.pull import Pull, Reader, Section

__all__ = ["MOST_LINES", "Feature", "assigned", "contract_tests", "feature_pulls", "order_problems"]

MOST_LINES = 800  # of new code in a feature, its tests apart

# Tests that need the pristine release, older packages, or what the repository has beside monai/.
HERE_ALONE = (
    *("fork", "demo", "benchmarks"),
    *("tests.parity", "tests.dropin"),
)
ELSEWHERE = ("parity", "dropin", "fork", "benchmarks", "demo", "runtests", "testing_data", "networks/exports")
OF_THIS_HOUSE = (
    "tests/test_documents.py",
    "tests/test_imports.py",
    "tests/test_private_names.py",
)  # its pages, its rooms
NO_TESTS = (*(f"tests/{name}/" for name in ELSEWHERE), *OF_THIS_HOUSE)


@dataclass(frozen=True)
class Feature:
    """
    A part of the fork.

    Args:
        name: short.
        title: the subject of the mail.
        purpose: what it is for.
        evidence: what was measured.
        paths: patterns of its files in ``monai/``. Where several features' match, the longest pattern decides.
        tests: patterns of its contract tests, by the same rule.
        upstream_tests: upstream's tests of what it touches.
        sections: entries of the documentation.
    """

    name: str
    title: str
    purpose: str
    evidence: str
    paths: tuple[str, ...]
    tests: tuple[str, ...] = ()
    upstream_tests: tuple[str, ...] = ()
    sections: tuple[Section, ...] = ()


def assigned(paths: Iterable[str], patterns: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """
    To which name each path belongs: the one with the longest pattern that matches.

    Args:
        paths: the paths.
        patterns: those of each name; ``*`` stands for any text, slashes included.

    Raises:
        ForkError: if a path matches no pattern, or two of the same length.
    """
    found = {}
    for path in paths:
        fits = [(len(each), name) for name, ours in patterns.items() for each in ours if fnmatchcase(path, each)]
        best = {name for length, name in fits if length == max(fits)[0]}
        if len(best) != 1:
            what = f"to {' and '.join(sorted(best))}" if best else "to no feature"
            raise ForkError(f"'{path}' belongs {what}: give it to one in fork/pulls/features.py")
        found[path] = best.pop()
    return found


def contract_tests(
    root: Path, upstream: frozenset[str], reads: Mapping[str, tuple[str, ...]]
) -> tuple[dict[str, set[str]], dict[str, str]]:
    """
    The tests that say what the fork does without asking the release.

    Args:
        root: the repository.
        upstream: test files that upstream has.
        reads: patterns of the test data that files of tests/ read.

    Returns:
        for each of these tests the helpers and data among the tests that it needs, and the tests that stay here, each
        with the reason.

    Raises:
        ForkError: if a test reads data that nobody has declared.
    """

    def read(path: str) -> bytes | None:
        place = root / path
        return place.read_bytes() if place.is_file() else None

    found: dict[str, set[str]] = {}
    stays: dict[str, str] = {}
    for place in sorted((root / "tests").rglob("test_*.py")):
        path = place.relative_to(root).as_posix()
        if path.startswith(NO_TESTS):
            continue
        files = _imported_tests(path, read)
        here_alone = sorted(each for each in files if each.startswith(NO_TESTS) or _is_here_alone(read(each)))
        data = set() if here_alone else data_files(root, files, reads)
        large = too_large(root, data)
        if here_alone:
            stays[path] = f"since it needs {here_alone[0]}, which upstream will not have"
        elif path in upstream:
            stays[path] = "since upstream has a file of this name"
        elif large:
            stays[path] = f"since it reads {large}"
        else:
            found[path] = (files | data) - {path} - upstream
    return found, stays


def _imported_tests(path: str, read: Reader) -> set[str]:
    """A test, and the files of tests/ that it imports, directly or not."""
    found: set[str] = set()
    todo = [path]
    while todo:
        here = todo.pop()
        if here not in found:
            found.add(here)
            todo += [each for each in imported_files(here, read) if each.startswith("tests/")]
    return found


def _is_here_alone(data: bytes | None) -> bool:
    text = (data or b"").decode()
    needles = [f"{word} {name}{end}" for name in HERE_ALONE for word in ("import", "from") for end in (" ", ".", "\n")]
    return any(needle in text for needle in needles)


def feature_pulls(
    pin: Pin,
    release: Path,
    features: Iterable[Feature],
    upstream: frozenset[str],
    reads: Mapping[str, tuple[str, ...]],
    fix_tests: Iterable[str] = (),
) -> list[Pull]:
    """
    The pull requests of these features, in their order.

    Args:
        pin: the fork.
        release: the folder that holds the release.
        features: the table.
        upstream: test files that upstream has.
        reads: patterns of the test data that files of tests/ read.
        fix_tests: tests that go with the fixes.

    Raises:
        ForkError: if a file belongs to no feature, or to two.
    """
    features = list(features)
    ours = contents(pin, release)
    owner = assigned(ours, {each.name: each.paths for each in features})
    tests, _ = contract_tests(pin.root, upstream, reads)
    tests = {path: helpers for path, helpers in tests.items() if path not in set(fix_tests)}
    test_owner = assigned(tests, {each.name: each.tests for each in features})
    needs = _dependencies(ours, release, owner, pin.amends)
    order = [each.name for each in features]
    for path, helpers in tests.items():
        late = max(
            order.index(name) for name in [test_owner[path], *_tested(pin, [path, *helpers], ours, release, owner)]
        )
        test_owner[path] = order[late]
    pulls: list[Pull] = []
    adder: dict[str, str] = {}  # of helpers, data and packages of tests: which feature brings it
    for feature in features:
        paths = [path for path in ours if owner[path] == feature.name]
        mine = [path for path in tests if test_owner[path] == feature.name]
        wanted: set[str] = set().union(*(tests[path] for path in mine), _packages(mine)) - upstream
        wanted |= _packages(wanted) - upstream
        added = sorted(path for path in wanted if adder.setdefault(path, feature.name) == feature.name)
        needed = needs.setdefault(feature.name, set())
        for path in mine:
            for other in _tested(pin, [path, *tests[path]], ours, release, owner) - {feature.name}:
                needed |= {other, *needs.get(other, set())} - {feature.name}
        for other in {adder[path] for path in wanted} - {feature.name}:
            needed |= {other, *needs[other]}
        old = {path: (release / path).read_bytes() for path in paths if path not in pin.adds}
        new = {path: ours[path] for path in paths}
        new |= {path: (pin.root / path).read_bytes() for path in [*mine, *added]}
        pulls.append(
            Pull(
                name=feature.name,
                title=feature.title,
                purpose=feature.purpose,
                evidence=feature.evidence,
                old=old,
                new=new,
                tests=tuple(mine),
                upstream_tests=feature.upstream_tests,
                sections=feature.sections,
                depends=tuple(each.name for each in features if each.name in needed),
            )
        )
    return pulls


def order_problems(pulls: Iterable[Pull]) -> dict[str, str]:
    """For each feature that imports from a later one: from which."""
    found = {}
    done: set[str] = set()
    for pull in pulls:
        late = [name for name in pull.depends if name not in done]
        if late:
            found[pull.name] = ", ".join(late)
        done.add(pull.name)
    return found


def _merged_reader(ours: Mapping[str, bytes], release: Path) -> Reader:
    def read(path: str) -> bytes | None:
        if path in ours:
            return ours[path]
        place = release / path
        return place.read_bytes() if place.is_file() else None

    return read


def _tested(
    pin: Pin, paths: Iterable[str], ours: Mapping[str, bytes], release: Path, owner: Mapping[str, str]
) -> set[str]:
    """The features that these files of tests/ import from."""
    read = _merged_reader(ours, release)

    def read_tests(path: str) -> bytes | None:
        return (pin.root / path).read_bytes() if path in those else read(path)

    those = {path for path in paths if path.endswith(".py")}
    found = {each for path in those for each in imported_files(path, read_tests) - _unchanged(pin, path, read_tests)}
    around = packages_around("", found) - {*pin.amends}
    found |= {
        each for each in around if not exports_only(read(each) or b"")
    }  # Python imports a folder without one, too
    return {owner[each] for each in found if each in owner}


def _unchanged(pin: Pin, path: str, read: Reader) -> set[str]:
    """Amended packages from which a file imports only what they export in the release, too."""
    packages = [package for package in pin.amends if package.endswith("/__init__.py")]
    return {each for each in packages if imported_names(path, each, read).isdisjoint({None, *pin.new_names[each]})}


def _dependencies(
    ours: Mapping[str, bytes], release: Path, owner: Mapping[str, str], amended: Collection[str]
) -> dict[str, set[str]]:
    """For each feature those that it needs, directly or not."""
    read = _merged_reader(ours, release)
    needs: dict[str, set[str]] = {name: set() for name in owner.values()}
    for path in ours:
        if path.endswith(".py"):
            found = imported_files(path, read)
            if path in amended:  # what the release's file imports as well is there in any case
                theirs = {**ours, path: (release / path).read_bytes()}
                found -= imported_files(path, _merged_reader(theirs, release))
            found |= packages_around(path, found) - {*amended}
            needs[owner[path]] |= {owner[each] for each in found if each in owner}
    for _ in needs:
        for name, those in needs.items():
            those.update(*(needs[each] for each in list(those)))
            those.discard(name)
    return needs


def _packages(paths: Iterable[str]) -> set[str]:
    """The packages of these tests; data lies in none."""
    tests = [Path(path).parent for path in paths if path.startswith("tests/") and path.endswith(".py")]
    return {f"{folder.as_posix()}/__init__.py" for folder in tests}
