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

"""The slices of NIfTI files, and which of them no network is trained on."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
import torch.nn.functional as F
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import OrientationError

from demo.volume import scan_path

__all__ = ["FEWEST", "SIDE", "Slices", "hold_out", "load_slices", "read_volume"]

SIDE = 64
"""Rows and columns of a slice, as the networks see it."""
FEWEST = 12
"""Slices one behind the other, of which some can be held out."""
BRIGHTEST = 99.8
"""Percentile of the intensities that becomes 1."""
FAINT = 0.05
"""Mean intensity along the slices up to which a pixel is background."""
MARGIN = 1.1
"""How much larger than the foreground the square is that is cut out of a slice."""
ENDINGS = (".nii", ".nii.gz")
UNREADABLE = (ImageFileError, OrientationError, EOFError, OSError, TypeError, ValueError, zlib.error)
"""What nibabel and NumPy raise over damaged files, and over voxels that are no numbers."""


@dataclass(frozen=True)
class Slices:
    """
    Slices in [0, 1].

    Args:
        training: slices to train on, (N, 1, SIDE, SIDE).
        held_out: slices to judge by, (M, 1, SIDE, SIDE).
        source: where they come from, in words.
    """

    training: torch.Tensor
    held_out: torch.Tensor
    source: str


def load_slices(data: Path | None = None) -> Slices:
    """
    Read slices along the third axis, which is axial once the axes are turned to right, anterior and superior.

    Further axes, such as time, give more images of the same slice, all on one side of the division. Files of a single
    slice are taken for neighbors in the order of their names.

    Args:
        data: a NIfTI file, or a folder with some, at any depth; by default the volume that nibabel ships.

    Raises:
        ValueError: if there is no such file, a file cannot be read or is constant, or has too few slices.
    """
    files = nifti_files(scan_path() if data is None else data)
    alone: list[torch.Tensor] = []
    stacks: dict[str, list[torch.Tensor]] = {}
    for path in files:
        slices = list(read_volume(path))
        if len(slices) == 1:
            alone += slices
        else:
            stacks[str(path)] = slices
    if alone:
        stacks[f"{data}, in its files of a single slice,"] = alone
    training, held_out = [], []
    for name, stack in stacks.items():
        if len(stack) < FEWEST:
            raise ValueError(
                f"{name} has {len(stack)} slice{'s' * (len(stack) > 1)}, too few to hold some out: at least {FEWEST} "
                "in a row are needed."
            )
        learned, judged = hold_out(len(stack))
        training += [stack[i] for i in learned]
        held_out += [stack[i] for i in judged]
    source = files[0].name if len(files) == 1 else f"{len(files)} files in {data}"
    return Slices(torch.cat(training), torch.cat(held_out), source)


def hold_out(count: int) -> tuple[list[int], list[int]]:
    """
    Divide slices that lie one behind the other.

    Two blocks of neighbors are held out, about an eighth of the slices each. Their own neighbors, which look much like
    them, are used for nothing: what is judged is no copy of what was learned.

    Args:
        count: number of slices.

    Returns:
        the positions to train on and the positions to judge by, both in order.
    """
    length, gap = max(1, count // 8), max(1, count // 24)
    starts = [part * count // 3 - length // 2 for part in (1, 2)]
    judged = [position for start in starts for position in range(start, start + length)]
    near = {position + step for position in judged for step in range(-gap, gap + 1)}
    return [position for position in range(count) if position not in near], judged


def nifti_files(data: Path) -> list[Path]:
    """
    The file itself, or the NIfTI files of a folder in the order of their names.

    Raises:
        ValueError: if there is none.
    """
    if data.is_file():
        return [data]
    if not data.is_dir():
        raise ValueError(f"{data} is neither a file nor a folder: give a NIfTI file or a folder that holds some.")
    files = sorted(path for path in data.rglob("*") if path.is_file() and path.name.lower().endswith(ENDINGS))
    if not files:
        raise ValueError(f"{data} holds no NIfTI file: none that ends in {' or '.join(ENDINGS)}.")
    return files


def read_volume(path: Path) -> torch.Tensor:
    """
    Read a file, scale its intensities to [0, 1] and cut its slices to squares around what they show.

    Args:
        path: a NIfTI file.

    Returns:
        the images of each slice, (slices, images, 1, SIDE, SIDE).

    Raises:
        ValueError: if the file is not NIfTI or damaged, has fewer than two axes, or holds no image.
    """
    data = _voxels(path)
    low, high = float(data.min()), float(np.percentile(data, BRIGHTEST))
    high = high if high > low else float(data.max())
    if not np.isfinite(high - low):
        raise ValueError(f"{path} holds voxels that are not finite: replace them first.")
    if high == low:
        raise ValueError(f"{path} is constant, every voxel is {low:g}: there is nothing to learn from.")
    volume = torch.from_numpy(((data - low) / (high - low)).clip(0, 1)).permute(2, 3, 0, 1)
    square = _around_foreground(volume)
    small = F.interpolate(square, (SIDE, SIDE), mode="bilinear", antialias=True)
    return small.clamp(0, 1).unsqueeze(2)


def _voxels(path: Path) -> np.ndarray:
    """The voxels as (right, anterior, slices, images) in float32."""
    try:
        image: Any = nibabel.load(path)
        shape = getattr(image, "shape", ())
        if not isinstance(image, nibabel.Nifti1Image):
            raise ImageFileError(f"it is a {type(image).__name__}")
        if len(shape) > 2:
            image = nibabel.as_closest_canonical(image)
        data = np.asarray(image.dataobj).astype(np.float32)
    except UNREADABLE as error:
        raise ValueError(f"{path} is not a readable NIfTI file: {error}") from error
    if len(shape) < 2 or min(shape[:2]) < 2 or data.size == 0:
        raise ValueError(f"{path} has shape {tuple(shape)}: slices need two axes, with at least two pixels along each.")
    return data.reshape(*data.shape[:2], data.shape[2] if data.ndim > 2 else 1, -1)


def _around_foreground(volume: torch.Tensor) -> torch.Tensor:
    """Cut (or enlarge, by background) the last two axes to a square around what is not background."""
    shown = volume.mean((0, 1)) > FAINT
    shown = shown if shown.any() else torch.ones_like(shown)
    bounds = [along.nonzero()[[0, -1], 0].tolist() for along in (shown.any(0), shown.any(1))]  # last axis first
    side = round(MARGIN * max(last + 1 - first for first, last in bounds))
    padding = []
    for (first, last), size in zip(bounds, (volume.shape[3], volume.shape[2])):
        start = (first + last + 1 - side) // 2
        padding += [-start, start + side - size]
    return F.pad(volume, padding)
