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
"""The tensors that a pickle of torch describes, made without calling what the pickle names."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch

from . import untrusted
from .file_values import unread
from .pickles import RESAVE, Known
from .stand_ins import StandIn, known_stand_in, named_stand_in
from .untrusted import CheckpointRefused, quoted

__all__ = ["Claims", "Odd", "Tensors", "extent", "parts_of_id", "tuple_of_sizes"]

LARGEST = 1 << 63
STORAGES = {
    f"{name}Storage": dtype
    for name, dtype in {
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
        "ComplexDouble": torch.complex128,
        "ComplexFloat": torch.complex64,
        "QInt8": torch.qint8,
        "QInt32": torch.qint32,
        "QUInt8": torch.quint8,
        "QUInt4x2": torch.quint4x2,
        "QUInt2x4": torch.quint2x4,
        "Untyped": torch.uint8,
    }.items()
}
STORAGE = re.compile(r"torch\.(?:cuda\.|storage\.)?(\w+Storage)")
DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
# What tensors and their descriptions consist of beside that.
PARTS = re.compile(
    r"torch\.(?:device|serialization\._get_layout|per_(?:tensor|channel)_\w+)"
    r"|torch\.(?:cuda\.)?(?:sparse\.)?\w+Tensor"
    r"|torch\.distributed\.(?:tensor|_tensor|device_mesh|_mesh_layout)\b[\w.]*"
)
# Classes whose tensors are plain ones with something beside them.
PLAIN_CLASSES = (
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    "torch.nn.parameter.Buffer",
    "monai.data.meta_tensor.MetaTensor",
)
SHARDED = (
    "save whole tensors, of torch.distributed.checkpoint.state_dict.get_model_state_dict(net, "
    "options=StateDictOptions(full_state_dict=True, cpu_offload=True))"
)


class Odd(StandIn):
    """
    A tensor in another form than numbers in memory.

    Args:
        kind: what it is, as "a sparse tensor".
        remedy: what to do about it.
        trouble: what is wrong with it, where that is not its kind.
    """

    def __init__(self, kind: str, remedy: str, trouble: str = "") -> None:
        super().__init__()
        self.kind, self.remedy, self.trouble = kind, remedy, trouble or f"is {kind}"


class Claims:
    """
    What the tensors of a file claim together.

    Args:
        source: the file's name, for error messages.
        size: bytes of the file.
        inflation: how many times that the tensors may claim, beside some that repeat numbers.
    """

    def __init__(self, source: str, size: int, inflation: int = untrusted.MAX_INFLATION) -> None:
        self.source = source
        self.most = inflation * size + untrusted.MAX_REPEATED
        self.claimed = self.present = self.tensors = 0

    def add(self, size: int) -> None:
        """
        Count a tensor that has ``size`` bytes in use.

        Raises:
            CheckpointRefused: if it is too much.
        """
        self.claimed += size
        self.tensors += 1
        if self.claimed > self.most:
            raise CheckpointRefused(
                f"{self.source} claims {self.claimed:,} bytes for its tensors, of which {self.present:,} are there: "
                f"they repeat the same numbers beyond all need. {RESAVE}, of tensors that are contiguous()."
            )
        if self.tensors > untrusted.MAX_KEYS:
            raise CheckpointRefused(
                f"{self.source} holds more than {untrusted.MAX_KEYS:,} tensors, which no network has. {RESAVE}."
            )


class Stored:
    """
    The storage of a tensor.

    Args:
        memory: its bytes.
        dtype: of its values.
    """

    def __init__(self, memory: torch.UntypedStorage, dtype: torch.dtype) -> None:
        self.memory, self.dtype = memory, dtype

    @cached_property
    def aligned(self) -> torch.UntypedStorage:
        """A copy of its bytes, at a place that suits any type."""
        out: torch.UntypedStorage = self.memory.clone()
        return out


class Tensors:
    """
    What the pickle of a torch file may name, and what comes of it.

    Args:
        source: the file's name, for error messages.
        claims: of the file.
        memory: gives the bytes of a storage, by its key, type and size in bytes.
    """

    def __init__(
        self, source: str, claims: Claims, memory: Callable[[str, torch.dtype, int], torch.UntypedStorage]
    ) -> None:
        self.source, self.claims, self.memory = source, claims, memory
        self.storages: dict[tuple[str, torch.dtype, Any], Stored] = {}
        self.names: dict[str, Any] = {}
        self.trusted = _marked_safe()
        self.makers: dict[str, Callable[..., Any]] = {
            "torch.Size": tuple_of_sizes,
            "torch._utils._rebuild_tensor": self.tensor,
            "torch._utils._rebuild_tensor_v2": self.tensor,
            "torch._utils._rebuild_tensor_v3": self.tensor_of_type,
            "torch.nn.parameter.Parameter": lambda data=None, *_: data,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
            "torch._utils._rebuild_device_tensor_from_cpu_tensor": lambda data, *_: data,
            "torch._tensor._rebuild_from_type": self.tensor_of_class,
            "torch._tensor._rebuild_from_type_v2": self.tensor_of_class,
            **{f"torch._utils.{name}": _odd(*about) for name, about in ODD.items()},
        }

    def find(self, name: str) -> Any:
        """
        What stands for a global.

        Raises:
            CheckpointRefused: if it is not known to be harmless.
        """
        if name not in self.names:
            self.names[name] = self._find(name)
        return self.names[name]

    def _find(self, name: str) -> Any:
        if name in self.makers:
            return Known(name, self.makers[name])
        storage = STORAGE.fullmatch(name)
        if storage and storage[1] in STORAGES:
            return STORAGES[storage[1]]
        if name in DTYPES:
            return DTYPES[name]
        harmless = known_stand_in(name)
        if harmless is not None:
            return harmless
        if PARTS.fullmatch(name) or name in PLAIN_CLASSES or name in self.trusted:
            return named_stand_in(name)
        shown = quoted(name.removeprefix("builtins."))
        raise CheckpointRefused(
            f"{self.source} names {shown}, which is more than weights and may run code: not loaded. {RESAVE}."
        )

    def load(self, saved: Any) -> Any:
        """
        The storage that a persistent id stands for.

        Raises:
            ValueError: if it is no such id, or claims more than the file has.
        """
        key, dtype, size, view = parts_of_id(saved)
        name = key, dtype, view
        if name not in self.storages:
            memory = self.memory(key, dtype, size)
            self.claims.present += size
            if view is not None:
                memory = memory[view[0] * dtype.itemsize : (view[0] + view[1]) * dtype.itemsize]
            self.storages[name] = Stored(memory, dtype)
        stored = self.storages[name]
        if view is None and stored.memory.nbytes() < size:
            raise ValueError(f"storage {quoted(key)} has {stored.memory.nbytes():,} bytes, not {size:,}")
        return stored

    def tensor(self, stored: Any, offset: Any, size: Any, stride: Any, *more: Any) -> Any:
        """``torch._utils._rebuild_tensor`` and ``_rebuild_tensor_v2``."""
        return self.make(stored, offset, size, stride, stored.dtype, more[2] if len(more) > 2 else None)

    def tensor_of_type(self, stored: Any, offset: Any, size: Any, stride: Any, *more: Any) -> Any:
        """``torch._utils._rebuild_tensor_v3``, for types that have no class of storages."""
        return self.make(stored, offset, size, stride, more[2], more[3] if len(more) > 3 else None)

    def make(self, stored: Stored, offset: Any, size: Any, stride: Any, dtype: torch.dtype, bits: Any) -> Any:
        """
        A tensor on the memory of a storage.

        Args:
            stored: the storage.
            offset: of its first value there.
            size: its shape.
            stride: distance of neighbors along each dimension, in values.
            dtype: its type.
            bits: whether it is to be conjugated or negated.

        Raises:
            ValueError: if it reaches beyond the storage.
        """
        if bits:
            return Odd("a conjugated or negated view", "save value.resolve_conj().resolve_neg()")
        shape, strides = tuple_of_sizes(size), tuple_of_sizes(stride)
        if len(shape) != len(strides) or not _is_size(offset):
            raise ValueError(f"a tensor has shape {list(shape)[:8]} and strides {list(strides)[:8]}")
        count = extent(shape)
        last = offset
        for length, step in zip(shape, strides):
            last += (length - 1) * step
        if count and (last + 1) * dtype.itemsize > stored.memory.nbytes():
            raise ValueError(
                f"a tensor of shape {list(shape)[:8]} reaches to {(last + 1) * dtype.itemsize:,} of "
                f"{stored.memory.nbytes():,} bytes"
            )
        self.claims.add(count * dtype.itemsize)
        if not count:
            return torch.empty_strided(shape, strides, dtype=dtype)
        if stored.memory.data_ptr() % dtype.itemsize:
            return unread(
                shape, dtype, lambda: torch.empty(0, dtype=dtype).set_(stored.aligned, offset, shape, strides)
            )
        return torch.empty(0, dtype=dtype).set_(stored.memory, offset, shape, strides)

    def tensor_of_class(self, function: Any, kind: Any, arguments: Any, state: Any = None) -> Any:
        """``torch._tensor._rebuild_from_type_v2``: a tensor of a class of its own, or with attributes."""
        if not isinstance(function, Known) or not isinstance(kind, Known) or not isinstance(arguments, tuple):
            raise ValueError("a tensor is made from what makes none")
        if kind.name in PLAIN_CLASSES:
            return function.make(*arguments)
        name = kind.name.rpartition(".")[2]
        return Odd(f"a {name}", SHARDED if name == "DTensor" else "save it as a plain torch.Tensor")


ODD = {
    "_rebuild_sparse_tensor": ("a sparse tensor", "save value.to_dense()"),
    "_rebuild_qtensor": ("a quantized tensor", "save value.dequantize()"),
    "_rebuild_nested_tensor": ("a nested tensor", "save its parts one by one, value.unbind()"),
    "_rebuild_meta_tensor_no_storage": (
        "a tensor on the meta device",
        "save the network when it has its weights",
        "has no values, because it lay on the meta device",
    ),
    "_rebuild_wrapper_subclass": ("a tensor of a class of its own", "save plain tensors"),
    "_rebuild_device_tensor_from_numpy": ("a tensor of another device in numpy's form", "save value.cpu()"),
    "_rebuild_xla_tensor": ("a tensor of another device in numpy's form", "save value.cpu()"),
}


def _odd(*about: str) -> Callable[..., Odd]:
    return lambda *_: Odd(*about)


def parts_of_id(saved: Any) -> tuple[str, torch.dtype, int, tuple[int, int] | None]:
    """
    What a persistent id tells of a storage: its key, type, size in bytes, and which of its values are meant, if not all
    (so files from before torch 0.4 share memory).

    Raises:
        ValueError: if it is no such id.
    """
    if not isinstance(saved, tuple) or len(saved) < 5 or saved[0] != "storage":
        raise ValueError("it refers to what is no storage")
    dtype, key, count = saved[1], saved[2], saved[4]
    view = saved[5][1:] if len(saved) > 5 and isinstance(saved[5], tuple) else None
    if not isinstance(dtype, torch.dtype) or not isinstance(key, (str, int)) or not _is_size(count):
        raise ValueError("it refers to a storage without type, name or size")
    if view is not None and not (len(view) == 2 and all(map(_is_size, view)) and sum(view) <= count):
        raise ValueError("it refers to a part of a storage that is none")
    return str(key), dtype, count * dtype.itemsize, view


def extent(shape: Sequence[int]) -> int:
    """
    The number of values of a shape, which may come from a file.

    Raises:
        ValueError: if no tensor has so many, or a dimension of zero hides that none could.
    """
    count = math.prod(shape)  # of 64 dimensions at most
    if not 0 < count < LARGEST and math.prod(max(length, 1) for length in shape) >= LARGEST:
        raise ValueError(f"a tensor claims the shape {list(shape)[:8]}, which is more than any machine has")
    return count


def tuple_of_sizes(values: Any = ()) -> tuple[int, ...]:
    """
    A shape that comes from a file.

    Raises:
        ValueError: if it is none, or has more dimensions than torch takes.
    """
    if not isinstance(values, (tuple, list)) or not all(map(_is_size, values[: untrusted.MAX_DIMS])):
        raise ValueError("a tensor has a shape that is none")
    if len(values) > untrusted.MAX_DIMS:
        raise ValueError(f"a tensor has {len(values):,} dimensions, more than {untrusted.MAX_DIMS}")
    return tuple(values)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < LARGEST


def _marked_safe() -> set[str]:
    """Names of the classes that the user, or a package, has told torch to trust."""
    marked = torch.serialization.get_safe_globals()
    return {item[1] if isinstance(item, tuple) else f"{item.__module__}.{item.__qualname__}" for item in marked}
