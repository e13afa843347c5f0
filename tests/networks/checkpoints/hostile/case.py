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

"""What a hostile file is, and small parts to make one from."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = [
    "BAD_INPUT",
    "DONE",
    "FINE",
    "REFUSED",
    "Case",
    "call",
    "dictionary",
    "glob",
    "header_of",
    "number",
    "ordered",
    "program",
    "safetensors_file",
    "state",
    "storage",
    "tensor",
    "text",
    "torch_zip",
    "tuple_of",
]

DONE, BAD_INPUT, REFUSED = 0, 2, 3
FINE = "fine"  # the file looks bad and is not: it reads
NAME = "file.pt"


@dataclass(frozen=True)
class Case:
    """
    A hostile file.

    Args:
        name: of the case.
        build: makes the file in a folder and gives its path, or gives the bytes of one.
        pattern: of the message; :data:`FINE` where the file is to be read.
        code: of the commands.
        error: what the functions raise.
        is_heavy: whether it takes long to refuse, so that fewer entrances are tried.
        inspected: the code of ``inspect``, where it is another.
        glanced: the code of ``inspect --quick``, which does not read the data of a folder, where it is another.
    """

    name: str
    build: Callable[[Path], Any]
    pattern: str
    code: int = REFUSED
    error: type[Exception] = ValueError
    is_heavy: bool = False
    inspected: int | None = None
    glanced: int | None = None

    def path(self, folder: Path) -> Path:
        """Make the file."""
        made = self.build(folder)
        if isinstance(made, Path):
            return made
        path = folder / NAME
        path.write_bytes(made)
        return path


# parts of a pickle


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def glob(name: str) -> bytes:
    module, _, last = name.rpartition(".")
    return f"c{module}\n{last}\n".encode("utf-8", "surrogatepass")


def tuple_of(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def dictionary(entries: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


def call(name: str, *arguments: bytes) -> bytes:
    return glob(name) + tuple_of(*arguments) + b"R"


def ordered() -> bytes:
    return call("collections.OrderedDict")


def storage(key: str = "0", count: bytes | int = 4, kind: str = "torch.FloatStorage") -> bytes:
    count = number(count) if isinstance(count, int) else count
    return tuple_of(text("storage"), glob(kind), text(key), text("cpu"), count) + b"Q"


def sizes(values: Any) -> bytes:
    return tuple_of(*[value if isinstance(value, bytes) else number(value) for value in values])


def tensor(
    shape: Any = (2, 2),
    stride: Any = (2, 1),
    offset: bytes | int = 0,
    of: bytes | None = None,
) -> bytes:
    """A tensor on the storage "0" of four floats."""
    offset = number(offset) if isinstance(offset, int) else offset
    shape, stride = (part if isinstance(part, bytes) else sizes(part) for part in (shape, stride))
    parts = (of or storage(), offset, shape, stride, b"\x89", ordered())
    return call("torch._utils._rebuild_tensor_v2", *parts)


def state(**tensors: bytes) -> bytes:
    """A state dict, with a sound weight beside what is given."""
    return dictionary({"net.weight": tensor(), **{f"net.{name}": value for name, value in tensors.items()}})


def program(body: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


# containers


def torch_zip(
    pickle: bytes,
    records: Mapping[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
    folder: str = "archive",
) -> bytes:
    """A zip file as torch.save writes it, around any pickle."""
    content = {"data.pkl": pickle, "byteorder": b"little", "data/0": struct.pack("<4f", 1, 2, 3, 4), "version": b"3\n"}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in {**content, **(records or {})}.items():
            if data is not None:
                archive.writestr(f"{folder}/{name}", data)
    return buffer.getvalue()


def saved(content: Any, is_zip: bool = True) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=is_zip)
    return buffer.getvalue()


def safetensors_file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file, around any header."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + data


def header_of(shape: Any = (4,), begin: Any = 0, end: Any = 4, dtype: Any = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [begin, end]}


def sparse_file(path: Path, size: int) -> Path:
    """A file that claims a size, and takes no space for it."""
    with open(path, "ab") as file:
        os.truncate(file.fileno(), size)
    return path
