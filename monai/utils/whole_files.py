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

"""Files that are there whole, or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = [
    "check_place",
    "replacing",
]


def check_place(path: Path, overwrite: bool = False) -> None:
    """
    Say beforehand why a file of any format cannot be written.

    Raises:
        OSError: if it exists and ``overwrite`` is not set, or its folder is missing or cannot be written to.
    """
    if path.is_dir():
        raise IsADirectoryError(f"'{path}' is a folder: name a file in it.")
    if path.exists() and not path.is_file():
        raise OSError(f"'{path}' is no ordinary file, which another one could take the place of.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"'{path}' exists: name another file, or pass overwrite=True to replace it.")
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder '{folder}': make it first.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"the folder '{folder}' cannot be written to: name a file elsewhere.")


@contextmanager
def replacing(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """
    Write a file that takes its place when it is whole, or never.

    Args:
        path: the file.
        overwrite: whether it may exist, when the block ends.

    Yields:
        a name in the same folder to write to. When the block ends, that file takes the place of ``path``; if the block
        raises, or is interrupted, it is removed and ``path`` is as it was.

    Raises:
        FileExistsError: if another process has written the file meanwhile, unless ``overwrite`` is set.
        OSError: as the block does, with ``path`` as its file.
    """
    path = Path(os.path.realpath(path))  # a link stays one: what it leads to is replaced
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        _take_place(partial, path, overwrite)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError) and error.errno:
            raise OSError(error.errno, f"{os.strerror(error.errno)}; nothing of it was kept", str(path)) from error
        raise
    _sync_folder(path.parent)


def _take_place(partial: Path, path: Path, overwrite: bool) -> None:
    """Give a file its name, in one step: of two processes that do so at once, one finds that the name is taken."""
    if overwrite:
        os.replace(partial, path)
        return
    try:
        _link(partial, path)
    except FileExistsError:
        raise FileExistsError(
            f"'{path}' exists: another process wrote it meanwhile, and nothing was kept of this one. Name another "
            "file, or pass overwrite=True to replace it."
        ) from None


def _link(partial: Path, path: Path) -> None:
    try:
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links: an empty file claims the name, for the blink of an eye
        with open(path, "xb"):
            pass
        os.replace(partial, path)
    else:
        partial.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a new name last through a power failure, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
