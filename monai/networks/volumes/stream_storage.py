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

"""Where volumes rest between the steps of a streamed network: in memory, or in files of a folder."""

from __future__ import annotations

import math
import operator
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from enum import Enum
from numbers import Real
from pathlib import Path
from typing import Any

import torch

from monai.networks.volumes.stream_sizes import Box, VolumeSize, put

__all__ = [
    "FolderStorage",
    "Layout",
    "MemoryStorage",
    "Resting",
    "Storage",
    "Transfers",
    "as_bytes",
    "check_storage",
    "layout_of",
    "part_of",
    "storage_of",
]


class Layout(Enum):
    """What is contiguous in a volume: slabs along its first axis, every channel, or the channels of every position."""

    SLABS = "slabs"
    CHANNELS = "channels"
    CHANNELS_LAST = "channels last"


def layout_of(x: torch.Tensor) -> Layout:
    """The layout of ``x``, (B, C, sizes)."""
    if x.is_contiguous() or not x.movedim(1, -1).is_contiguous():
        return Layout.CHANNELS
    return Layout.CHANNELS_LAST


class MemoryStorage:
    """
    Volumes rest in the memory of a device.

    Args:
        device: the device.
        pinned: whether they rest in pages that a GPU reads by itself. Defaults to False.
    """

    def __init__(self, device: torch.device, pinned: bool = False) -> None:
        self.device = device
        self.pinned = pinned

    def empty(self, volume: VolumeSize, layout: Layout) -> torch.Tensor:
        """
        A volume without values.

        Args:
            volume: its size.
            layout: what is contiguous in it.

        Returns:
            (B, C, sizes)
        """
        empty = torch.empty(
            _shape_at_rest(volume, layout), dtype=volume.dtype, device=self.device, pin_memory=self.pinned
        )
        return _as_volume(empty, layout)

    def check_room(self, size: int) -> None:
        """Memory says by itself when there is no more."""


class FolderStorage:
    """
    Volumes rest in files, mapped into memory. A file is gone when its volume is.

    Args:
        folder: an existing folder.

    Raises:
        NotADirectoryError: if it does not exist.
    """

    device = torch.device("cpu")

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise NotADirectoryError(f"storage={str(folder)!r} should be 'cpu', None or an existing folder.")

    def empty(self, volume: VolumeSize, layout: Layout) -> torch.Tensor:
        """See :meth:`MemoryStorage.empty`."""
        shape = _shape_at_rest(volume, layout)
        self.check_room(volume.bytes)
        handle, path = tempfile.mkstemp(dir=self.folder, prefix="volume-")
        os.close(handle)
        try:
            data = torch.from_file(path, shared=True, size=math.prod(shape), dtype=volume.dtype)
        finally:
            os.unlink(path)  # the mapping keeps the file until the tensor is gone
        return _as_volume(data.view(shape), layout)

    def check_room(self, size: int) -> None:
        """
        Raises:
            OSError: if the disk has less than ``size`` bytes free: writing to a mapped file would end the process.
        """
        free = shutil.disk_usage(self.folder).free
        if free < size:
            raise OSError(f"{str(self.folder)!r} has {free:,} bytes free, but {size:,} are needed: use another folder.")


Storage = MemoryStorage | FolderStorage


def as_bytes(memory: Any) -> int:
    """
    A number of bytes, of any type that holds whole numbers: also a float without a fraction, such as 8e9.

    Raises:
        ValueError: if it is none, or less than 1.
    """
    try:
        number = operator.index(memory)
    except TypeError:
        number = int(float(memory)) if isinstance(memory, Real) and float(memory).is_integer() else 0
    if isinstance(memory, bool) or number < 1:
        raise ValueError(
            f"memory={memory!r} should be the number of bytes that the device may hold: a whole number from 1 on, such "
            "as 8 * 2**30."
        )
    return number


def check_storage(storage: Any) -> None:
    """
    Args:
        storage: what :class:`StreamedAutoencoder` was given.

    Raises:
        ValueError: if it can be no storage.
        NotADirectoryError: if it is no existing folder.
    """
    if storage is None or isinstance(storage, str) and storage == "cpu":
        return
    if not isinstance(storage, (str, os.PathLike)) or not os.fspath(storage):
        raise ValueError(f"storage={storage!r} should be 'cpu', None or an existing folder, as '.' for this one.")
    FolderStorage(storage)


def storage_of(wanted: Any, device: torch.device, size: int) -> Storage:
    """
    Where volumes rest, with room for them.

    Args:
        wanted: "cpu", a folder or None.
        device: where parts are computed.
        size: how many bytes rest at most.

    Raises:
        OSError: if a disk has less room.
    """
    if wanted is None:
        return MemoryStorage(device)
    if wanted == "cpu":
        return MemoryStorage(torch.device("cpu"), pinned=device.type == "cuda")
    folder = FolderStorage(wanted)
    folder.check_room(size)
    return folder


def _shape_at_rest(volume: VolumeSize, layout: Layout) -> tuple[int, ...]:
    first, *others = volume.sizes
    if layout is Layout.SLABS:
        return (first, volume.batch, volume.channels, *others)
    if layout is Layout.CHANNELS_LAST:
        return (volume.batch, *volume.sizes, volume.channels)
    return (volume.batch, volume.channels, *volume.sizes)


def _as_volume(data: torch.Tensor, layout: Layout) -> torch.Tensor:
    if layout is Layout.SLABS:
        return data.movedim(0, 2)
    return data.movedim(-1, 1) if layout is Layout.CHANNELS_LAST else data


def part_of(volume: torch.Tensor, box: Box) -> torch.Tensor:
    """The part of a volume, (B, C, sizes), in ``box``, as a view."""
    for axis, (begin, end) in enumerate(box):
        volume = volume.narrow(axis + 2, begin, end - begin)
    return volume


class Transfers:
    """
    Copies parts between the device and where volumes rest: from a GPU while it computes the next one.

    Args:
        device: the device that computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def read(self, part: torch.Tensor) -> torch.Tensor:
        """A part on the device; where it rests there, the part itself."""
        if part.device == self.device:
            return part
        if self.stream is None:
            return part.to(self.device)
        with torch.cuda.stream(self.stream):
            copy = part.to(self.device, non_blocking=True)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        copy.record_stream(current)
        return copy

    def join(self, parts: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
        """Parts that lie one after another along an axis, in one copy on the device."""
        lengths = [part.shape[dim] for part in parts]
        shape = (*parts[0].shape[:dim], sum(lengths), *parts[0].shape[dim + 1 :])
        aside = self.stream is not None and parts[0].device != self.device
        context: Any = torch.cuda.stream(self.stream) if aside else nullcontext()
        with context:
            whole = torch.empty(shape, dtype=parts[0].dtype, device=self.device)
            for target, part in zip(whole.split(lengths, dim), parts):
                target.copy_(part, non_blocking=True)
        if self.stream is not None and aside:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            whole.record_stream(current)
        return whole

    def write(self, target: torch.Tensor, part: torch.Tensor) -> None:
        """Put a part of the device to where it rests."""
        if self.stream is None or target.device == self.device:
            target.copy_(part)
            return
        self.stream.synchronize()  # one part on its way at a time: the device has no memory for more
        part = part.contiguous()
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            target.copy_(part, non_blocking=True)
        part.record_stream(self.stream)

    def finish(self) -> None:
        """Wait until everything is where it rests."""
        if self.stream is not None:
            self.stream.synchronize()


class Resting:
    """
    A volume where it rests: a slab of it, and what is known of the volume before and behind the slab.

    Args:
        slab: (B, C, sizes).
        axis: the spatial axis along which the volume is cut.
        begin: where the slab begins. Defaults to 0.
    """

    def __init__(self, slab: torch.Tensor, axis: int, begin: int = 0) -> None:
        self.slab, self.axis, self.begin = slab, axis, begin
        self.pieces = [(begin, slab)]

    def add(self, begin: int, piece: torch.Tensor) -> None:
        """Let a piece before or behind the slab be known, which begins at ``begin``."""
        self.pieces.append((begin, piece))
        self.pieces.sort(key=lambda each: each[0])

    def read(self, box: Box, transfers: Transfers) -> tuple[torch.Tensor, bool]:
        """The part of the volume in ``box`` on the device, and whether it is a copy that may be overwritten."""
        begin, end = box[self.axis]
        parts = []
        for first, piece in self.pieces:
            low, high = max(begin, first), min(end, first + piece.shape[self.axis + 2])
            if low < high:
                parts.append(part_of(piece, put(box, self.axis, (low - first, high - first))))
        if len(parts) > 1:
            return transfers.join(parts, self.axis + 2), True
        copy = transfers.read(parts[0])
        return copy, copy is not parts[0]

    def within(self, box: Box) -> torch.Tensor:
        """The part of the slab in ``box``, as a view."""
        begin, end = box[self.axis]
        return part_of(self.slab, put(box, self.axis, (begin - self.begin, end - self.begin)))
