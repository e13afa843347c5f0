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

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import limits
from .mapping import Content, map_file
from .pickles import Damaged, Known, decode, put
from .refusal import CheckpointRefused
from .stand_ins import StandIn, known_stand_in, named_stand_in
from .tensors import DTYPES, Claims, extent, tuple_of_sizes
from .texts import listed, printable, quoted
from .torch_files import read_archive

__all__ = ["METADATA", "Unread", "fetched", "read_folder"]

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
OVERHEAD = 1 << 20  # bytes of a piece beside its values


class Unread(torch.Tensor):
    """A tensor that is still in a folder: its shape and type are known, its values are not."""

    read: Callable[[], torch.Tensor]


def fetched(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with its values."""
    return tensor.read() if isinstance(tensor, Unread) else tensor


class Piece(NamedTuple):
    """A part of a tensor: where it begins there, its shape, and what tells where it lies."""

    corner: tuple[int, ...]
    shape: tuple[int, ...]
    place: Any


def read_folder(path: Path) -> dict:
    """
    Read the metadata of a folder.

    Args:
        path: the folder.

    Returns:
        what was saved: dictionaries in one another, whose tensors are :class:`Unread`; what is no tensor is a stand-in.

    Raises:
        CheckpointRefused: if the metadata is damaged, names code, or contradicts itself. ``Unread.read`` raises it if
            the data is damaged.
    """
    metadata = _metadata(path)
    with _consistent(path):
        return _Folder(path, metadata).tree()


class _Folder:
    """A folder whose metadata is known."""

    def __init__(self, path: Path, metadata: StandIn) -> None:
        self.path, self.metadata = path, metadata
        size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
        self.claims = Claims(str(path), size, inflation=1)
        self.claims.present = size
        self.pieces = 0

    def tree(self) -> dict:
        """What was saved."""
        places: dict[str, dict[str, Any]] = {}
        for index, place in self.table("storage_data").items():
            key, offset = self.field(index, "fqn"), index.state.get("offset")  # which is left out where it is None
            places.setdefault(str(key), {})[repr(tuple_of_sizes(offset or ()))] = place
        nested = self.metadata.state.get("planner_data")  # the keys of the dictionaries, by the flat name of a value
        tree: dict = {}
        for key, described in self.table("state_dict_metadata").items():
            value = described
            if isinstance(described, StandIn) and isinstance(described.state, dict) and "chunks" in described.state:
                value = self.unread(key, described, places.get(str(key), {}))
            self.put(tree, nested.get(key, (key,)) if isinstance(nested, dict) else (key,), value)
        return tree

    def unread(self, key: Any, described: StandIn, places: dict[str, Any]) -> Unread:
        """A tensor without its values."""
        properties = self.field(described, "properties")
        state = properties.state if isinstance(properties, StandIn) else None
        dtype = (
            state[0] if isinstance(state, tuple) and state else state.get("dtype") if isinstance(state, dict) else None
        )
        size, chunks = tuple_of_sizes(self.field(described, "size")), self.field(described, "chunks")
        if not isinstance(dtype, torch.dtype) or not isinstance(chunks, list) or len(chunks) > limits.MAX_KEYS:
            raise self.damaged(f"{quoted(key)} has no size, dtype or chunks")
        self.claims.add(extent(size) * dtype.itemsize)
        self.pieces += len(chunks)
        if self.pieces > limits.MAX_KEYS:
            raise self.damaged(f"it claims more than {limits.MAX_KEYS:,} pieces")
        pieces = []
        for chunk in chunks:
            corner, shape = (tuple_of_sizes(self.field(chunk, name)) for name in ("offsets", "sizes"))
            pieces.append(Piece(corner, shape, places.get(repr(corner))))
        if not covers_once(size, pieces):
            raise self.damaged(
                f"the pieces of {quoted(key)} do not make up its size {list(size)}: they overlap, or leave a gap"
            )
        tensor = torch.Tensor._make_subclass(Unread, torch.empty(size, dtype=dtype, device="meta"))
        tensor.read = partial(self.read, key, size, dtype, pieces)
        return tensor

    def read(self, key: str, size: tuple[int, ...], dtype: torch.dtype, pieces: list[Piece]) -> torch.Tensor:
        """A tensor, put together from its pieces."""
        with _consistent(self.path):
            if len(pieces) == 1:
                return self.piece(key, pieces[0], dtype)
            whole = torch.empty(size, dtype=dtype)
            for piece in pieces:
                target = whole
                for dim, (start, length) in enumerate(zip(piece.corner, piece.shape)):
                    target = target.narrow(dim, start, length)
                target.copy_(self.piece(key, piece, dtype))
            return whole

    def piece(self, key: str, piece: Piece, dtype: torch.dtype) -> torch.Tensor:
        """A part of a tensor, of the file that holds it."""
        place = piece.place
        if place is None:
            raise self.damaged(f"nothing tells where {quoted(key)} lies")
        name, offset, length = (self.field(place, field) for field in ("relative_path", "offset", "length"))
        transforms = place.state.get("transform_descriptors")
        if transforms:
            how = listed([quoted(one) for one in transforms]) if isinstance(transforms, list) else quoted(transforms)
            raise CheckpointRefused(f"{self.path}: {quoted(key)} was transformed when saved, by {how}: {DCP}.")
        if not all(type(number) is int and number >= 0 for number in (offset, length)):
            raise self.damaged(f"{quoted(key)} lies at {quoted(offset)}, with {quoted(length)} bytes")
        if not isinstance(name, str) or name != Path(name).name or name == ".." or "\0" in name:
            raise self.damaged(f"{quoted(key)} lies in {quoted(name)}, outside of the folder")
        if length > extent(piece.shape) * dtype.itemsize + OVERHEAD:
            raise self.damaged(f"{quoted(key)} lies in {length:,} bytes, too many for its shape {list(piece.shape)}")
        tensor = read_archive(
            str(self.path / name), self.bytes_of(key, name, offset, length), Claims(str(self.path / name), length)
        )
        if not torch.is_tensor(tensor) or tuple(tensor.shape) != piece.shape or tensor.dtype != dtype:
            shown = f"{list(piece.shape)} of {dtype}"
            raise self.damaged(f"{printable(name)} holds another tensor than the {shown} that {quoted(key)} claims")
        return tensor

    def bytes_of(self, key: str, name: str, offset: int, length: int) -> Content:
        """A part of a file, read into memory: a folder may have more files than a process may keep open."""
        file = self.path / name
        if not file.is_file():
            raise self.damaged(f"{printable(name)} is missing, in which {quoted(key)} lies")
        size = file.stat().st_size
        if offset + length > size:
            raise self.damaged(
                f"{printable(name)} has {size:,} bytes, {quoted(key)} lies at {offset:,} to {offset + length:,}"
            )
        data = bytearray(length)
        with file.open("rb") as stream:
            stream.seek(offset)
            stream.readinto(data)
        return Content(data)

    def table(self, name: str) -> dict:
        """One of the dictionaries of the metadata."""
        table = self.metadata.state.get(name)
        if not isinstance(table, dict):
            raise self.damaged(f"its {METADATA} has no {name}")
        if len(table) > limits.MAX_KEYS:
            raise CheckpointRefused(
                f"{self.path} holds {len(table):,} names, more than the {limits.MAX_KEYS:,} that are read. Where you "
                f"trust the folder, {DCP}."
            )
        return table

    def field(self, record: Any, name: str) -> Any:
        """An attribute of an object of the metadata."""
        if not isinstance(record, StandIn) or not isinstance(record.state, dict) or name not in record.state:
            raise self.damaged(f"its {METADATA} has a {type(record).__name__} without {name}")
        return record.state[name]

    def put(self, tree: dict, keys: Any, value: Any) -> None:
        """Put a value where it was before the dictionaries were flattened."""
        if not isinstance(keys, tuple) or not 0 < len(keys) <= limits.MAX_DIMS:
            raise self.damaged(f"its {METADATA} has a value under {quoted(keys)}")
        for key in keys[:-1]:
            tree = tree.setdefault(key, {})
            if not isinstance(tree, dict):
                raise self.damaged(f"its {METADATA} has a value at and below {quoted(key)}")
        put(tree, keys[-1], value)

    def damaged(self, why: str) -> CheckpointRefused:
        return _damaged(self.path, why)


def covers_once(size: Sequence[int], pieces: Sequence[Piece]) -> bool:
    """
    Whether pieces cover a tensor, each element exactly once.

    Boxes cover another one exactly once if and only if their indicator functions add up to its own, and functions on a
    grid are equal if and only if their differences along all dimensions are. Those of a box are 1 or -1 at its corners
    and 0 elsewhere, so that it is enough to count corners, in one pass over the pieces.
    """
    if any(len(piece.corner) != len(size) or len(piece.shape) != len(size) for piece in pieces):
        return False
    whole = Piece((0,) * len(size), tuple(size), None)
    cut = [
        dim
        for dim in range(len(size))
        if any((piece.corner[dim], piece.shape[dim]) != (0, size[dim]) for piece in pieces)
    ]
    if len(pieces) << len(cut) > 8 * limits.MAX_KEYS:
        return False  # as many corners have no pieces of a network
    corners: Counter[tuple[int, ...]] = Counter()
    for sign, piece in [(-1, whole), *((1, piece) for piece in pieces)]:
        if 0 in piece.shape:
            continue
        for ends in product((0, 1), repeat=len(cut)):
            place = tuple(piece.corner[dim] + end * piece.shape[dim] for dim, end in zip(cut, ends))
            corners[place] += sign * (-1) ** sum(ends)
    return not any(corners.values())


def _metadata(path: Path) -> StandIn:
    file = path / METADATA
    content = map_file(file)
    if len(content) > limits.MAX_DESCRIPTION:
        raise CheckpointRefused(
            f"{file} has {len(content):,} bytes, more than the {limits.MAX_DESCRIPTION:,} that are read. Where you "
            f"trust the folder, {DCP}."
        )
    try:
        metadata, _ = decode(str(file), content.view, cache(partial(_find, file)))
    except Damaged as error:
        raise _damaged(path, f"its {METADATA} cannot be read ({error.why})") from None
    if not isinstance(metadata, StandIn) or not isinstance(metadata.state, dict):
        raise _damaged(path, f"its {METADATA} holds a {type(metadata).__name__}")
    return metadata


def _find(file: Path, name: str) -> Any:
    """
    What stands for a global of the metadata: a stand-in takes the place of each known class.

    Raises:
        CheckpointRefused: if the name is none of them.
    """
    if name in CLASSES:
        return named_stand_in(name)
    if name in DTYPES:
        return DTYPES[name]
    if name == "torch.Size":
        return Known(name, tuple_of_sizes)
    if name == "collections.OrderedDict" or name.startswith("pathlib"):  # the path that the folder was written to
        harmless = known_stand_in(name)
        if harmless is not None:
            return harmless
    raise CheckpointRefused(
        f"{file} names {quoted(name)}, which no such folder needs and which may run code: not loaded. Where you trust "
        f"the folder, {DCP}."
    )


@contextmanager
def _consistent(path: Path) -> Iterator[None]:
    """Metadata that are not as torch writes them fail in any way."""
    try:
        yield
    except CheckpointRefused:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {quoted(str(error))[1:-1]}"
        raise _damaged(path, f"its {METADATA} contradicts itself ({why})") from error


def _damaged(path: Path, why: str) -> CheckpointRefused:
    return CheckpointRefused(
        f"{path} is a damaged folder of torch.distributed.checkpoint: {why}. Copy the whole folder again."
    )
