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

"""Small edits of the release's files: found by a short anchor, so that little of it is quoted."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

from fork.pin import ForkError

__all__ = ["Edit", "above", "apply", "below", "instead", "swap"]


@dataclass(frozen=True)
class Edit:
    """
    One edit of a definition; :func:`swap`, :func:`above`, :func:`below` and :func:`instead` make them.

    Args:
        path: the file.
        where: the function or class, such as ``SABlock.forward``; empty for the whole module.
        anchor: a text that the definition holds exactly once.
        text: what comes there. The lines get the indentation of what they stand beside.
        how: "swap" replaces the anchor, "above" and "below" add lines next to the anchor's line, "instead" replaces
            the smallest statement that holds the anchor.
    """

    path: str
    where: str
    anchor: str
    text: str
    how: str


def swap(path: str, where: str, anchor: str, text: str) -> Edit:
    """Replace the anchor itself."""
    return Edit(path, where, anchor, text, "swap")


def above(path: str, where: str, anchor: str, text: str) -> Edit:
    """Add lines above the line that holds the anchor."""
    return Edit(path, where, anchor, text, "above")


def below(path: str, where: str, anchor: str, text: str) -> Edit:
    """Add lines below the line that holds the anchor."""
    return Edit(path, where, anchor, text, "below")


def instead(path: str, where: str, anchor: str, text: str = "") -> Edit:
    """Replace the smallest statement that holds the anchor, or remove it."""
    return Edit(path, where, anchor, text, "instead")


def apply(source: str, edits: Iterable[Edit]) -> str:
    """
    The text of a module after its edits, one after the other.

    Raises:
        ForkError: if a definition is not there, an anchor is not there exactly once, or no Python comes out.
    """
    for edit in edits:
        source = _applied(source, edit)
        try:
            ast.parse(source)
        except SyntaxError as error:
            raise ForkError(f"'{edit.path}': no Python is left after the edit at {edit.anchor!r}: {error}") from None
    return source


def _applied(source: str, edit: Edit) -> str:
    lines = source.splitlines(keepends=True)
    first, last = _lines_of(source, edit)
    segment = "".join(lines[first:last])
    count = segment.count(edit.anchor)
    if count != 1:
        where = f"'{edit.where}' of '{edit.path}'" if edit.where else f"'{edit.path}'"
        raise ForkError(f"{where} holds the anchor {edit.anchor!r} {count} times, not once: look at the edit again")
    if edit.how == "swap":
        return "".join(lines[:first]) + segment.replace(edit.anchor, edit.text) + "".join(lines[last:])
    begin, end = _anchored_lines(source, edit, first + segment[: segment.index(edit.anchor)].count("\n"))
    indentation = lines[begin][: len(lines[begin]) - len(lines[begin].lstrip())]
    new = [textwrap.indent(_dedented(edit.text), indentation)] if edit.text else []
    if not new and begin and not lines[begin - 1].strip() and end < len(lines) and not lines[end].strip():
        end += 1  # one empty line is enough
    if edit.how == "above":
        end = begin
    elif edit.how == "below":
        begin = end
    return "".join(lines[:begin] + new + lines[end:])


def _dedented(text: str) -> str:
    """Lines without their common indentation; empty lines at the end stay, one at the beginning does not."""
    text = textwrap.dedent(text).removeprefix("\n").rstrip(" ")
    return text if text.endswith("\n") else text + "\n"


def _anchored_lines(source: str, edit: Edit, line: int) -> tuple[int, int]:
    """The lines that the edit is about: of the anchor, or of the statement that holds it."""
    length = edit.anchor.count("\n") + 1
    if edit.how != "instead":
        return line, line + length
    around = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.stmt) and node.lineno <= line + 1 and (node.end_lineno or 0) >= line + length
    ]
    smallest = min(around, key=lambda node: (node.end_lineno or 0) - node.lineno)
    return smallest.lineno - 1, smallest.end_lineno or 0


def _lines_of(source: str, edit: Edit) -> tuple[int, int]:
    """The first line of a definition and the one behind it, counted from 0."""
    if not edit.where:
        return 0, len(source.splitlines())
    scope: ast.AST = ast.parse(source)
    for name in edit.where.split("."):
        found = [node for node in getattr(scope, "body", []) if getattr(node, "name", None) == name]
        if len(found) != 1:
            raise ForkError(f"'{edit.path}' has {len(found)} definitions of '{edit.where}', not one: look at its edits")
        scope = found[0]
    return scope.lineno - 1, scope.end_lineno or 0  # type: ignore[attr-defined]
