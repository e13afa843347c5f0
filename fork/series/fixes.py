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

"""Fixes of the release: small edits with a test of their own, independent of the fork and of one another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fork.pin import ForkError
from fork.series.edits import Edit, apply
from fork.series.pull import Pull, Reader, Section

__all__ = ["MOST_LINES", "Fix", "fix_pulls"]

MOST_LINES = 150  # of a fix, with its tests
ELSEWHERE = "fork/pulls"  # holds tests of what the fork does in another way


@dataclass(frozen=True)
class Fix:
    """
    What is wrong in the release, and the edits that put it right.

    Args:
        name: short.
        title: the subject of the mail.
        purpose: what goes wrong, and what the edits do about it.
        evidence: what was measured on the release and after the fix.
        edits: of the release's files.
        tests: its test files, of names that upstream has no files of. They lie in this repository at the same paths,
            and run on the fork as well; or below fork/pulls/, where the fork does it in another way on purpose.
        upstream_tests: upstream's tests of what it touches.
        sections: entries of the documentation.
    """

    name: str
    title: str
    purpose: str
    evidence: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]
    upstream_tests: tuple[str, ...]
    sections: tuple[Section, ...] = ()


def fix_pulls(root: Path, read: Reader, fixes: Iterable[Fix]) -> list[Pull]:
    """
    The pull requests of these fixes.

    Args:
        root: the repository, which holds their tests.
        read: reads a file of the release.
        fixes: in their order.

    Raises:
        ForkError: if an edit does not fit the release, a test is missing, or upstream has a file of its name.
    """
    return [_pull(root, read, fix) for fix in fixes]


def _pull(root: Path, read: Reader, fix: Fix) -> Pull:
    old: dict[str, bytes] = {}
    new: dict[str, bytes] = {}
    for path in dict.fromkeys(edit.path for edit in fix.edits):
        data = read(path)
        if data is None:
            raise ForkError(f"the fix '{fix.name}' edits '{path}', which the release does not have")
        old[path] = data
        try:
            new[path] = apply(data.decode(), [edit for edit in fix.edits if edit.path == path]).encode()
        except ForkError as error:
            raise ForkError(f"the fix '{fix.name}' does not fit: {error}") from None
        if old[path] == new[path]:
            raise ForkError(f"the fix '{fix.name}' changes nothing in '{path}'")
    for path in fix.tests:
        places = [place for place in (root / path, root / ELSEWHERE / path) if place.is_file()]
        if not places:
            raise ForkError(f"the fix '{fix.name}' lacks its test '{path}'")
        new[path] = places[0].read_bytes()
    return Pull(
        name=fix.name,
        title=fix.title,
        purpose=fix.purpose,
        evidence=fix.evidence,
        old=old,
        new=new,
        tests=fix.tests,
        upstream_tests=fix.upstream_tests,
        sections=fix.sections,
    )
