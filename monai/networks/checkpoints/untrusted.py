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

"""What a file from strangers may claim, how it is refused, and how messages show the names that it holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

__all__ = [
    "LARGEST_FACTOR",
    "MAX_CALLS",
    "MAX_DESCRIPTION",
    "MAX_DIMS",
    "MAX_HEADER",
    "MAX_INFLATION",
    "MAX_KEYS",
    "MAX_NAME",
    "MAX_REPEATED",
    "MAX_STEPS",
    "SIZE_OF_FOLDER",
    "CheckpointRefused",
    "NetworkNotChosen",
    "listed",
    "printable",
    "quoted",
    "refusing",
    "shortened",
]

# Bytes of the pickle that describes the tensors of a torch file or of a distributed folder. 300 a tensor are usual.
MAX_DESCRIPTION = 32_000_000

# Operations of such a pickle, and those of them that make an object. 40 and 3 a tensor are usual; so many take a
# second or two.
MAX_STEPS = 3_000_000
MAX_CALLS = 300_000

# Bytes of the header of a safetensors file, or of the table of contents of a zip file. 100 bytes a tensor are usual.
MAX_HEADER = 16_000_000

# Names, tensors, or pieces of tensors in a file. The largest networks have some ten thousand tensors, their optimizers
# three times as many.
MAX_KEYS = 60_000

# Characters of a tensor's name.
MAX_NAME = 100_000

# Dimensions of a tensor; torch has the same limit in most of its functions.
MAX_DIMS = 64

# Bytes that a compressed torch file may unpack to, as a multiple of its own size. torch compresses nothing, and trained
# weights hardly shrink; deflate reaches a thousandfold on zeros. Tensors that share memory may together claim as much.
MAX_INFLATION = 20

# Bytes of a distributed folder, really there, for which its metadata may be as large as the above, and up to ten times
# as large for ten times as much: many processes make many pieces, and each has a thousand bytes beside its values.
SIZE_OF_FOLDER = 1 << 26
LARGEST_FACTOR = 10

# Bytes that tensors of a file may claim beyond that, as those do that repeat their values by a stride of zero.
MAX_REPEATED = 256_000_000


class CheckpointRefused(ValueError):
    """A file that is damaged, no checkpoint, or not to be trusted."""


class NetworkNotChosen(ValueError):
    """A file holds several networks, or none of the name that was asked for: another name helps."""


@contextmanager
def refusing() -> Iterator[None]:
    """
    Let a block that reads a checkpoint raise :class:`CheckpointRefused` where the file itself is the trouble.

    Raises:
        CheckpointRefused: instead of any other ValueError.
        NetworkNotChosen: as it was raised.
    """
    try:
        yield
    except (CheckpointRefused, NetworkNotChosen):
        raise
    except ValueError as error:
        raise CheckpointRefused(str(error)) from error


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


def shown(value: object, most: int = LONGEST) -> str:
    """Anything as a message can have it: short and printable."""
    return printable(shortened(str(value), most))


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
