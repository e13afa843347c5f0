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

"""What is no checkpoint at all, or cannot be opened."""

from __future__ import annotations

import gzip
import os
import pickle
import socket
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.networks.checkpoints.hostile.case import BAD_INPUT, DONE, FINE, Case, saved, sparse_file

__all__ = ["other_cases"]

STATE = {"net.weight": torch.ones(2, 2)}


def other_cases() -> Iterator[Case]:
    for name, content, pattern in (
        ("nothing", b"", r"is empty \(0 bytes\): .*fetch it again"),
        ("one byte", b"\x80", "is a pickle that torch.save did not write"),
        ("zeros", bytes(5000), "is without content"),
        ("a page", b"<!DOCTYPE html><html>404</html>", "is a web page, saved by a failed download"),
        ("a pointer", b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of git-lfs"),
        ("an index", b'{"metadata": {}, "weight_map": {}}', "is text"),
        ("text with an escape", b"hello \x1b[2J" * 10, "is no checkpoint known here"),
        ("text that turns", "ab\u202ecd".encode() * 9, "is no checkpoint known here|is text"),
        ("a gzip bomb", gzip.compress(bytes(50_000_000)), "is a gzip archive: unpack it"),
        ("a bzip2 archive", b"BZh9" + bytes(90), "is a bzip2 archive"),
        ("an xz archive", b"\xfd7zXZ\0" + bytes(90), "is an xz archive"),
        ("an HDF5 file", b"\x89HDF\r\n\x1a\n" + bytes(90), "is an HDF5 file"),
        ("an array", b"\x93NUMPY\1\0" + bytes(90), "is an array of numpy"),
        ("a pickle", pickle.dumps({"a": 1}), "is a pickle that torch.save did not write"),
        ("an empty archive", b"PK\5\6" + bytes(18), "is a zip archive that is empty"),
        ("a part of an archive", b"PK\7\x08" + bytes(90), "is a zip archive that is empty"),
        ("an image", b"\xff\xd8\xff\xe0" + bytes(range(256)), "is no checkpoint known here"),
        ("a program", b"\x7fELF\2\1\1" + bytes(90), "is no checkpoint known here"),
        ("half a mark", b"PK\3\4", "is damaged"),
        ("a mark alone", b"PK\3\4" + bytes(100), "is damaged"),
    ):
        yield Case(f"file of {name}", lambda folder, c=content: c, pattern)
    yield Case("file of a terabyte", lambda folder: sparse_file(folder / "file.pt", 1 << 40), "is without content")
    yield Case("archive of a terabyte", _large_archive, "is damaged")
    yield Case("device", lambda folder: Path("/dev/zero"), "is neither a file nor a folder")
    yield Case("terminal", lambda folder: Path("/dev/null"), "is neither a file nor a folder")
    yield Case("pipe", _pipe, "is neither a file nor a folder")
    yield Case("socket", _socket, "is neither a file nor a folder")
    yield Case("folder", lambda folder: folder, "is a folder without '.metadata'")
    yield Case("folder with a suffix", _folder, "is a folder without '.metadata'.*holds nothing")
    yield Case("link to a file", _link, FINE, DONE)
    missing = {"code": BAD_INPUT, "error": FileNotFoundError}
    yield Case("nothing at all", lambda folder: folder / "absent.pt", "does not exist", **missing)
    yield Case("link to nothing", _link_to_nothing, "is a link to nowhere, which does not exist", **missing)
    yield Case("link to itself", _link_to_itself, "is a link to loop.pt, which does not exist", **missing)
    yield Case("name with a zero", lambda folder: folder / "a\0b", "does not exist", **missing)
    yield Case("name that is long", lambda folder: folder / ("a" * 300), "too long", code=BAD_INPUT, error=OSError)
    yield Case("below a file", lambda folder: Path("/etc/passwd/file.pt"), "does not exist", **missing)
    for name, file in {
        "an escape": "\x1b[2J.pt",
        "a line": "a\nb.pt",
        "no UTF-8": os.fsdecode(b"\xff.pt"),
        "a turn": "\u202e.pt",
    }.items():
        yield Case(f"name with {name}", lambda folder, f=file: _named(folder, f, b"PK\3\4"), "is damaged")
        yield Case(f"fine name with {name}", lambda folder, f=file: _named(folder, f, saved(STATE)), FINE)


def _large_archive(folder: Path) -> Path:
    (folder / "file.pt").write_bytes(saved(STATE))
    return sparse_file(folder / "file.pt", 1 << 40)


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "file.pt")
    return folder / "file.pt"


def _socket(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "s"))
    return folder / "s"


def _folder(folder: Path) -> Path:
    (folder / "model.safetensors").mkdir()
    return folder / "model.safetensors"


def _link(folder: Path) -> Path:
    (folder / "real.pt").write_bytes(saved(STATE))
    (folder / "link.pt").symlink_to("real.pt")
    return folder / "link.pt"


def _link_to_nothing(folder: Path) -> Path:
    (folder / "link.pt").symlink_to("nowhere")
    return folder / "link.pt"


def _link_to_itself(folder: Path) -> Path:
    (folder / "loop.pt").symlink_to("loop.pt")
    return folder / "loop.pt"


def _named(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path
