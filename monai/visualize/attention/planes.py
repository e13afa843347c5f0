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


"""The planes through a voxel of an image, turned as anatomy is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

__all__ = ["Plane", "affine_of", "axis_codes", "image_planes", "to_world"]

NAMES = ("sagittal", "coronal", "axial")
"""Of a plane, by the world axis that it is perpendicular to."""
CODES = (("L", "R"), ("P", "A"), ("I", "S"))
"""Of a world axis, where its coordinates are low and where they are high."""
INDEX = "ijk"


@dataclass(frozen=True)
class Plane:
    """
    A plane of an image as it is drawn.

    Args:
        name: "axial", "coronal" or "sagittal"; "" where nothing is known about the image's axes.
        across: axis of the image that is drawn from left to right.
        up: axis of the image that is drawn from bottom to top.
        flipped: whether ``across`` and ``up`` are drawn the other way.
        codes: letters for the ends of the plane: left, right, bottom, top; empty where nothing is known.
        spacing: width and height of a voxel.
    """

    name: str
    across: int
    up: int
    flipped: tuple[bool, bool]
    codes: tuple[str, ...]
    spacing: tuple[float, float]

    def cut(self, image: np.ndarray, voxel: Sequence[int]) -> np.ndarray:
        """
        The pixels of the plane through a voxel.

        Args:
            image: ``(*size)``.
            voxel: a voxel of the plane.

        Returns:
            ``(rows, columns)``, the row at the bottom first: matplotlib's ``origin="lower"``.
        """
        kept = {self.across, self.up}
        pixels = image[tuple(slice(None) if axis in kept else voxel[axis] for axis in range(image.ndim))]
        pixels = pixels if self.up < self.across else pixels.T
        return pixels[:: -1 if self.flipped[1] else 1, :: -1 if self.flipped[0] else 1]

    def point(self, voxel: Sequence[int], size: Sequence[int]) -> tuple[int, int]:
        """Column and row of a voxel in :meth:`cut` of an image of ``size``."""
        column, row = (
            size[axis] - 1 - voxel[axis] if flipped else voxel[axis]
            for axis, flipped in zip((self.across, self.up), self.flipped)
        )
        return column, row

    def extent(self, size: Sequence[int]) -> tuple[float, float]:
        """Width and height of the plane of an image of ``size``, in the units of ``spacing``."""
        return size[self.across] * self.spacing[0], size[self.up] * self.spacing[1]

    def title(self, voxel: Sequence[int]) -> str:
        """Name of the plane through a voxel, with the index that it lies at."""
        fixed = [f"{INDEX[axis]} = {voxel[axis]}" for axis in range(len(voxel)) if axis not in (self.across, self.up)]
        return ", ".join([self.name] * bool(self.name) + fixed)


def image_planes(dims: int, affine: np.ndarray | None = None) -> list[Plane]:
    """
    The plane of a 2-D image, or the three orthogonal planes of a 3-D one.

    With an affine, planes are the axial, coronal and sagittal ones that lie closest, drawn with the patient's right on
    the right, anterior and superior at the top, and anterior on the right of the sagittal plane. Without one, lower
    axes run downwards as matrices are printed.

    Args:
        dims: axes of the image.
        affine: from voxels to world coordinates, to which R, A and S are positive, see :func:`affine_of`.

    Raises:
        ValueError: for images of other than 2 or 3 axes.
    """
    if dims not in (2, 3):
        raise ValueError(f"images of 2 or 3 axes are drawn, got {dims}: take a plane of it, or save its array.")
    if affine is None:
        pairs = [(1, 0)] if dims == 2 else [(1, 0), (2, 0), (2, 1)]
        return [Plane("", across, up, (False, True), (), (1.0, 1.0)) for across, up in pairs]
    world, signs = _directions(affine, dims)
    spacing = _spacing(affine, dims)
    order = sorted(range(dims), key=lambda axis: world[axis])
    pairs = [(order[0], order[1])] if dims == 2 else [(order[0], order[1]), (order[0], order[2]), (order[1], order[2])]
    return [
        Plane(
            name=NAMES[3 - world[across] - world[up]],
            across=across,
            up=up,
            flipped=(signs[across] < 0, signs[up] < 0),
            codes=(*CODES[world[across]], *CODES[world[up]]),
            spacing=(spacing[across], spacing[up]),
        )
        for across, up in pairs
    ]


def axis_codes(affine: np.ndarray, dims: int = 3) -> tuple[str, ...]:
    """The letter that each axis of an image runs towards, as ``("L", "A", "S")``."""
    world, signs = _directions(affine, dims)
    return tuple(CODES[axis][sign > 0] for axis, sign in zip(world, signs))


def affine_of(image: object) -> np.ndarray | None:
    """The affine of an image that has one, as a MetaTensor does, else None."""
    affine = getattr(image, "affine", None)
    return None if affine is None else np.asarray(affine, dtype=float)


def to_world(affine: np.ndarray, voxel: Sequence[float]) -> list[float]:
    """World coordinates of a voxel of an image of any number of axes, in mm for a scan."""
    dims = min(len(voxel), affine.shape[1] - 1)
    return (affine[:-1, :dims] @ np.asarray(voxel[:dims], dtype=float) + affine[:-1, -1]).tolist()


def _directions(affine: np.ndarray, dims: int) -> tuple[tuple[int, ...], list[float]]:
    """The world axis that each axis of the image is closest to, no two the same, and whether it runs against it."""
    columns = affine[:-1, :dims] / np.asarray(_spacing(affine, dims))
    choices = permutations(range(len(columns)), dims)
    best = max(choices, key=lambda rows: sum(abs(columns[row, axis]) for axis, row in enumerate(rows)))
    return best, [1.0 if columns[row, axis] >= 0 else -1.0 for axis, row in enumerate(best)]


def _spacing(affine: np.ndarray, dims: int) -> list[float]:
    """Distance of neighboring voxels along each axis of the image."""
    return [float(length) or 1.0 for length in np.linalg.norm(affine[:-1, :dims], axis=0)]
