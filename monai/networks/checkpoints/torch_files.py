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

"""Files of torch.save, read with weights_only=True: what would run code is refused."""

from __future__ import annotations

import _compat_pickle
import io
import mmap
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any

import torch

from . import limits
from .stand_ins import stand_in

__all__ = ["LEGACY_MAGIC", "RESAVE", "Refused", "ZIP_MAGIC", "inspect_zip", "load_tensors", "read_legacy", "read_zip"]

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)  # the number with which torch.save began before 1.6
RESAVE = (
    "Where you trust the file, load it with the package that wrote it, and save the state dict alone: "
    "torch.save(net.state_dict(), path)"
)
LOCAL_HEADER = struct.Struct("<26x2H")  # of a zip entry: the lengths of its name and of its extra field


class Refused(ValueError):
    """What was found wrong with a file."""


def read_zip(path: Path) -> Any:
    """
    Read a file that torch.save has written since 1.6. Its tensors are memory-mapped.

    Raises:
        ValueError: if it is damaged, no file of torch.save, has code in it or claims absurd sizes.
    """
    with path.open("rb") as stream:
        names, compressed = inspect_zip(str(path), stream)
    # A mapped compressed entry would be taken for the tensor itself. By a path of that name torch knows safetensors.
    if compressed or path.name.endswith(".safetensors"):
        with path.open("rb") as stream:
            return load_tensors(str(path), stream, names)
    return load_tensors(str(path), path, names, mapped=True)


def inspect_zip(source: str, stream: IO[bytes]) -> tuple[set[str], bool]:
    """
    The globals that the pickle in a zip file of torch.save names, and whether any of its entries is compressed.

    Raises:
        ValueError: as :func:`read_zip` does.
    """
    size = stream.seek(0, io.SEEK_END)
    try:
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
            described = _description(source, entries)
            compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            if compressed:
                _check_inflation(source, entries, size)
            with archive.open(described) if described.compress_type else _stored(stream, described) as file:
                return check_pickle(source, file), compressed
    except Refused:
        raise
    except Exception as error:  # a damaged archive fails in any way
        raise Refused(
            f"{source} is damaged ({error}): the table of contents of a torch file lies at its end, so that a download "
            f"or copy that broke off loses it. {size:,} bytes are there; fetch it again."
        ) from None
    finally:
        stream.seek(0)


def read_legacy(path: Path) -> Any:
    """
    Read a file that torch.save wrote before 1.6. Its tensors are read into memory: the format does not allow to map
    them.

    Raises:
        ValueError: if it is damaged, has code in it or claims absurd sizes.
    """
    with path.open("rb") as file:
        names: set[str] = set()
        for _ in range(5):  # a magic number, a version, facts about the machine, the object, the keys of its storages
            names |= check_pickle(str(path), file)
        file.seek(0)
        return load_tensors(str(path), file, names)


def check_pickle(source: str, file: IO[bytes]) -> set[str]:
    """
    The globals that a pickle names, in which nothing is run; ``file`` is then behind the pickle.

    Raises:
        ValueError: if it is no pickle, or larger than the limits.
    """
    start, names, strings = file.tell(), set(), 0
    try:
        for operation, argument, position in pickletools.genops(_Bounded(file)):  # type: ignore[arg-type]
            strings += "UNICODE" in operation.name or "STRING" in operation.name
            if operation.name == "GLOBAL":
                names.add(_present_name(*str(argument).split(" ", 1)))
            if strings > limits.MAX_KEYS:
                raise Refused(f"{source} holds more than {limits.MAX_KEYS:,} names, which no network has. {RESAVE}.")
            if (position or 0) - start > limits.MAX_DESCRIPTION:
                raise Refused(
                    f"{source} describes its tensors in more than {limits.MAX_DESCRIPTION:,} bytes. {RESAVE}."
                )
    except Refused:
        raise
    except ValueError as error:
        raise Refused(f"{source} is damaged ({error}): fetch it again.") from None
    return names


def load_tensors(source: str, file: Path | IO[bytes], names: set[str], mapped: bool = False) -> Any:
    """
    ``torch.load`` with ``weights_only=True``, and stand-ins for the harmless ones of the globals ``names``.

    Raises:
        ValueError: if torch refuses or fails.
    """
    allowed: list[Any] = [(stand_in(name), name) for name in sorted(names - _marked_safe()) if stand_in(name)]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(allowed), _private_mapping():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise Refused(_refusal(source, str(error))) from None
    except Exception as error:  # a damaged pickle fails in any way
        raise Refused(
            f"{source} is damaged, or larger than the memory: torch cannot load it ({type(error).__name__}: {error})."
        ) from error


class _Bounded:
    """
    A file from which no length that a pickle claims reads more than the limit.

    Args:
        file: the file.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.tell = file, file.tell

    def read(self, size: int) -> bytes:
        if size > limits.MAX_DESCRIPTION:
            raise ValueError(f"it claims a piece of {size:,} bytes")
        return self.file.read(size)

    def readline(self) -> bytes:
        return self.file.readline(limits.MAX_DESCRIPTION)


def _description(source: str, entries: list[zipfile.ZipInfo]) -> zipfile.ZipInfo:
    """The entry with the pickle."""
    by_name = {entry.filename.partition("/")[2]: entry for entry in entries}
    if "constants.pkl" in by_name:
        raise Refused(
            f"{source} is a TorchScript archive, which holds code. Where you trust the file, save its weights alone: "
            "torch.save(torch.jit.load(path).state_dict(), new_path)."
        )
    if "data.pkl" not in by_name:
        names = ", ".join(repr(entry.filename) for entry in entries[:5]) or "nothing"
        raise Refused(
            f"{source} is a zip archive but no file of torch.save. It holds {names}: unpack it, if it is one."
        )
    described = by_name["data.pkl"]
    if described.file_size > limits.MAX_DESCRIPTION or len(entries) > limits.MAX_KEYS:
        raise Refused(
            f"{source} describes its tensors in {described.file_size:,} bytes and {len(entries):,} entries; at most "
            f"{limits.MAX_DESCRIPTION:,} and {limits.MAX_KEYS:,} are read. {RESAVE}."
        )
    return described


def _check_inflation(source: str, entries: list[zipfile.ZipInfo], size: int) -> None:
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > limits.MAX_INFLATION * size:
        raise Refused(
            f"{source} would unpack from {size:,} to {unpacked:,} bytes, more than {limits.MAX_INFLATION}-fold, as a "
            f"zip bomb does: torch.save compresses nothing. {RESAVE}."
        )


def _stored(stream: IO[bytes], entry: zipfile.ZipInfo) -> IO[bytes]:
    """An uncompressed entry, whose checksum torch may have left out."""
    stream.seek(entry.header_offset)
    name, extra = LOCAL_HEADER.unpack(stream.read(LOCAL_HEADER.size))
    stream.seek(name + extra, io.SEEK_CUR)
    return io.BytesIO(stream.read(entry.file_size))


def _present_name(module: str, name: str) -> str:
    """The name of a global in Python 3; torch.save writes those of Python 2."""
    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"


def _marked_safe() -> set[str]:
    """Names of the classes that the user, or a package, has told torch to trust."""
    marked = torch.serialization.get_safe_globals()
    return {item[1] if isinstance(item, tuple) else f"{item.__module__}.{item.__qualname__}" for item in marked}


def _private_mapping() -> AbstractContextManager:
    """Writing to a mapped tensor is not to change the file, whatever the process has chosen for its own."""
    flags = getattr(mmap, "MAP_PRIVATE", None)  # Windows has none, and always maps privately
    return nullcontext() if flags is None else torch.serialization.set_default_mmap_options(flags)


def _refusal(source: str, message: str) -> str:
    """Why torch does not load a pickle, in a line."""
    refused = re.search(r"GLOBAL (\S+)", message)
    if refused:
        module, _, name = refused[1].rpartition(".")
        name = _present_name(module or "builtins", name).removeprefix("builtins.")
        return f"{source} names '{name}', which is more than weights and may run code: not loaded. {RESAVE}."
    if "Unsupported operand" in message:
        return f"{source} was saved with another pickle_protocol than torch.save's own, which alone is read. {RESAVE}."
    reason = message.split("WeightsUnpickler error:")[-1].partition("Check the documentation")[0].strip()
    reason = " ".join(reason.split())
    return f"{source} is not loaded: it holds more than weights, or is damaged ({reason}). {RESAVE}."
