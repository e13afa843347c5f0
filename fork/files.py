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

"""Trees of files: their digests, and replacing a whole folder at once."""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fork.pin import ForkError

__all__ = ["digest", "package_digests", "package_files", "record_digests", "put_in_place", "scratch_folder"]


def digest(data: bytes) -> str:
    """sha256 of ``data`` in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def package_files(folder: Path, package: str = "monai") -> list[str]:
    """Paths, relative to ``folder``, of the files below its ``package``; caches and hidden files do not count."""
    found = []
    for place, folders, names in os.walk(folder / package):
        folders[:] = [name for name in folders if name != "__pycache__" and not name.startswith(".")]
        found += [Path(place, name).relative_to(folder).as_posix() for name in names if not name.startswith(".")]
    return sorted(found)


def package_digests(folder: Path, package: str = "monai") -> dict[str, str]:
    """Digest of every file below ``package`` of ``folder``; a link that leads nowhere has an empty one."""
    paths = {name: folder / name for name in package_files(folder, package)}
    return {name: digest(path.read_bytes()) if path.exists() else "" for name, path in paths.items()}


def record_digests(release: Path, package: str = "monai") -> dict[str, str]:
    """
    Digest of every file of ``package`` as the release's own RECORD tells.

    Raises:
        ForkError: if there is no RECORD, or it gives a file without a sha256.
    """
    records = list(release.glob("*.dist-info/RECORD"))
    if len(records) != 1:
        raise ForkError(
            f"{release} is no unpacked wheel of {package}: it holds {len(records)} files dist-info/RECORD, not 1"
        )
    found = {}
    with records[0].open(newline="", encoding="utf-8") as lines:
        for path, hashed, _ in csv.reader(lines):
            if path.startswith(f"{package}/"):
                if not hashed.startswith("sha256="):
                    raise ForkError(f"{records[0]} gives no sha256 of {path}")
                found[path] = base64.urlsafe_b64decode(hashed.removeprefix("sha256=") + "=").hex()
    return dict(sorted(found.items()))


@contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """A temporary folder on the same disk as ``beside``, in the folder that holds it."""
    beside.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{beside.name}-", dir=beside.parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def put_in_place(new: Path, folder: Path, is_right: Callable[[], bool]) -> None:
    """
    Let the folder ``new`` become ``folder``; on failure what was there stays.

    Args:
        new: a folder beside which there is room for what was in ``folder``.
        folder: its place.
        is_right: tells whether ``folder`` is as wanted, since another process was quicker.
    """
    try:
        os.rename(new, folder)
        return
    except OSError:
        if not folder.exists():
            raise
    if is_right():
        return
    aside = new.with_name("aside")
    os.rename(folder, aside)
    try:
        os.rename(new, folder)
    except OSError:
        os.rename(aside, folder)
        raise
