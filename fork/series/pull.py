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

"""A pull request, ready to be written as a mail patch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from fork.patch import git_diff
from fork.pin import ForkError

__all__ = ["Pull", "Reader", "Section", "skeletons"]

Reader = Callable[[str], "bytes | None"]  # what a file of the release holds; None where there is none


@dataclass(frozen=True)
class Section:
    """
    An entry of the documentation.

    Args:
        path: the file, such as ``docs/source/networks.rst``.
        before: the title of the section that it goes before; the line stands once in the file, below an empty one.
        text: the entry.
    """

    path: str
    before: str
    text: str


@dataclass(frozen=True)
class Pull:
    """
    One pull request.

    Args:
        name: short, as in the file name.
        title: the subject of its mail.
        purpose: what it is for, and why.
        evidence: what was measured.
        old: its files before; a new one is not among them.
        new: its files after; a removed one is not among them.
        tests: those of its files that are tests.
        upstream_tests: upstream's tests of what it touches.
        sections: entries of the documentation.
        depends: names of the pull requests that come before.
        notes: further lines of its mail.
    """

    name: str
    title: str
    purpose: str
    evidence: str
    old: Mapping[str, bytes]
    new: Mapping[str, bytes]
    tests: tuple[str, ...] = ()
    upstream_tests: tuple[str, ...] = ()
    sections: tuple[Section, ...] = ()
    depends: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @cached_property
    def diff(self) -> bytes:
        """Its changes in git's format."""
        return git_diff(self.old, self.new) + "".join(_docs_diffs(self.sections)).encode()

    def changed_lines(self) -> tuple[int, int]:
        """Lines added and removed."""
        return _count(self.diff)

    def new_code(self) -> int:
        """Lines added to ``monai/``: without tests, documentation, and what is removed."""
        parts = re.split(rb"^(?=diff --git )", self.diff, flags=re.MULTILINE)
        return _count(b"".join(part for part in parts if part.startswith(b"diff --git a/monai/")))[0]


def _count(diff: bytes) -> tuple[int, int]:
    lines = diff.splitlines()
    added = sum(line.startswith(b"+") and not line.startswith(b"+++ ") for line in lines)
    removed = sum(line.startswith(b"-") and not line.startswith(b"--- ") for line in lines)
    return added, removed


def skeletons(sections: Iterable[Section]) -> dict[str, bytes]:
    """
    What stands for the files of the documentation where there are none: the titles that entries go before.

    The release's wheel has no documentation. Two lines around an entry are enough for git to find its place.
    """
    titles: dict[str, list[str]] = {}
    for section in sections:
        known = titles.setdefault(section.path, [])
        if section.before not in known:
            known.append(section.before)
    return {path: ("..\n\n" + "".join(f"{title}\n\n" for title in known)).encode() for path, known in titles.items()}


def _docs_diffs(sections: tuple[Section, ...]) -> list[str]:
    """A hunk for each entry, with the empty line above it and the title below it as context."""
    found = []
    for path in dict.fromkeys(section.path for section in sections):
        found.append(f"diff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n")
        line, shift = 2, 0
        here = [section for section in sections if section.path == path]
        for title in dict.fromkeys(section.before for section in here):
            text = [row for each in here if each.before == title for row in [*each.text.strip("\n").split("\n"), ""]]
            if not title.strip():
                raise ForkError(f"an entry of '{path}' goes before no title")
            head = f"@@ -{line},2 +{line + shift},{2 + len(text)} @@\n"
            found.append(head + " \n" + "".join(f"+{row}\n" for row in text) + f" {title}\n")
            line, shift = line + 2, shift + len(text)
    return found
