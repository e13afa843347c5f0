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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import untrusted
from .file_values import Content, Unread, fetched, map_file, unread
from .pickles import Damaged, Known, decode, put
from .stand_ins import StandIn, kind_of, known_stand_in, named_stand_in
from .tensors import DTYPES, Claims, extent, tuple_of_sizes
from .torch_files import read_archive
from .untrusted import CheckpointRefused, listed, printable, quoted, shortened

__all__ = ["METADATA", "covers_once", "read_folder"]

METADATA = ".metadata"
DCP = "make it one file with torch.distributed.checkpoint.format_utils.dcp_to_torch_save, where it was written"
TRUSTED = f"Where you trust the folder, {DCP}"
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
MOST_CORNERS = 1 << 20  # of all pieces of a tensor
OVERHEAD = 1 << 20  # bytes of a piece beside its values


Box = tuple[tuple[int, ...], tuple[int, ...]]  # where it begins, and its shape


class Piece(NamedTuple):
    """
    A part of a tensor.

    Args:
        corner: where it begins in the tensor.
        shape: its shape.
        name: of the file that holds it.
        offset: where it begins in the file.
        length: its bytes there.
    """

    corner: tuple[int, ...]
    shape: tuple[int, ...]
    name: str
    offset: int
    length: int


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
    with _consistent(path):
        size = sum(_on_disk(file) for file in path.iterdir() if file.is_file())
        factor = min(max(1, size // untrusted.SIZE_OF_FOLDER), untrusted.LARGEST_FACTOR)
        return _Folder(path, _metadata(path, factor), factor).tree()


class _Folder:
    """A folder whose metadata is known."""

    def __init__(self, path: Path, metadata: StandIn, factor: int) -> None:
        self.path, self.metadata, self.most = path, metadata, factor * untrusted.MAX_KEYS
        size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
        self.claims = Claims(str(path), size, inflation=1)
        self.claims.present = size
        self.pieces = 0
        self.sizes: dict[str, int] = {}

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
        if not isinstance(dtype, torch.dtype) or not isinstance(chunks, list) or len(chunks) > self.most:
            raise self.damaged(f"{quoted(key)} has no size, dtype or chunks")
        self.claims.add(extent(size) * dtype.itemsize)
        self.pieces += len(chunks)
        if self.pieces > self.most:
            raise self.damaged(f"it claims more than {self.most:,} pieces")
        boxes = [
            (tuple_of_sizes(self.field(chunk, "offsets")), tuple_of_sizes(self.field(chunk, "sizes")))
            for chunk in chunks
        ]
        if not covers_once(size, boxes):
            raise self.damaged(
                f"the pieces of {quoted(key)} do not make up its size {list(size)}: they overlap, or leave a gap"
            )
        pieces = [
            Piece(corner, shape, *self.place(key, shape, dtype, places.get(repr(corner)))) for corner, shape in boxes
        ]
        return unread(size, dtype, partial(self.read, key, size, dtype, pieces))

    def read(self, key: str, size: tuple[int, ...], dtype: torch.dtype, pieces: list[Piece]) -> torch.Tensor:
        """A tensor, put together from its pieces."""
        with _consistent(self.path):
            if len(pieces) == 1:
                return self.read_piece(key, pieces[0], dtype)
            whole = torch.empty(size, dtype=dtype)
            for piece in pieces:
                target = whole
                for dim, (start, length) in enumerate(zip(piece.corner, piece.shape)):
                    target = target.narrow(dim, start, length)
                target.copy_(self.read_piece(key, piece, dtype))
            return whole

    def place(self, key: str, shape: tuple[int, ...], dtype: torch.dtype, place: Any) -> tuple[str, int, int]:
        """Which file of the folder holds a piece, and where."""
        if place is None:
            raise self.damaged(f"nothing tells where {quoted(key)} lies")
        name, offset, length = (self.field(place, field) for field in ("relative_path", "offset", "length"))
        transforms = place.state.get("transform_descriptors")
        if transforms:
            how = listed([quoted(one) for one in transforms]) if isinstance(transforms, list) else quoted(transforms)
            raise CheckpointRefused(f"{self.path}: {quoted(key)} was transformed when saved, by {how}: {DCP}.")
        if not all(type(number) is int and number >= 0 for number in (offset, length)):
            raise self.damaged(f"{quoted(key)} lies at {quoted(offset)}, with {quoted(length)} bytes")
        if not isinstance(name, str) or name != Path(name).name or name in ("", "..") or "\0" in name:
            raise self.damaged(f"{quoted(key)} lies in {quoted(name)}, outside of the folder")
        size = self.size_of(name)
        if size is None:
            raise self.damaged(f"{printable(shortened(name))} is missing, in which {quoted(key)} lies")
        if offset + length > size:
            raise self.damaged(
                f"{printable(name)} has {size:,} bytes, {quoted(key)} lies at {offset:,} to {quoted(offset + length)}"
            )
        needed = extent(shape) * dtype.itemsize
        if not needed <= length <= needed + OVERHEAD:
            raise self.damaged(f"{quoted(key)} lies in {length:,} bytes, which is not the size of {list(shape)}")
        return name, offset, length

    def size_of(self, name: str) -> int | None:
        """Bytes of a file of the folder; None where there is none."""
        if name not in self.sizes:
            try:
                self.sizes[name] = (self.path / name).stat().st_size if (self.path / name).is_file() else -1
            except OSError:  # no system has files of such a name
                self.sizes[name] = -1
        return self.sizes[name] if self.sizes[name] >= 0 else None

    def read_piece(self, key: str, piece: Piece, dtype: torch.dtype) -> torch.Tensor:
        """A part of a tensor, read into memory: a folder may have more files than a process may keep open."""
        file = self.path / piece.name
        data = bytearray(piece.length)
        with file.open("rb") as stream:
            stream.seek(piece.offset)
            stream.readinto(data)
        tensor = read_archive(str(file), Content(data), Claims(str(file), piece.length))
        tensor = fetched(tensor) if torch.is_tensor(tensor) else None
        if tensor is None or tuple(tensor.shape) != piece.shape or tensor.dtype != dtype:
            shown = f"{list(piece.shape)} of {dtype}"
            raise self.damaged(
                f"{printable(piece.name)} holds another tensor than the {shown} that {quoted(key)} claims"
            )
        out: torch.Tensor = tensor
        return out

    def table(self, name: str) -> dict:
        """One of the dictionaries of the metadata."""
        table = self.metadata.state.get(name)
        if not isinstance(table, dict):
            raise self.damaged(f"its {METADATA} has no {name}")
        if len(table) > self.most:
            raise CheckpointRefused(
                f"{self.path} holds {len(table):,} names, more than the {self.most:,} that are read. {TRUSTED}."
            )
        return table

    def field(self, record: Any, name: str) -> Any:
        """An attribute of an object of the metadata."""
        if not isinstance(record, StandIn) or not isinstance(record.state, dict) or name not in record.state:
            raise self.damaged(f"its {METADATA} has a {kind_of(record)} without {name}")
        return record.state[name]

    def put(self, tree: dict, keys: Any, value: Any) -> None:
        """Put a value where it was before the dictionaries were flattened."""
        if not isinstance(keys, tuple) or not 0 < len(keys) <= untrusted.MAX_DIMS:
            raise self.damaged(f"its {METADATA} has a value under {quoted(keys)}")
        for key in keys[:-1]:
            tree = tree.setdefault(key, {})
            if not isinstance(tree, dict):
                raise self.damaged(f"its {METADATA} has a value at and below {quoted(key)}")
        if keys[-1] in tree:
            raise self.damaged(f"its {METADATA} has two values at {quoted(keys[-1])}")
        put(tree, keys[-1], value)

    def damaged(self, why: str) -> CheckpointRefused:
        return _damaged(self.path, why)


def covers_once(size: Sequence[int], boxes: Sequence[Box]) -> bool:
    """
    Whether boxes cover a tensor, each element exactly once.

    They do if and only if their indicator functions add up to that of the whole, and functions on a grid are equal if
    and only if their differences along all dimensions are. Those of a box are 1 or -1 at its corners and 0 elsewhere:
    it is enough to count corners, in one pass.

    Args:
        size: of the tensor.
        boxes: where each begins, and its shape.
    """
    if any(len(corner) != len(size) or len(shape) != len(size) for corner, shape in boxes):
        return False
    whole = (0,) * len(size), tuple(size)
    cut = [
        dim for dim in range(len(size)) if any((corner[dim], shape[dim]) != (0, size[dim]) for corner, shape in boxes)
    ]
    if len(boxes) << len(cut) > MOST_CORNERS:
        return False  # no network is cut along so many dimensions
    corners: Counter[tuple[int, ...]] = Counter()
    for sign, (corner, shape) in [(-1, whole), *((1, box) for box in boxes)]:
        if 0 in shape:
            continue
        for ends in product((0, 1), repeat=len(cut)):
            place = tuple(corner[dim] + end * shape[dim] for dim, end in zip(cut, ends))
            corners[place] += sign * (-1) ** sum(ends)
    return not any(corners.values())


def _on_disk(file: Path) -> int:
    """Bytes of a file that are really there: some systems keep those that are zero out of it."""
    status = file.stat()
    return min(status.st_size, 512 * getattr(status, "st_blocks", status.st_size))


def _metadata(path: Path, factor: int) -> StandIn:
    file = path / METADATA
    content = map_file(file)
    try:
        metadata, _ = decode(str(file), content.view, cache(partial(_find, file)), factor=factor, remedy=TRUSTED)
    except Damaged as error:
        raise _damaged(path, f"its {METADATA} cannot be read ({error.why})") from None
    if not isinstance(metadata, StandIn) or not isinstance(metadata.state, dict):
        raise _damaged(path, f"its {METADATA} holds a {kind_of(metadata)}")
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
        f"{file} names {quoted(name)}, which no such folder needs and which may run code: not loaded. {TRUSTED}."
    )


@contextmanager
def _consistent(path: Path) -> Iterator[None]:
    """Metadata that are not as torch writes them fail in any way."""
    try:
        yield
    except (CheckpointRefused, OSError):
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {quoted(str(error))[1:-1]}"
        raise _damaged(path, f"its {METADATA} contradicts itself ({why})") from error


def _damaged(path: Path, why: str) -> CheckpointRefused:
    return CheckpointRefused(
        f"{path} is a damaged folder of torch.distributed.checkpoint: {why}. Copy the whole folder again."
    )
