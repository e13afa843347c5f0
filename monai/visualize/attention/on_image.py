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

"""From the tokens that a query attends to, to the voxels of the image, and to its planes as anatomy is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from monai.data.meta_tensor import MetaTensor
from monai.transforms.utils import scale_affine
from monai.visualize.visualizer import default_upsampler

from .maps import AttentionMap
from .places import Place, Queries

__all__ = [
    "Plane",
    "affine_of",
    "attention_of_query",
    "axis_codes",
    "captured_voxel",
    "chosen_heads",
    "covered_part",
    "image_planes",
    "maximum_voxel",
    "on_voxels",
    "to_world",
    "token_of_query",
    "upsample_attention",
]

NAMES = ("sagittal", "coronal", "axial")
"""Of a plane, by the world axis that it is perpendicular to."""
CODES = (("L", "R"), ("P", "A"), ("I", "S"))
"""Of a world axis, where its coordinates are low and where they are high."""
INDEX = "ijk"
MODES = ("linear", "nearest")
ALL_HEADS = "all"


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
        place: list[Any] = [slice(None) if axis in kept else voxel[axis] for axis in range(image.ndim)]
        pixels: np.ndarray = image[tuple(place)]
        pixels = pixels if self.up < self.across else pixels.T
        turned: np.ndarray = pixels[:: -1 if self.flipped[1] else 1, :: -1 if self.flipped[0] else 1]
        return turned

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
    world: list[float] = (affine[:-1, :dims] @ np.asarray(voxel[:dims], dtype=float) + affine[:-1, -1]).tolist()
    return world


def _directions(affine: np.ndarray, dims: int) -> tuple[tuple[int, ...], list[float]]:
    """The world axis that each axis of the image is closest to, no two the same, and whether it runs against it."""
    columns = affine[:-1, :dims] / np.asarray(_spacing(affine, dims))
    choices = permutations(range(len(columns)), dims)
    best = max(choices, key=lambda rows: sum(abs(columns[row, axis]) for axis, row in enumerate(rows)))
    return best, [1.0 if columns[row, axis] >= 0 else -1.0 for axis, row in enumerate(best)]


def _spacing(affine: np.ndarray, dims: int) -> list[float]:
    """Distance of neighboring voxels along each axis of the image."""
    return [float(length) or 1.0 for length in np.linalg.norm(affine[:-1, :dims], axis=0)]


def upsample_attention(
    attention: AttentionMap | torch.Tensor, image: Sequence[int] | torch.Tensor, mode: str = "linear"
) -> torch.Tensor:
    """
    Bring attention from the grid of the tokens to the voxels of the image.

    A token covers its share of the image, and its weight stands at the center of that share: nothing shifts by half a
    cell. Weights are not divided by the voxels that a token covers. Voxels that no token covers get 0.

    Args:
        attention: a map, whose keys lie on a grid; or weights on a grid ``(..., *grid)``.
        image: the image ``(C, *size)``, whose affine the result then has; or its size alone.
        mode: "linear", as :func:`monai.visualize.default_upsampler` does; or "nearest", every voxel with the weight of
            the token that it lies in.

    Returns:
        ``(B, heads, queries, *size)`` for a map, ``(..., *size)`` for weights; float32 at least. A MetaTensor if the
        image or the weights are one; the affine of weights is scaled with their grid.

    Raises:
        ValueError: if the axes of grid and image differ, the mode is another one, or keys lie on no grid.
    """
    if mode not in MODES:
        raise ValueError(f"mode should be one of {', '.join(map(repr, MODES))}, got {mode!r}.")
    size = tuple(image.shape[1:] if isinstance(image, torch.Tensor) else image)
    is_map = isinstance(attention, AttentionMap)
    weights = attention.on_grid() if isinstance(attention, AttentionMap) else attention
    dims = weights.ndim - 3 if is_map else len(size)
    if dims != len(size) or not 1 <= dims <= min(3, weights.ndim):
        raise ValueError(f"attention of shape {tuple(weights.shape)} has no place in an image of size {size}.")
    covered = covered_part(attention, size) if isinstance(attention, AttentionMap) else size
    voxels = on_voxels(weights, covered, size, mode)
    if isinstance(image, MetaTensor):
        return MetaTensor(voxels, affine=image.affine)
    if isinstance(weights, MetaTensor) and not is_map:
        return MetaTensor(voxels, affine=_scaled(weights.affine, weights.shape[-dims:], size))
    return voxels


def on_voxels(weights: torch.Tensor, covered: Sequence[int], size: Sequence[int], mode: str) -> torch.Tensor:
    """
    Weights of tokens at the voxels of an image.

    Args:
        weights: ``(..., *grid)``.
        covered: size of the part of the image that the grid covers.
        size: of the image.
        mode: "linear" or "nearest".

    Returns:
        ``(..., *size)``, with 0 outside of the covered part; float32 at least.
    """
    leading, grid = weights.shape[: -len(size)], weights.shape[-len(size) :]
    cells = _plain(weights).reshape(1, prod(leading), *grid)
    up = default_upsampler(covered) if mode == "linear" else _nearest(covered)
    voxels = up(cells if cells.dtype == torch.float64 else cells.float()).reshape(*leading, *covered)
    rest = [pad for length, part in zip(reversed(size), reversed(covered)) for pad in (0, length - part)]
    return F.pad(voxels, rest)


def attention_of_query(
    attention: AttentionMap,
    size: Sequence[int],
    query: Sequence[int] | str | None = None,
    head: int | None = None,
    batch: int = 0,
) -> torch.Tensor:
    """
    What one query attends to.

    Args:
        attention: a map.
        size: of the image.
        query: a voxel of the image, or "class" for the class token; None takes the mean of all that were captured.
        head: which; None takes the mean.
        batch: which image of the batch.

    Returns:
        weights on the grid of the keys ``(*key_grid)``.

    Raises:
        ValueError: if the query was not captured, or there is no such head or image; or if keys lie on no grid.
    """
    grid = _plain(attention.on_grid())
    if grid.ndim != len(size) + 3:
        raise ValueError(f"'{attention.name}' has the grid {attention.key_grid}, and the image the size {tuple(size)}.")
    if not 0 <= batch < grid.shape[0]:
        raise ValueError(f"'{attention.name}' holds a batch of {grid.shape[0]}, there is no {batch}.")
    if head is not None and not 0 <= head < grid.shape[1]:
        raise ValueError(f"'{attention.name}' has {grid.shape[1]} heads, there is no {head}: count from 0.")
    rows = grid[batch].mean(0) if head is None else grid[batch, head]
    if query is None:
        return rows.mean(0)
    token = token_of_query(attention, query, size)
    place = (attention.queries == token).nonzero()[:, 0].tolist()
    if not place:
        raise ValueError(f"the query {query} is token {token} of '{attention.name}', which was not captured.")
    return rows[place[0]]


def chosen_heads(attention: AttentionMap, head: int | str | None) -> list[int | None]:
    """
    The heads that "all" stands for; or else the one given, or None, the mean.

    Raises:
        ValueError: for another word.
    """
    if head == ALL_HEADS:
        return list(range(attention.weights.shape[1]))
    if isinstance(head, str):
        raise ValueError(f"head should be a number, {ALL_HEADS!r}, or None for the mean, got {head!r}.")
    return [head]


def token_of_query(attention: AttentionMap, query: Sequence[int] | str, size: Sequence[int]) -> int:
    """
    The token of a block that stands for a query.

    Args:
        attention: a map of the block.
        query: a voxel of the image, or "class".
        size: of the image.

    Raises:
        ValueError: if there is none.
    """
    covered = covered_part(attention, size)
    tokens = attention.class_tokens + prod(attention.query_grid or ())
    place = Place(attention.name, tokens, attention.class_tokens, attention.query_grid, tuple(size), covered)
    return int(Queries(query if isinstance(query, str) else [tuple(query)]).tokens(place)[0])


def captured_voxel(attention: AttentionMap, size: Sequence[int]) -> tuple[int, ...] | None:
    """The voxel at the center of the only token that was captured; None for several, or one that lies on no grid."""
    if len(attention.queries) != 1 or attention.query_grid is None:
        return None
    place = int(attention.queries[0]) - attention.class_tokens
    return None if place < 0 else _center_voxel(place, attention.query_grid, covered_part(attention, size))


def maximum_voxel(attention: AttentionMap, weights: torch.Tensor, size: Sequence[int]) -> tuple[int, ...]:
    """The voxel at the center of the token with the largest weight, of weights of a map on its grid."""
    return _center_voxel(int(weights.argmax()), tuple(weights.shape), covered_part(attention, size))


def covered_part(attention: AttentionMap, size: Sequence[int]) -> tuple[int, ...]:
    """The size of the part of an image, from its first voxel on, that a map's tokens cover."""
    if attention.covered_size is None or attention.image_size is None:
        return tuple(size)
    parts = zip(size, attention.covered_size, attention.image_size)
    return tuple(round(length * covered / whole) for length, covered, whole in parts)


def _center_voxel(place: int, grid: Sequence[int], size: Sequence[int]) -> tuple[int, ...]:
    """The voxel at the center of a token's share of the image; of two, the higher one."""
    cell = np.unravel_index(place, tuple(grid))
    return tuple((2 * int(i) + 1) * length // (2 * cells) for i, cells, length in zip(cell, grid, size))


def _plain(weights: torch.Tensor) -> torch.Tensor:
    """A tensor without the meta data that layers may have passed on from the network's input."""
    return weights.as_tensor() if isinstance(weights, MetaTensor) else weights


def _nearest(size: Sequence[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda cells: F.interpolate(cells, size=tuple(size), mode="nearest-exact")


def _scaled(affine: torch.Tensor, grid: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    """The affine of the voxels, from that of the tokens."""
    scale = np.eye(len(affine))
    small = scale_affine(grid, size)
    dims = len(grid)
    scale[:dims, :dims], scale[:dims, -1] = small[:dims, :dims], small[:dims, -1]
    return affine @ torch.as_tensor(scale, dtype=affine.dtype)
