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

"""The values in a file: mapped as torch's memory without being read, or read later where that is impossible."""

from __future__ import annotations

import mmap
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from .untrusted import CheckpointRefused

__all__ = [
    "Content",
    "Unread",
    "fetched",
    "map_file",
    "unread",
]

# Has Linux not set memory aside for what could be written to: otherwise it maps no file larger than its memory. Python
# names the flag from 3.13 on; the number is that of these processors.
LINUX_NORESERVE = 0x4000 if sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64") else 0
NORESERVE = getattr(mmap, "MAP_NORESERVE", LINUX_NORESERVE)


class Content:
    """
    Bytes of a file.

    Args:
        memory: where they lie: mapped, or read.

    Attributes:
        view: the bytes.
    """

    def __init__(self, memory: mmap.mmap | bytearray) -> None:
        self.view = memoryview(memory)
        self._storage = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage() if len(memory) else None

    def __len__(self) -> int:
        return len(self.view)

    def cut(self, begin: int, end: int) -> torch.UntypedStorage:
        """The memory of some bytes, shared; it lasts as long as anything cut from it."""
        if begin >= end or self._storage is None:
            return torch.UntypedStorage(0)
        out: torch.UntypedStorage = self._storage[begin:end]
        return out


def map_file(path: Path) -> Content:
    """
    Map a file: its pages are read when they are used, and the system may drop them again.

    The mapping is private. Writing to it copies the page: neither does the file change, nor does the process end, as it
    would with a mapping that may only be read. No memory is set aside for that, so that the file may be larger than
    the memory.

    Raises:
        CheckpointRefused: if the system does not map it.
        OSError: if it cannot be opened.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            return Content(bytearray())
        try:
            if hasattr(mmap, "MAP_PRIVATE"):
                protection = mmap.PROT_READ | mmap.PROT_WRITE
                memory = mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE | NORESERVE, prot=protection)
            else:
                memory = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
        except (OSError, OverflowError, ValueError) as error:
            raise CheckpointRefused(
                f"{path} cannot be mapped into memory ({error}): the system allows {size:,} bytes neither in memory "
                "nor reserved, or its disk cannot be mapped. Copy it to another disk, or read it on a larger machine."
            ) from None
    return Content(memory)


class Unread(torch.Tensor):
    """A tensor that is still in its file: its shape and type are known, its values are not."""

    read: Callable[[], torch.Tensor]


def unread(shape: Sequence[int], dtype: torch.dtype, read: Callable[[], torch.Tensor]) -> Unread:
    """
    A tensor whose values are read later.

    Args:
        shape: its shape.
        dtype: its type.
        read: reads it.
    """
    tensor = torch.Tensor._make_subclass(Unread, torch.empty(tuple(shape), dtype=dtype, device="meta"))
    tensor.read = read
    return tensor


def fetched(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with its values."""
    return tensor.read() if isinstance(tensor, Unread) else tensor
