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
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from monai.networks.state_dict.torch_private import all_metadata
from monai.utils.whole_files import check_place, replacing

from .safetensors import FACTS, write_safetensors
from .untrusted import shortened
from .unwrap import with_versions

__all__ = [
    "SUFFIXES",
    "as_scale_factor",
    "check_target",
    "standalone",
    "write_checkpoint",
]

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


def as_scale_factor(value: Any) -> float | None:
    """
    The number of a latent scale factor, as readers take it.

    Args:
        value: a number of Python or numpy, a tensor or an array with one element, or None for no scale factor.

    Raises:
        TypeError: if it is anything else.
        ValueError: if there is another number of elements than one, or the number is not finite and positive.
    """
    if value is None:
        return None
    problem = f"scale_factor has to be one finite positive number, got {shortened(repr(value))}"
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        if math.prod(value.shape) != 1 or getattr(value, "is_meta", False):
            raise ValueError(f"{problem}: pass one value.")
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{problem}: pass a float.")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not 0 < number < math.inf:
        raise ValueError(f"{problem}: 1 / std of the latents is one.")
    return number


def write_checkpoint(
    path: Path,
    state_dict: Mapping[str, Any],
    scale_factor: Any = None,
    name: str = "unet_state_dict",
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> None:
    """
    Write a state dict as a torch or safetensors file, by its suffix; the file is there whole, or not at all.

    Tensors are written one after the other, memory-mapped ones without being read into memory first.

    Args:
        path: the file, see :func:`check_target`.
        state_dict: tensors by key. What torch keeps beside them, as the versions of modules, is written, too.
        scale_factor: the latent scale factor that belongs to a diffusion network, see :func:`as_scale_factor`. A torch
            file then holds ``{name: ..., "scale_factor": ...}``, as MAISI writes it; a safetensors file has it in its
            metadata.
        name: of the state dict beside a scale factor.
        overwrite: whether the file may exist.
        progress: called with the number of bytes after each piece that was written.

    Raises:
        ValueError, OSError: as :func:`check_target` and :func:`as_scale_factor`, or if the disk is full.
        TypeError: if a value has no form in the format, or the scale factor is no number.
    """
    scale_factor = as_scale_factor(scale_factor)
    check_target(path, overwrite)
    facts = dict(all_metadata(state_dict))
    advance = progress or _unseen
    with replacing(path, overwrite) as partial:
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


def _unseen(done: int) -> None:
    """Nobody wants to know how many bytes are done."""


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
