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
Safetensors files, read and written with torch alone, tensor by tensor.

The package ``safetensors`` is the referee of the format: the tests compare both on sound, damaged and hostile files.
It does not read for us, because it maps no file larger than the memory, takes a gigabyte of it for the header of a
hostile file, and MONAI does not depend on it.
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import untrusted
from .file_values import Content, map_file, unread
from .pickles import plain_facts
from .untrusted import CheckpointRefused, listed, quoted

__all__ = ["FACTS", "facts_in", "is_safetensors", "read_safetensors", "write_safetensors"]

# The names of the format; what torch is too old for is absent, as are types of less than a byte.
DTYPES = {
    name: getattr(torch, attribute)
    for name, attribute in {
        "BOOL": "bool",
        "U8": "uint8",
        "I8": "int8",
        "U16": "uint16",
        "I16": "int16",
        "U32": "uint32",
        "I32": "int32",
        "U64": "uint64",
        "I64": "int64",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2": "float8_e5m2",
        "F8_E5M2FNUZ": "float8_e5m2fnuz",
        "F8_E8M0": "float8_e8m0fnu",
        "F16": "float16",
        "BF16": "bfloat16",
        "F32": "float32",
        "F64": "float64",
        "C64": "complex64",
    }.items()
    if hasattr(torch, attribute)
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LENGTH = struct.Struct("<Q")  # of the header, before it
METADATA = "__metadata__"
FACTS = "modules"  # name of the piece of metadata that holds what torch keeps beside the tensors of each module
ALIGNMENT = 8  # bytes, of the first tensor in a written file
CHUNK = 1 << 24  # bytes that are written at once
PRINTED = 1 << 80  # larger sizes are not worth their digits
MARKS = (b",", b"[", b"{")  # one of them is before each value of a header
MARKS_OF_A_TENSOR = 12  # with five dimensions


class _Entry(NamedTuple):
    """Where a tensor lies, in bytes behind the header."""

    key: str
    dtype: torch.dtype
    shape: list[int]
    begin: int
    end: int


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins with ``head`` looks like one: a length that is not beyond all measure, then JSON."""
    return head[6:8] == b"\0\0" and head[LENGTH.size : LENGTH.size + 1] == b"{"


def read_safetensors(path: str | os.PathLike) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """
    Read a safetensors file.

    Args:
        path: the file.

    Returns:
        the tensors by key, each a view on the memory-mapped file (or :class:`Unread`, where its type needs another
        alignment), and the metadata. Writing to a tensor does not change the file.

    Raises:
        CheckpointRefused: if the file is not as the format demands, claims absurd sizes, or has a type that torch has
            not.
    """
    path = Path(path)
    _refuse_big_endian()
    content = map_file(path)
    header, start = _header(path, content)
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, f"{METADATA} maps names to something else than text")
    size = len(content) - start
    entries = [_entry(path, key, value, size) for key, value in header.items()]
    _check_places(path, entries, size)
    return {entry.key: _tensor(content, start, entry) for entry in entries}, metadata


def facts_in(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """What a file written here tells of its modules, by their paths; empty where it is not as written here."""
    text = metadata.get(FACTS, "{}")
    try:
        facts = {} if _has_too_many_values(text.encode(errors="replace")) else json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return plain_facts(facts) if isinstance(facts, dict) else {}


def write_safetensors(
    path: str | os.PathLike,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """
    Write a safetensors file, one tensor after the other. Tensors that share memory are written each.

    Args:
        path: a new file, of which an error leaves a part. One that exists may be what the tensors are mapped from.
        tensors: strided tensors by key, on any device.
        metadata: text by name, kept beside the tensors.
        progress: called with the number of bytes after each piece that was written.

    Raises:
        FileExistsError: if there is such a file.
        TypeError: if a key or a piece of metadata is no text, or a value no tensor; no file is then touched.
        ValueError: if a tensor has no such form in the format; no file is then touched.

    Example::

        write_safetensors("net.safetensors", net.state_dict(), {"format": "pt"})
    """
    _refuse_big_endian()
    metadata = dict(metadata or {})
    _check_text(metadata)
    for key, tensor in tensors.items():
        _check_writable(key, tensor)
    # large types first, so that every tensor lies at a multiple of its type's size
    order = sorted(tensors, key=lambda key: (-tensors[key].element_size(), key))
    header: dict[str, Any] = {METADATA: metadata} if metadata else {}
    end = 0
    for key in order:
        tensor, begin = tensors[key], end
        end += tensor.nbytes
        header[key] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with open(path, "xb") as file:
        for piece in _pieces(text, [tensors[key] for key in order]):
            file.write(piece)
            if progress is not None:
                progress(len(piece))


def _header(path: Path, content: Content) -> tuple[dict[str, Any], int]:
    """The JSON object at the beginning, and where it ends."""
    length = int.from_bytes(content.view[: LENGTH.size], "little")
    if length > untrusted.MAX_HEADER:
        raise _too_large(
            path, f"claims a safetensors header of {length:,} bytes; at most {untrusted.MAX_HEADER:,} are read"
        )
    text = bytes(content.view[LENGTH.size : LENGTH.size + length])
    if len(text) < length:
        raise _damaged(path, f"its header has {length:,} bytes, of which {len(text):,} are there")
    if _has_too_many_values(text):
        raise _too_large(path, f"describes more than the {untrusted.MAX_KEYS:,} tensors that are read")
    try:
        header = json.loads(text.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is no JSON: {quoted(str(error))[1:-1]}") from None
    if not isinstance(header, dict):
        raise _damaged(path, "its header is no JSON object")
    if len(header) > untrusted.MAX_KEYS:
        raise _too_large(path, f"holds {len(header):,} names, more than the {untrusted.MAX_KEYS:,} that are read")
    return header, LENGTH.size + length


def _has_too_many_values(text: bytes) -> bool:
    """Whether JSON describes more than the tensors that are read, told before memory is spent on it."""
    return sum(map(text.count, MARKS)) > MARKS_OF_A_TENSOR * untrusted.MAX_KEYS


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a name occurs twice")
    return table


def _entry(path: Path, key: str, value: Any, size: int) -> _Entry:
    """One tensor of the header, checked by itself; ``size`` bytes are behind the header."""
    if not isinstance(value, dict) or not value.keys() >= {"dtype", "shape", "data_offsets"}:
        raise _damaged(path, f"{quoted(key)} lacks dtype, shape or data_offsets")
    name, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(path, f"{quoted(key)} has shape {_short(shape)} and data_offsets {_short(offsets)}")
    dtype = DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        raise CheckpointRefused(
            f"{path}: {quoted(key)} has dtype {quoted(name)}, torch {torch.__version__} has {', '.join(DTYPES)}: "
            "convert it with the package that wrote it."
        )
    if len(shape) > untrusted.MAX_DIMS:
        raise _damaged(
            path, f"{quoted(key)} has {len(shape):,} dimensions, more than the {untrusted.MAX_DIMS} of torch"
        )
    needed = math.prod(shape) * dtype.itemsize  # of 64 dimensions at most
    if needed != offsets[1] - offsets[0]:
        takes = f"{needed} bytes" if needed < PRINTED else f"more bytes than the {size:,} that are there"
        raise _damaged(
            path, f"{quoted(key)} of shape {_short(shape)} and dtype {name} takes {takes}, not {_short(offsets)}"
        )
    if not needed and math.prod(max(length, 1) for length in shape) >= 1 << 63:
        raise _damaged(path, f"{quoted(key)} has shape {_short(shape)}, which torch does not take")
    return _Entry(key, dtype, shape, *offsets)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 63 for size in value)


def _short(value: Any) -> str:
    """A shape or places for an error message, which may be anything."""
    if not isinstance(value, list):
        return quoted(value)
    return f"[{listed([quoted(item) for item in value[:9]])}]" if len(value) < 10 else f"of {len(value):,} numbers"


def _check_places(path: Path, entries: list[_Entry], size: int) -> None:
    """Together the tensors fill the space behind the header, each byte once."""
    end = 0
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != end:
            what = "overlaps the tensor before it" if entry.begin < end else "leaves a hole before it"
            raise _damaged(path, f"{quoted(entry.key)} at {entry.begin}:{entry.end} {what}, which ends at {end}")
        end = entry.end
    if end != size:
        raise _damaged(path, f"its tensors take {end:,} bytes, of which {size:,} are there")


def _tensor(content: Content, start: int, entry: _Entry) -> torch.Tensor:
    if entry.begin == entry.end:
        return torch.empty(entry.shape, dtype=entry.dtype)
    memory = content.cut(start + entry.begin, start + entry.end)
    if memory.data_ptr() % entry.dtype.itemsize:  # as files from before 2023 have it
        return unread(entry.shape, entry.dtype, lambda: _view(memory.clone(), entry))
    return _view(memory, entry)


def _view(memory: torch.UntypedStorage, entry: _Entry) -> torch.Tensor:
    return torch.empty(0, dtype=entry.dtype).set_(memory).view(entry.shape)


def _check_text(metadata: dict[Any, Any]) -> None:
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"metadata must be text, got {key!r}: {value!r}. Make it text with json.dumps.")


def _check_writable(key: Any, tensor: Any) -> None:
    if not isinstance(key, str):
        raise TypeError(f"a tensor's name must be text, got {key!r}.")
    if key == METADATA:
        raise ValueError(f"no tensor may be called {METADATA!r}.")
    if not torch.is_tensor(tensor):
        raise TypeError(f"{key!r} is a {type(tensor).__name__}, not a tensor: leave it out, or put it into metadata.")
    if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in NAMES:
        raise ValueError(
            f"{key!r} ({tensor.dtype}, {tensor.layout}, {tensor.device}) has no form in safetensors: give a dense "
            f"tensor with values, of {', '.join(DTYPES)}."
        )


def _pieces(text: bytes, tensors: list[torch.Tensor]) -> Iterator[Any]:
    yield LENGTH.pack(len(text)) + text
    for tensor in tensors:
        plain = tensor.detach().as_subclass(torch.Tensor).resolve_conj().resolve_neg()
        flat = plain.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        for start in range(0, len(flat), CHUNK):
            yield flat[start : start + CHUNK].data


def _refuse_big_endian() -> None:
    if sys.byteorder != "little":
        raise RuntimeError("safetensors files are little-endian, this machine is not: convert on another one.")


def _damaged(path: Path, why: str) -> CheckpointRefused:
    return CheckpointRefused(f"{path} is a damaged safetensors file: {why}. Fetch it again.")


def _too_large(path: Path, why: str) -> CheckpointRefused:
    return CheckpointRefused(f"{path} {why}. Fetch it again, from a source that you trust.")
