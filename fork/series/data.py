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

"""
Data that tests read, and that goes with them.

Code names its data by paths that no import shows, so that each test, or a helper of it, has an entry in a table:
patterns of the files that it reads. All data lies below ``tests/testing_data``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from fork.pin import ForkError

__all__ = ["FOLDER", "MOST_BYTES", "all_data", "data_files", "too_large"]

FOLDER = "testing_data"
MOST_BYTES = 128 * 1024
"""Of a file that a pull request may bring: every clone of upstream would keep it for good."""


def all_data(root: Path) -> list[str]:
    """The paths of all test data."""
    places = (root / "tests" / FOLDER).rglob("*")
    return sorted(place.relative_to(root).as_posix() for place in places if place.is_file() and place.suffix != ".pyc")


def data_files(root: Path, files: Collection[str], reads: Mapping[str, tuple[str, ...]]) -> set[str]:
    """
    The data that a test reads.

    Args:
        root: the repository.
        files: the test, and the files of tests/ that it imports.
        reads: patterns of the data that files of tests/ read; ``*`` stands for any text.

    Raises:
        ForkError: if one of the files names the folder of the data, and none of them has an entry; or if a pattern
            fits no file.
    """
    declared = [path for path in sorted(files) if path in reads]
    if not declared:
        for path in sorted(files):
            if FOLDER in (root / path).read_text(encoding="utf-8"):
                raise ForkError(f"'{path}' reads tests/{FOLDER}: say which files of it in fork/pulls/data.py")
        return set()
    known = all_data(root)
    found: set[str] = set()
    for path in declared:
        for pattern in reads[path]:
            those = {each for each in known if fnmatchcase(each, pattern)}
            if not those:
                raise ForkError(f"'{path}' reads '{pattern}', says fork/pulls/data.py, and there is no such file")
            found |= those
    return found


def too_large(root: Path, data: Iterable[str]) -> str:
    """Which of the files is too large for a pull request, and how large; empty if none is."""
    sizes = {path: (root / path).stat().st_size for path in sorted(data)}
    words = [f"{path} ({size:,} bytes)" for path, size in sizes.items() if size > MOST_BYTES]
    return f"{' and '.join(words)}, more than {MOST_BYTES:,} bytes" if words else ""
