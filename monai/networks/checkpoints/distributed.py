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

"""Folders of torch.distributed.checkpoint, read in one process without the code that their metadata may name."""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from . import limits
from .stand_ins import StandIn, stand_in, stand_in_class
from .torch_files import Refused, inspect_zip, load_tensors

__all__ = ["METADATA", "Unread", "read_folder"]

METADATA = ".metadata"
DCP = "make it one file with torch.distributed.checkpoint.format_utils.dcp_to_torch_save, where it was written"
# torch unpickles the metadata of a folder without restriction. These are the classes that it writes there.
CLASSES = {
    f"torch.distributed.{module}.{name}"
    for module, names in {
        "checkpoint.metadata": (
            "Metadata TensorStorageMetadata BytesStorageMetadata ChunkStorageMetadata TensorProperties MetadataIndex "
            "StorageMeta _MEM_FORMAT_ENCODING"
        ),
        "checkpoint.filesystem": "_StorageInfo",
        "_shard.sharded_tensor.metadata": "TensorProperties MEM_FORMAT_ENCODING",
    }.items()
    for name in names.split()
} | {"torch.serialization._get_layout"}


class Unread(torch.Tensor):
    """A tensor that is still in a folder: its shape and type are known, its values are not."""

    read: Callable[[], torch.Tensor]


def read_folder(path: Path) -> dict:
    """
    Read the metadata of a folder.

    Args:
        path: the folder.

    Returns:
        what was saved: dictionaries in one another, whose tensors are :class:`Unread`; what is no tensor is a stand-in.

    Raises:
        ValueError: if the metadata is damaged, names code, or contradicts itself. ``Unread.read`` raises it if the
            data is damaged.
    """
    metadata = _metadata(path)
    with _consistent(path):
        return _tree(path, metadata)


def _tree(path: Path, metadata: StandIn) -> dict:
    places: dict[str, dict[tuple, Any]] = {}
    for index, place in _table(path, metadata, "storage_data").items():
        key, offset = _field(path, index, "fqn"), index.state.get("offset")  # which is left out where it is None
        places.setdefault(key, {})[tuple(offset or ())] = place
    nested = metadata.state.get("planner_data")  # the keys of the dictionaries, by the flat name of a value
    tree: dict = {}
    for key, described in _table(path, metadata, "state_dict_metadata").items():
        value = described
        if isinstance(described, StandIn) and isinstance(described.state, dict) and "chunks" in described.state:
            value = _unread(path, key, described, places.get(key, {}))
        _put(path, tree, nested.get(key, (key,)) if isinstance(nested, dict) else (key,), value)
    return tree


def _unread(path: Path, key: str, described: StandIn, places: dict[tuple, Any]) -> Unread:
    properties = _field(path, described, "properties")
    state = properties.state if isinstance(properties, StandIn) else None
    dtype = state[0] if isinstance(state, tuple) and state else state.get("dtype") if isinstance(state, dict) else None
    size, chunks = _field(path, described, "size"), _field(path, described, "chunks")
    if not isinstance(dtype, torch.dtype) or not isinstance(size, torch.Size) or not isinstance(chunks, list):
        raise _damaged(path, f"{key!r} has no size, dtype or chunks")
    tensor = torch.Tensor._make_subclass(Unread, torch.empty(size, dtype=dtype, device="meta"))
    corners = {tuple(_field(path, chunk, "offsets")): tuple(_field(path, chunk, "sizes")) for chunk in chunks}
    if sum(math.prod(sizes) for sizes in corners.values()) != size.numel():
        raise _damaged(path, f"the pieces of {key!r} do not make up its size {list(size)}")
    tensor.read = partial(_read, path, key, size, dtype, [(at, n, places.get(at)) for at, n in corners.items()])
    return tensor


def _read(
    path: Path, key: str, size: torch.Size, dtype: torch.dtype, pieces: list[tuple[tuple, tuple, Any]]
) -> torch.Tensor:
    """A tensor, put together from its pieces."""
    with _consistent(path):
        if len(pieces) == 1:
            return _piece(path, key, *pieces[0][1:], dtype)
        whole = torch.empty(size, dtype=dtype)
        for corner, sizes, place in pieces:
            target = whole
            for dim, (start, length) in enumerate(zip(corner, sizes)):
                target = target.narrow(dim, start, length)
            target.copy_(_piece(path, key, sizes, place, dtype))
        return whole


def _piece(path: Path, key: str, sizes: tuple, place: Any, dtype: torch.dtype) -> torch.Tensor:
    if place is None:
        raise _damaged(path, f"nothing tells where {key!r} lies")
    name, offset, length = (_field(path, place, field) for field in ("relative_path", "offset", "length"))
    if place.state.get("transform_descriptors"):
        raise Refused(f"{path}: {key!r} was transformed when saved, by {place.state['transform_descriptors']}: {DCP}.")
    if not all(isinstance(number, int) and number >= 0 for number in (offset, length)):
        raise _damaged(path, f"{key!r} lies at {offset!r}, with {length!r} bytes")
    if not isinstance(name, str) or name != Path(name).name or name == "..":
        raise _damaged(path, f"{key!r} lies in {name!r}, outside of the folder")
    file = path / name
    if not file.is_file():
        raise _damaged(path, f"{name} is missing, in which {key!r} lies")
    with file.open("rb") as stream:
        stream.seek(offset)
        data = io.BytesIO(stream.read(length))
    if data.getbuffer().nbytes != length:
        raise _damaged(
            path, f"{name} has {file.stat().st_size:,} bytes, {key!r} lies at {offset:,} to {offset + length:,}"
        )
    tensor = load_tensors(str(file), data, inspect_zip(str(file), data)[0])
    if not torch.is_tensor(tensor) or tuple(tensor.shape) != tuple(sizes) or tensor.dtype != dtype:
        raise _damaged(path, f"{name} holds another tensor than the {list(sizes)} of {dtype} that {key!r} claims")
    return tensor


def _metadata(path: Path) -> StandIn:
    file = path / METADATA
    if file.stat().st_size > limits.MAX_DESCRIPTION:
        raise Refused(
            f"{file} has {file.stat().st_size:,} bytes, more than the {limits.MAX_DESCRIPTION:,} that are read."
        )
    try:
        with file.open("rb") as stream:
            metadata = _Unpickler(stream).load()
    except _Unknown as error:
        raise Refused(
            f"{file} names '{error}', which no such folder needs and which may run code: not loaded. "
            f"Where you trust the folder, {DCP}."
        ) from None
    except Exception as error:  # a damaged pickle fails in any way
        raise _damaged(path, f"its {METADATA} cannot be read ({type(error).__name__}: {error})") from None
    if not isinstance(metadata, StandIn) or not isinstance(metadata.state, dict):
        raise _damaged(path, f"its {METADATA} holds a {type(metadata).__name__}")
    return metadata


class _Unknown(Exception):
    """The name of a global that is not read."""


class _Unpickler(pickle.Unpickler):
    """Reads metadata without importing or calling what it names: stand-ins take the place of the known classes."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in CLASSES:
            return stand_in_class(full)
        if full in ("torch.Size", "collections.OrderedDict"):
            return torch.Size if name == "Size" else OrderedDict
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        found = stand_in(full) if module.startswith("pathlib") else None  # the path that the folder was written to
        if found is None:
            raise _Unknown(full)
        return found


def _table(path: Path, metadata: StandIn, name: str) -> dict:
    table = metadata.state.get(name)
    if not isinstance(table, dict):
        raise _damaged(path, f"its {METADATA} has no {name}")
    if len(table) > limits.MAX_KEYS:
        raise Refused(f"{path} holds {len(table):,} names, more than the {limits.MAX_KEYS:,} that are read.")
    return table


def _field(path: Path, record: Any, name: str) -> Any:
    if not isinstance(record, StandIn) or not isinstance(record.state, dict) or name not in record.state:
        raise _damaged(path, f"its {METADATA} has a {type(record).__name__} without {name}")
    return record.state[name]


def _put(path: Path, tree: dict, keys: Any, value: Any) -> None:
    """Put a value where it was before the dictionaries were flattened."""
    if not isinstance(keys, tuple) or not keys:
        raise _damaged(path, f"its {METADATA} has a value under {keys!r}")
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise _damaged(path, f"its {METADATA} has a value at and below {key!r}")
    tree[keys[-1]] = value


@contextmanager
def _consistent(path: Path) -> Iterator[None]:
    """Metadata that are not as torch writes them fail in any way."""
    try:
        yield
    except Refused:
        raise
    except Exception as error:
        raise _damaged(path, f"its {METADATA} contradicts itself ({type(error).__name__}: {error})") from error


def _damaged(path: Path, why: str) -> Refused:
    return Refused(f"{path} is a damaged folder of torch.distributed.checkpoint: {why}. Copy the whole folder again.")
