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


"""A scan as it goes into a network, with the way back to its voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai.data.meta_tensor import MetaTensor
from monai.transforms import (
    LoadImage,
    Orientation,
    Resize,
    ResizeWithPadOrCrop,
    ScaleIntensityRangePercentiles,
    Spacing,
)
from monai.visualize.attention.on_image import axis_codes, to_world

__all__ = ["FITS", "Preparation", "Scan", "read_scan"]

FITS = ("resize", "crop")


@dataclass(frozen=True)
class Preparation:
    """
    How a scan is made what a network takes, in this order.

    Args:
        volumes: which channels of the file; all where empty.
        orientation: letters that its axes shall run towards, as "RAS"; "" leaves them.
        spacing: of its voxels in mm; empty leaves them.
        plane: number of the plane of the last axis to take, for a 2-D network.
        size: that the network needs; None leaves it.
        fit: "resize" interpolates to the size, "crop" cuts or pads around the center.
        percentiles: of each channel's intensities, that become 0 and 1; others are clipped. None leaves them.
    """

    volumes: tuple[int, ...] = ()
    orientation: str = ""
    spacing: tuple[float, ...] = ()
    plane: int | None = None
    size: tuple[int, ...] | None = None
    fit: str = FITS[0]
    percentiles: tuple[float, float] | None = (0.0, 100.0)


@dataclass(frozen=True)
class Scan:
    """
    A prepared scan.

    Args:
        image: ``(C, *size)``, float32, with its affine.
        file_affine: from voxels of the file to world coordinates.
        file_size: number of voxels of the file along its axes.
        changes: what was done to the scan that nobody asked for.
    """

    image: MetaTensor
    file_affine: np.ndarray
    file_size: tuple[int, ...]
    changes: list[str] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, ...]:
        """Of the image, without channels."""
        return tuple(self.image.shape[1:])

    @property
    def affine(self) -> np.ndarray:
        """From voxels of the image to world coordinates."""
        return np.asarray(self.image.affine, dtype=float)

    @property
    def codes(self) -> str:
        """The letters that the image's axes run towards."""
        return "".join(axis_codes(self.affine, len(self.size)))

    def voxel(self, query: Sequence[int]) -> tuple[int, ...]:
        """
        The voxel of the image that a voxel of the file lies in.

        Raises:
            ValueError: if it lies outside of the file or of the image.
        """
        text = ",".join(map(str, query))
        if len(query) != len(self.file_size) or any(not 0 <= q < n for q, n in zip(query, self.file_size)):
            ranges = ", ".join(f"0..{length - 1}" for length in self.file_size)
            raise ValueError(f"--query {text} lies outside of the scan: its voxels are {ranges}.")
        found = np.rint(_carried(query, self.file_affine, self.affine) + 1e-6).astype(int)
        dims = len(self.size)
        inside = all(0 <= place < length for place, length in zip(found, self.size)) and not found[dims:3].any()
        if not inside:
            ranges = ", ".join(f"{first}..{last}" for first, last in self.covered())
            raise ValueError(
                f"--query {text} lies outside of what the network sees, the voxels {ranges} of the scan: choose one of "
                "these, or another --slice, --size or --fit."
            )
        return tuple(int(place) for place in found[:dims])

    def file_voxel(self, voxel: Sequence[int]) -> tuple[int, ...]:
        """The voxel of the file that the middle of a voxel of the image lies in, or the nearest one."""
        found = np.rint(_carried(voxel, self.affine, self.file_affine)).astype(int)
        return tuple(min(max(int(place), 0), length - 1) for place, length in zip(found, self.file_size))

    def covered(self) -> list[tuple[int, int]]:
        """The first and the last voxel of the file that the image covers, along each axis of the file."""
        corners = [0] * len(self.size), [length - 1 for length in self.size]
        return [(min(ends), max(ends)) for ends in zip(*map(self.file_voxel, corners))]


def _carried(voxel: Sequence[int], source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Where a voxel of an image lies in another one, as fractions of its voxels; both by their affines."""
    places: np.ndarray = np.linalg.solve(target, np.asarray([*to_world(source, voxel), 1.0]))[:-1]
    return places


def read_scan(path: Path, dims: int | None, channels: int | None, preparation: Preparation) -> Scan:
    """
    Read a scan and make it what a network takes.

    Args:
        path: a file of any format that :class:`monai.transforms.LoadImage` reads, NIfTI among them.
        dims: axes of the network's images, None if unknown.
        channels: of the network's images, None if unknown.
        preparation: what to do.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, or does not become what the network takes.
    """
    image: Any = _load(path)
    file_affine, file_size = np.asarray(image.affine, dtype=float), tuple(image.shape[1:])
    _check_dims(len(file_size), dims, preparation.plane)
    image = _volumes(image, channels, preparation.volumes)
    changes = []
    count = int((~image.isfinite()).sum())
    if count:
        changes.append(f"{count:,} voxels of {path.name} are not finite and were taken as 0.")
        image = torch.nan_to_num(image, nan=0.0, posinf=0.0, neginf=0.0)
    image = _turned(image, preparation)
    if preparation.plane is not None:
        image = _plane(image, preparation.plane)
    size = tuple(image.shape[1:])
    if preparation.size is not None and preparation.size != size:
        wanted = _expanded(preparation.size, len(size))
        if preparation.fit == "crop":
            image = ResizeWithPadOrCrop(wanted)(image)
        else:
            image = _resized(image, wanted)
        changes.append(f"the scan of {_text(size)} voxels was brought to {_text(wanted)} by --fit {preparation.fit}.")
    if preparation.percentiles is not None:
        low, high = preparation.percentiles
        image = ScaleIntensityRangePercentiles(low, high, 0.0, 1.0, clip=True, channel_wise=True)(image)
    return Scan(image, file_affine, file_size, changes)


def _load(path: Path) -> MetaTensor:
    if not path.is_file():
        raise FileNotFoundError(f"there is no image '{path}': name a file, as scan.nii.gz.")
    try:
        image: Any = LoadImage(image_only=True, ensure_channel_first=True, dtype=np.float32)(path)
    except Exception as error:  # each reader has errors of its own
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split()) or type(cause).__name__
        raise ValueError(f"{path} cannot be read as an image: {reason[:300]}") from error
    out: MetaTensor = image
    return out


def _check_dims(found: int, dims: int | None, plane: int | None) -> None:
    if dims is None or found == dims + (plane is not None):
        return
    if found == dims + 1:
        raise ValueError(f"the scan has {found} axes and the network takes {dims}: choose a plane with --slice N.")
    if plane is not None:
        raise ValueError(f"the scan has {found} axes and the network takes {dims}: leave out --slice.")
    raise ValueError(f"the scan has {found} axes and the network takes {dims}: it is for other images.")


def _volumes(image: MetaTensor, channels: int | None, volumes: tuple[int, ...]) -> MetaTensor:
    outside = [volume for volume in volumes if not 0 <= volume < len(image)]
    if outside:
        raise ValueError(f"--volume {outside[0]} does not exist: the scan has {len(image)}, counted from 0.")
    chosen: Any = image[list(volumes)] if volumes else image
    if channels is not None and len(chosen) != channels:
        raise ValueError(
            f"the network takes {channels} channels and the scan has {len(chosen)}: choose them with --volume, as "
            f"--volume {' '.join(map(str, range(channels)))}."
        )
    out: MetaTensor = chosen
    return out


def _turned(image: MetaTensor, preparation: Preparation) -> MetaTensor:
    dims = image.ndim - 1
    if preparation.orientation:
        try:
            image = Orientation(axcodes=preparation.orientation, labels=None)(image)  # type: ignore[assignment]
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"--orientation {preparation.orientation} should be {dims} of the letters R or L, A or P, S or I."
            ) from error
    if preparation.spacing:
        image = Spacing(pixdim=_expanded(preparation.spacing, dims), mode="bilinear")(image)  # type: ignore[assignment]
    return image


def _plane(image: MetaTensor, plane: int) -> MetaTensor:
    count = image.shape[-1]
    if not 0 <= plane < count:
        raise ValueError(f"--slice {plane} does not exist: the last axis has {count}, counted from 0.")
    affine = image.affine.clone()
    affine[:-1, -1] += plane * affine[:-1, -2]
    return MetaTensor(image.as_tensor()[..., plane], affine=affine)


def _resized(image: MetaTensor, size: tuple[int, ...]) -> MetaTensor:
    mode = ("linear", "bilinear", "trilinear")[len(size) - 1]
    return Resize(size, mode=mode, anti_aliasing=False)(image)  # type: ignore[return-value]


def _expanded(values: Sequence[Any], dims: int) -> tuple[Any, ...]:
    """A value for each axis, from one or from all."""
    if len(values) not in (1, dims):
        raise ValueError(f"{_text(values)} are {len(values)} numbers, the image has {dims} axes: give 1 or {dims}.")
    return tuple(values) * dims if len(values) == 1 else tuple(values)


def _text(values: Sequence[Any]) -> str:
    return " x ".join(map(str, values))
