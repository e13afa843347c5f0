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
"""Files of torch.save, read without torch.load: their pickles are decoded and not run, their tensors mapped."""

from __future__ import annotations

import io
import pickle
import struct
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from . import untrusted
from .file_values import Content, map_file
from .pickles import RESAVE, decode
from .tensors import Claims, Tensors, parts_of_id
from .untrusted import CheckpointRefused, listed, quoted

__all__ = ["LEGACY_MAGIC", "ZIP_MAGIC", "read_archive", "read_legacy", "read_zip"]

ZIP_MAGIC = b"PK\x03\x04"
MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # with which torch.save began before 1.6
LEGACY_MAGIC = pickle.dumps(MAGIC_NUMBER, protocol=2)
PROTOCOL = 1001
LOCAL_HEADER = struct.Struct("<4s22x2H")  # of a zip entry: its mark, the lengths of its name and of its extra field
COUNT = struct.Struct("<q")  # of the values of a storage, before them
TABLE_ENTRY = b"PK\x01\x02"
LONGEST_ORDER = 10  # bytes
ENCRYPTED = 1  # flag of a zip entry
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def read_zip(path: Path) -> Any:
    """
    Read a file that torch.save has written since 1.6. Its tensors are memory-mapped, unless it was compressed.

    Raises:
        CheckpointRefused: if it is damaged, no file of torch.save, has code in it or claims absurd sizes.
    """
    content = map_file(path)
    return read_archive(str(path), content, Claims(str(path), len(content)))


def read_archive(source: str, content: Content, claims: Claims) -> Any:
    """
    Read what :func:`read_zip` does, from bytes.

    Args:
        source: the file's name, for error messages.
        content: the bytes.
        claims: of the file, or of the folder that it belongs to.

    Raises:
        CheckpointRefused: as :func:`read_zip` does.
    """
    archive = _Archive(source, content)
    swapped = "byteorder" in archive.entries and _is_swapped(source, bytes(archive.read("byteorder")[:LONGEST_ORDER]))

    def memory(key: str, dtype: torch.dtype, size: int) -> torch.UntypedStorage:
        found: torch.UntypedStorage = archive.cut(f"data/{key}")
        if not swapped:
            return found[:size] if found.nbytes() > size else found  # type: ignore[no-any-return]
        own: torch.UntypedStorage = found.clone()
        own.byteswap(dtype)
        return own

    tensors = Tensors(source, claims, memory)
    return decode(source, archive.read("data.pkl"), tensors.find, tensors.load)[0]


def read_legacy(path: Path) -> Any:
    """
    Read a file that torch.save wrote before 1.6. Its tensors are memory-mapped where their places suit their types.

    Raises:
        CheckpointRefused: if it is damaged, has code in it or claims absurd sizes.
    """
    source, content = str(path), map_file(path)
    claims = Claims(source, len(content))
    # the object comes before the storages, whose types it tells: it is read once for these, and once with them
    sketch = _Sketch(source, Claims(source, len(content)))
    end = 0
    parts, starts = [], []
    for _ in range(5):  # a magic number, a version, facts about the machine, the object, the keys of its storages
        starts.append(end)
        part, end = decode(source, content.view, sketch.find, sketch.load, end)
        parts.append(part)
    magic, version, machine, _, keys = parts
    if magic != MAGIC_NUMBER or version != PROTOCOL or not isinstance(machine, dict) or not isinstance(keys, list):
        raise CheckpointRefused(f"{source} is a pickle that torch.save did not write. {RESAVE}.")
    if machine.get("little_endian") is not True:
        raise CheckpointRefused(f"{source} was written on a big-endian machine: save it there with torch 1.6 or newer.")
    places = dict(_places(source, content, keys, sketch.sizes, end))

    def memory(key: str, dtype: torch.dtype, size: int) -> torch.UntypedStorage:
        return content.cut(*places[key])

    tensors = Tensors(source, claims, memory)
    return decode(source, content.view, tensors.find, tensors.load, starts[3])[0]


def _places(
    source: str, content: Content, keys: list, sizes: dict[str, tuple[torch.dtype, int]], end: int
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Where each storage of a legacy file lies."""
    for key in map(str, keys):
        dtype, size = sizes.get(key, (torch.uint8, -1))
        count = content.view[end : end + COUNT.size]
        begin = end + COUNT.size
        end = begin + size
        if len(count) < COUNT.size or COUNT.unpack(count)[0] * dtype.itemsize != size or end > len(content):
            raise CheckpointRefused(
                f"{source} is damaged: storage {quoted(key)} should lie at byte {begin:,}, of {len(content):,} that "
                "are there: fetch it again."
            )
        yield key, (begin, end)


class _Sketch(Tensors):
    """Learns the types and sizes of the storages, and makes no tensor."""

    def __init__(self, source: str, claims: Claims) -> None:
        super().__init__(source, claims, lambda *_: torch.UntypedStorage(0))
        self.sizes: dict[str, tuple[torch.dtype, int]] = {}

    def load(self, saved: Any) -> Any:
        key, dtype, size, _ = parts_of_id(saved)
        self.sizes[key] = dtype, size

    def tensor(self, *_: Any) -> Any:
        return None

    def tensor_of_type(self, *_: Any) -> Any:
        return None


class _Archive:
    """
    A zip file of torch.save.

    Args:
        source: the file's name, for error messages.
        content: its bytes.

    Raises:
        CheckpointRefused: if it is damaged, no file of torch.save, or claims absurd sizes.
    """

    def __init__(self, source: str, content: Content) -> None:
        self.source, self.content = source, content
        try:
            window: Any = _Window(source, content.view)
            self.zip = zipfile.ZipFile(window)
            entries = self.zip.infolist()
        except CheckpointRefused:
            raise
        except Exception as error:  # a damaged archive fails in any way
            raise self.damaged(str(error)) from None
        self._refuse_others(entries)
        self.entries = {entry.filename.partition("/")[2]: entry for entry in entries}
        if len(self.entries) < len(entries):
            raise self.damaged("two of its entries have the same name")
        self._check_sizes(entries)

    def read(self, name: str) -> memoryview:
        """The content of an entry."""
        entry = self._entry(name)
        if entry.file_size > untrusted.MAX_DESCRIPTION:
            raise CheckpointRefused(
                f"{self.source} describes its tensors in {entry.file_size:,} bytes, more than the "
                f"{untrusted.MAX_DESCRIPTION:,} that are read. {RESAVE}."
            )
        if entry.compress_type == zipfile.ZIP_STORED:
            begin, end = self._place(entry)
            return self.content.view[begin:end]
        try:
            return memoryview(self.zip.read(entry))
        except Exception as error:
            raise self.damaged(str(error)) from None

    def cut(self, name: str) -> torch.UntypedStorage:
        """The memory of an entry: mapped, or unpacked."""
        entry = self._entry(name)
        if entry.compress_type == zipfile.ZIP_STORED:
            return self.content.cut(*self._place(entry))
        try:
            unpacked = self.zip.read(entry)
        except Exception as error:
            raise self.damaged(str(error)) from None
        return Content(bytearray(unpacked)).cut(0, len(unpacked))

    def damaged(self, why: str) -> CheckpointRefused:
        return CheckpointRefused(
            f"{self.source} is damaged ({quoted(why)[1:-1]}). The table of contents of a torch file lies at its end, "
            f"so a download or copy that broke off loses it: {len(self.content):,} bytes are there. Fetch it again."
        )

    def _entry(self, name: str) -> zipfile.ZipInfo:
        if name not in self.entries:
            raise self.damaged(f"it lacks {quoted(name)}")
        out: zipfile.ZipInfo = self.entries[name]
        return out

    def _place(self, entry: zipfile.ZipInfo) -> tuple[int, int]:
        """Where the bytes of an uncompressed entry lie."""
        start = entry.header_offset
        header = self.content.view[start : start + LOCAL_HEADER.size]
        if len(header) < LOCAL_HEADER.size:
            raise self.damaged("an entry lies behind its end")
        mark, name, extra = LOCAL_HEADER.unpack(header)
        begin = start + LOCAL_HEADER.size + name + extra
        if mark != ZIP_MAGIC or begin + entry.file_size > len(self.content):
            raise self.damaged(f"{quoted(entry.filename)} is not where it should be")
        return begin, begin + entry.file_size

    def _refuse_others(self, entries: list[zipfile.ZipInfo]) -> None:
        names = {entry.filename.partition("/")[2] for entry in entries}
        if "constants.pkl" in names:
            raise CheckpointRefused(
                f"{self.source} is a TorchScript archive, which holds code. Where you trust the file, save its weights "
                "alone: torch.save(torch.jit.load(path).state_dict(), new_path)."
            )
        if "data.pkl" not in names:
            found = listed([quoted(entry.filename) for entry in entries], 5) or "nothing"
            raise CheckpointRefused(
                f"{self.source} is a zip archive but no file of torch.save. It holds {found}: unpack it, if it is one."
            )

    def _check_sizes(self, entries: list[zipfile.ZipInfo]) -> None:
        """No byte belongs to two entries, and compressed ones do not unpack to an absurd size."""
        size, end = len(self.content), 0
        unpacked = sum(entry.file_size for entry in entries)
        if any(entry.flag_bits & ENCRYPTED or entry.compress_type not in COMPRESSIONS for entry in entries):
            raise CheckpointRefused(f"{self.source} is encrypted or packed as torch.save never does. {RESAVE}.")
        if unpacked > untrusted.MAX_INFLATION * size:
            raise CheckpointRefused(
                f"{self.source} would unpack from {size:,} to {unpacked:,} bytes, more than "
                f"{untrusted.MAX_INFLATION}-fold, as a zip bomb does: torch.save compresses nothing. {RESAVE}."
            )
        for entry in sorted(entries, key=lambda entry: entry.header_offset):
            if entry.compress_type == zipfile.ZIP_STORED and entry.compress_size != entry.file_size:
                raise self.damaged(f"{quoted(entry.filename)} has two sizes")
            if entry.header_offset < end:
                raise self.damaged(f"{quoted(entry.filename)} overlaps another entry")
            end = entry.header_offset + LOCAL_HEADER.size + len(entry.filename) + entry.compress_size
        if end > size:
            raise self.damaged("its entries take more bytes than are there")


class _Window(io.RawIOBase):
    """
    Bytes as a file, from which no piece is read that is longer than a table of contents may be.

    Args:
        source: the file's name, for error messages.
        view: the bytes.
    """

    def __init__(self, source: str, view: memoryview) -> None:
        super().__init__()
        self.source, self.view, self.place = source, view, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: len(self.view)}[whence]
        if place < 0:
            raise OSError("it ends too early")
        self.place = place
        return place

    def tell(self) -> int:
        return self.place

    def read(self, size: int | None = -1) -> bytes:
        size = len(self.view) if size is None or size < 0 else size
        piece = bytes(self.view[self.place : self.place + min(size, untrusted.MAX_HEADER + 1)])
        entries = piece.count(TABLE_ENTRY)
        if len(piece) > untrusted.MAX_HEADER or entries > untrusted.MAX_KEYS:
            raise CheckpointRefused(
                f"{self.source} has a table of contents of {entries:,} entries or more; at most "
                f"{untrusted.MAX_KEYS:,} in {untrusted.MAX_HEADER:,} bytes are read. {RESAVE}."
            )
        self.place += len(piece)
        return piece


def _is_swapped(source: str, order: bytes) -> bool:
    """Whether the bytes of a number stand in another order than this machine's."""
    if order not in (b"little", b"big"):
        raise CheckpointRefused(f"{source} is damaged (its byte order is {quoted(order)}): fetch it again.")
    return order.decode() != sys.byteorder
