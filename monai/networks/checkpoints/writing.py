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


"""Writes checkpoint files: tensor by tensor, and whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from monai.networks.state_dict.torch_private import all_metadata

from .prefixes import with_versions
from .progress import bar
from .safetensors import FACTS, write_safetensors

__all__ = ["SUFFIXES", "check_target", "replacing", "standalone", "write_checkpoint"]

SAFETENSORS = ".safetensors"
SUFFIXES = (SAFETENSORS, ".pt", ".pth", ".ckpt")


def check_target(path: Path, overwrite: bool = False) -> None:
    """
    Say beforehand why a file cannot be written.

    Args:
        path: the file to write.
        overwrite: whether it may exist.

    Raises:
        ValueError: if its name has another suffix than those of :data:`SUFFIXES`.
        OSError: as :func:`check_place`.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"'{path}' has no suffix that tells a format: name it {', '.join('*' + s for s in SUFFIXES)}.")
    check_place(path, overwrite)


def check_place(path: Path, overwrite: bool = False) -> None:
    """
    Say beforehand why a file of any format cannot be written.

    Raises:
        OSError: if it exists and ``overwrite`` is not set, or its folder is missing or cannot be written to.
    """
    if path.is_dir():
        raise IsADirectoryError(f"'{path}' is a folder: name a file in it.")
    if path.exists() and not path.is_file():
        raise OSError(f"'{path}' is no ordinary file, which another one could take the place of.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"'{path}' exists: name another file, or pass --force to replace it.")
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder '{folder}': make it first.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"the folder '{folder}' cannot be written to: name a file elsewhere.")


def write_checkpoint(
    path: Path,
    state_dict: Mapping[str, Any],
    scale_factor: float | None = None,
    name: str = "unet_state_dict",
    overwrite: bool = False,
    progress: bool | None = None,
) -> None:
    """
    Write a state dict as a torch or safetensors file, by its suffix; the file is there whole, or not at all.

    Tensors are written one after the other, memory-mapped ones without being read into memory first.

    Args:
        path: the file, see :func:`check_target`.
        state_dict: tensors by key. What torch keeps beside them, as the versions of modules, is written, too.
        scale_factor: the latent scale factor that belongs to a diffusion network. A torch file then holds
            ``{name: ..., "scale_factor": ...}``, as MAISI writes it; a safetensors file has it in its metadata.
        name: of the state dict beside a scale factor.
        overwrite: whether the file may exist.
        progress: see :func:`monai.networks.checkpoints.progress.bar`.

    Raises:
        ValueError, OSError: as :func:`check_target`, or if the disk is full.
        TypeError: if a value has no form in the format.
    """
    check_target(path, overwrite)
    facts = dict(all_metadata(state_dict))
    size = sum(value.numel() * value.element_size() for value in state_dict.values() if torch.is_tensor(value))
    with replacing(path, overwrite) as partial, bar(f"writing {path.name}", size, progress) as advance:
        if path.suffix.lower() == SAFETENSORS:
            metadata = {"format": "pt"}
            if scale_factor is not None:
                metadata["scale_factor"] = repr(scale_factor)
            if facts:
                metadata[FACTS] = json.dumps(facts)
            write_safetensors(partial, state_dict, metadata, advance)
            return
        content = with_versions({key: standalone(value) for key, value in state_dict.items()}, facts)
        if scale_factor is not None:
            content = {name: content, "scale_factor": torch.tensor(scale_factor)}
        _write_torch(partial, content, advance)


@contextmanager
def replacing(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """
    Write a file that takes its place when it is whole, or never.

    Args:
        path: the file.
        overwrite: whether it may exist, when the block ends.

    Yields:
        a name in the same folder to write to. When the block ends, that file takes the place of ``path``; if the block
        raises, or is interrupted, it is removed and ``path`` is as it was.

    Raises:
        FileExistsError: if another process has written the file meanwhile, unless ``overwrite`` is set.
        OSError: as the block does, with ``path`` as its file.
    """
    path = Path(os.path.realpath(path))  # a link stays one: what it leads to is replaced
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        _take_place(partial, path, overwrite)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError) and error.errno:
            raise OSError(error.errno, f"{os.strerror(error.errno)}; nothing of it was kept", str(path)) from error
        raise
    _sync_folder(path.parent)


def _take_place(partial: Path, path: Path, overwrite: bool) -> None:
    """Give a file its name, in one step: of two processes that do so at once, one finds that the name is taken."""
    if overwrite:
        os.replace(partial, path)
        return
    try:
        _link(partial, path)
    except FileExistsError:
        raise FileExistsError(
            f"'{path}' exists: another process wrote it meanwhile, and nothing was kept of this one. Name another "
            "file, or pass --force to replace it."
        ) from None


def _link(partial: Path, path: Path) -> None:
    try:
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links: an empty file claims the name, for the blink of an eye
        with open(path, "xb"):
            pass
        os.replace(partial, path)
    else:
        partial.unlink()


class _Stream:
    """
    A file for ``torch.save``, which tells of an error within ``write`` only that there was one.

    Args:
        file: where the bytes go.
        advance: called with the number of bytes.
    """

    def __init__(self, file: BinaryIO, advance: Callable[[int], None]) -> None:
        self.file, self.advance = file, advance
        self.error: BaseException | None = None

    def write(self, data: Any) -> int:
        try:
            self.file.write(data)
            self.advance(len(data))
        except BaseException as error:
            self.error = error
            raise
        return len(data)

    def flush(self) -> None:
        self.file.flush()


def _write_torch(path: Path, content: dict[str, Any], advance: Callable[[int], None]) -> None:
    with open(path, "xb") as file:
        stream = _Stream(file, advance)
        try:
            torch.save(content, stream)  # type: ignore[arg-type]
        except BaseException as error:
            raise stream.error or error from None


def _sync_folder(folder: Path) -> None:
    """Make a new name last through a power failure, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def standalone(value: Any) -> Any:
    """
    A tensor whose storage holds nothing else, so that saving it does not save what it was cut from.

    Memory is shared with ``value`` where its numbers lie in one piece, memory-mapped ones too. Anything but a tensor
    comes back as it is.
    """
    if not torch.is_tensor(value):
        return value
    value = value.detach().contiguous()
    size, storage = value.numel() * value.element_size(), value.untyped_storage()
    if storage.nbytes() == size:
        return value
    start = value.storage_offset() * value.element_size()
    return torch.empty(0, dtype=value.dtype).set_(storage[start : start + size]).view(value.shape)
