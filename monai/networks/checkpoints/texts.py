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
"""Names from a file as messages show them: short, and without characters that a terminal obeys."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["listed", "printable", "quoted", "shortened"]

LONGEST = 80  # characters of a name
SHOWN = 8  # names of a list


def printable(text: str, kept: str = "") -> str:
    """
    Escape what is not printable: control characters, lone surrogates, marks that turn the direction of writing.

    Args:
        text: any text.
        kept: characters that stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in kept else character.encode("unicode_escape").decode()
        for character in text
    )


def shortened(text: str, most: int = LONGEST) -> str:
    """A text without its middle, where it is longer than ``most``."""
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-(most // 2) :]}"


def quoted(value: object, most: int = LONGEST) -> str:
    """A name in quotes, short and printable; of what is no text, its type."""
    if isinstance(value, str):
        return repr(shortened(value, most))
    if isinstance(value, bytes):
        return repr(value[:most])
    plain = value is None or isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < 10**most)
    return repr(value) if plain else f"a {type(value).__name__}"


def listed(names: Sequence[str], most: int = SHOWN) -> str:
    """The first of some names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
