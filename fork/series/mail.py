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

"""Pull requests as mail patches, in the format of ``git format-patch``."""

from __future__ import annotations

import os
import re
import subprocess
import textwrap
from dataclasses import dataclass
from datetime import datetime, timezone
from email.header import Header
from email.utils import format_datetime
from pathlib import Path

from fork.pin import ForkError
from fork.series.pull import Pull

__all__ = ["Author", "author_of", "file_name", "mail"]

WIDTH = 72


@dataclass(frozen=True)
class Author:
    """
    Who signs the patches off, and when.

    Args:
        name: of a person.
        address: for mail.
        date: of the commits.
    """

    name: str
    address: str
    date: datetime


def author_of(root: Path, given: str | None = None) -> Author:
    """
    The author of the patches: the given one, or whom git's settings name in this repository.

    The date is that of the repository's last commit, or ``SOURCE_DATE_EPOCH``, so that patches can be made again.

    Args:
        root: the repository.
        given: ``Name <address>``.

    Raises:
        ForkError: if there is none.
    """
    text = given or _git(root, "var", "GIT_AUTHOR_IDENT")
    found = re.match(r"\s*([^<>\n]*[^<>\s])\s*<([^<>\s]+@[^<>\s]+)>", text)
    if not found:
        raise ForkError("a pull request needs its author: give --author 'Name <address>', or set git's user.name")
    seconds = os.environ.get("SOURCE_DATE_EPOCH") or _git(root, "log", "-1", "--format=%ct") or "0"
    return Author(found[1], found[2], datetime.fromtimestamp(int(seconds), timezone.utc))


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, encoding="utf-8")
    except FileNotFoundError:
        return ""
    return "" if done.returncode else done.stdout.strip()


def file_name(number: int, pull: Pull) -> str:
    """The name of its file, as format-patch would give it."""
    words = re.sub(r"[^A-Za-z0-9._]+", "-", pull.title).strip("-.")
    return f"{number:04d}-{words[:52].rstrip('-.')}.patch"


def mail(pull: Pull, number: int, total: int, author: Author) -> bytes:
    """
    The mail that ``git am`` turns into a commit; binary files are in it as text, in base 85.

    Raises:
        ForkError: if a line ends in CR LF, of which ``git am`` takes the CR away.
    """
    name = Header(author.name, "utf-8").encode() if not author.name.isascii() else author.name
    subject = f"[PATCH {number:0{len(str(total))}d}/{total}] {pull.title}"
    diff = pull.diff
    if b"\r\n" in diff:
        raise ForkError(f"a line of '{pull.name}' ends in CR LF, and git am would take the CR away: end it in LF alone")
    head = (
        f"From {'0' * 40} Mon Sep 17 00:00:00 2001\n"
        f"From: {name} <{author.address}>\n"
        f"Date: {format_datetime(author.date)}\n"
        f"Subject: {subject}\n"
        "MIME-Version: 1.0\n"
        "Content-Type: text/plain; charset=UTF-8\n"
        "Content-Transfer-Encoding: 8bit\n\n"
    )
    body = f"{body_of(pull)}\n\nSigned-off-by: {author.name} <{author.address}>\n---\n{_summary(pull)}\n\n"
    return (head + body).encode() + diff + b"-- \n2.0\n"


def body_of(pull: Pull) -> str:
    """What it is for, what was measured, its tests and documentation, and what it depends on."""
    parts = [_paragraphs(pull.purpose), "Evidence: " + " ".join(pull.evidence.split())]
    parts.append("Tests: " + (", ".join(pull.tests) or "none of its own"))
    if pull.upstream_tests:
        parts.append("Tests of what it touches: " + ", ".join(pull.upstream_tests))
    docs = sorted({section.path for section in pull.sections})
    parts.append("Documentation: " + (", ".join(docs) or "docstrings"))
    parts.append("Depends on: " + (", ".join(pull.depends) or "nothing"))
    parts += pull.notes
    return "\n\n".join(_filled(part) for part in parts)


def _paragraphs(text: str) -> str:
    return textwrap.dedent(text).strip()


def _filled(text: str) -> str:
    paragraphs = [" ".join(each.split()) for each in text.split("\n\n")]
    return "\n\n".join(
        textwrap.fill(each, WIDTH, break_long_words=False, break_on_hyphens=False) for each in paragraphs
    )


def _summary(pull: Pull) -> str:
    added, removed = pull.changed_lines()
    files = {*pull.old, *pull.new, *(section.path for section in pull.sections)}
    return f" {len(files)} files changed, {added} insertions(+), {removed} deletions(-)"
