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

"""Lines of one text put into another one, in its own indentation and line ends."""

from __future__ import annotations

import ast

from fork.definitions import Definition, Module

__all__ = ["Splice"]


class Splice:
    """
    Changes of a module of the release, with lines of the fork's file.

    Args:
        ours: the fork's file.
        theirs: the release's module.
    """

    def __init__(self, ours: Module, theirs: Module) -> None:
        self.ours = ours
        self.theirs = theirs
        self._edits: list[tuple[int, int, list[bytes]]] = []

    def replace(self, place: Definition, lines: list[bytes]) -> bool:
        """Put lines in the place of a definition; returns whether they are other ones."""
        self._edits.append((place.first - 1, place.last, lines))
        return lines != [line.rstrip(b"\r\n") for line in self.theirs.lines_of(place)]

    def replace_lines(self, first: int, last: int, lines: list[bytes]) -> None:
        """Put lines in the place of those from ``first`` to ``last``, counted from 1."""
        self._edits.append((first - 1, last, lines))

    def insert(self, position: int, lines: list[bytes]) -> None:
        """Put lines behind that many lines of the release's, and behind what was put there before."""
        self._edits.append((position, position, lines))

    def text(self) -> bytes:
        """The release's module with all changes; it ends as the release's does."""
        theirs, newline = self.theirs.lines, self.theirs.newline
        pieces: list[bytes] = []
        position = 0
        for start, end, lines in sorted(self._edits, key=lambda edit: edit[:2]):
            pieces += theirs[position:start]
            if pieces and not pieces[-1].endswith((b"\n", b"\r")):
                pieces.append(newline)
            pieces += [line + newline for line in lines]
            position = end
        text = b"".join(pieces + theirs[position:])
        return text if not theirs or theirs[-1].endswith((b"\n", b"\r")) else text.rstrip(b"\r\n")

    def lines(self, item: Definition, indentation: bytes) -> list[bytes]:
        """The lines of a definition of the fork's, without their ends; what stands in strings is not indented anew."""
        own = self.ours.indentation(item.first)
        lines = [line.rstrip(b"\r\n") for line in self.ours.lines_of(item)]
        kept = _lines_in_strings(item) if own != indentation else set()
        return [
            indentation + line[len(own) :] if line.startswith(own) and line.strip() and number not in kept else line
            for number, line in enumerate(lines, item.first)
        ]

    def spaced(self, items: list[Definition], indentation: bytes) -> list[bytes]:
        """The lines of definitions, as far apart as they are in the fork's file."""
        lines: list[bytes] = []
        for item in items:
            lines += [b""] * (self.blank_lines_above(item) if lines else 0) + self.lines(item, indentation)
        return lines

    def blank_lines_above(self, item: Definition) -> int:
        """How many lines are blank above a definition of the fork's."""
        above = reversed(self.ours.lines[: item.first - 1])
        return next((count for count, line in enumerate(above) if line.strip()), 0)


def _lines_in_strings(item: Definition) -> set[int]:
    """The lines that begin inside a string."""
    nodes = [node for statement in item.nodes for node in ast.walk(statement)]
    strings = [node for node in nodes if isinstance(node, (ast.Constant, ast.JoinedStr))]
    return {line for node in strings for line in range(node.lineno + 1, (node.end_lineno or node.lineno) + 1)}
