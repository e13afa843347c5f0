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

"""Where tokens lie in the image, as modules declare it, and from voxels, masks and class tokens to token numbers."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn as nn

from monai.networks.blocks.attention.block import AttentionBlock
from monai.networks.blocks.attention.positions import Positions
from monai.networks.blocks.attention.token_grid import TokenGrid

__all__ = [
    "NO_GRID",
    "Place",
    "Queries",
    "call_arguments",
    "image_size",
    "token_grids",
]

NO_GRID = TokenGrid()
TAKEN = (
    "queries should be 'all', 'class', voxel coordinates like [(x, y, z)], a bool mask over the image, or a 1-D tensor "
    "of token numbers"
)


def token_grids(net: nn.Module) -> dict[AttentionBlock, TokenGrid]:
    """
    Tell where the tokens of a network's attention blocks lie. Nothing is guessed: a block whose positions know
    of no grid, and that no module around it gives a place by its method ``token_grids``, lies on no grid.
    """
    found = {block: _own_grid(block) for block in net.modules() if isinstance(block, AttentionBlock)}
    for module in net.modules():
        declared: dict[str, TokenGrid] = getattr(module, "token_grids", dict)()
        for path, grid in declared.items():
            part = module.get_submodule(path)
            found.update({block: grid for block in part.modules() if isinstance(block, AttentionBlock)})
    return found


def _own_grid(block: AttentionBlock) -> TokenGrid:
    """The grid of a block whose positions know of one."""
    positions = block.rel_positional_embedding
    if not isinstance(positions, Positions):
        return NO_GRID
    return TokenGrid(grid=positions.token_grid(), key_grid=positions.key_grid())


def call_arguments(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of ``module`` by name, in the order of its signature."""
    return inspect.signature(module.forward).bind(*args, **kwargs).arguments


def image_size(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[int, ...] | None:
    """Spatial size of the first image, (B, C, sizes), among the arguments of a call; None without any."""
    for value in call_arguments(module, args, kwargs).values():
        if torch.is_tensor(value) and value.is_floating_point() and value.dim() >= 3:
            return tuple(value.shape[2:])
    return None


@dataclass(frozen=True)
class Place:
    """
    Where the query tokens of a call lie.

    Args:
        name: the block's name, for messages.
        tokens: Q, their number.
        class_tokens: how many come before those of the grid.
        grid: the grid of the others, None where they fill none.
        image: spatial size of the image that the network was given.
        covered: the part of the image that the grid covers.
    """

    name: str
    tokens: int
    class_tokens: int
    grid: tuple[int, ...] | None
    image: tuple[int, ...] | None
    covered: tuple[int, ...] | None

    def on_image(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """
        Grid, image and covered size, all with the same axes.

        Raises:
            ValueError: if the tokens do not lie on the image.
        """
        if self.grid is None:
            raise ValueError(
                f"the {self.tokens} query tokens of {self.name!r} lie on no grid, so that no voxel belongs to them: "
                "choose other blocks, or queries by token number."
            )
        if self.image is None or self.covered is None or len(self.image) != len(self.grid):
            raise ValueError(
                f"the tokens of {self.name!r} lie on the grid {self.grid}, but the network was given "
                f"{'no image' if self.image is None else f'an image of size {self.image}'}: call the network itself "
                "with an image, or choose queries by token number."
            )
        return self.grid, self.image, self.covered


class Queries:
    """
    Which query tokens a user asks for.

    Args:
        queries: "all"; "class", the class tokens; voxel coordinates of the network's input image, a sequence of (x, y)
            or (x, y, z) in the order of its axes; a bool mask over that image, with or without a channel axis, for the
            tokens whose cell holds any of it; or a 1-D integer tensor of token numbers.

    Raises:
        TypeError: if ``queries`` is none of these.
        ValueError: if it is empty, or a word other than those.
    """

    def __init__(self, queries: Any) -> None:
        self.kind, self.value = _parse(queries)

    @property
    def on_image(self) -> bool:
        """Whether they are places in the image."""
        return self.kind in ("coordinates", "mask")

    def tokens(self, place: Place) -> torch.Tensor:
        """
        Numbers of the tokens, (N,): for coordinates one for each, in their order; else in ascending or the given order.

        Raises:
            ValueError: if the block has no such token.
        """
        if self.kind == "all":
            return torch.arange(place.tokens)
        if self.kind == "class":
            return _class_tokens(place)
        if self.kind == "numbers":
            return _numbers(self.value, place)
        cells = _cells_of_mask(self.value, place) if self.kind == "mask" else _cells_of(self.value, place)
        return cells + place.class_tokens


def _parse(queries: Any) -> tuple[str, Any]:
    if isinstance(queries, str):
        if queries not in ("all", "class"):
            raise ValueError(f"{TAKEN}, got {queries!r}.")
        return queries, None
    if isinstance(queries, np.ndarray):
        queries = torch.from_numpy(queries)
    if torch.is_tensor(queries):
        return _parse_tensor(torch.as_tensor(queries.detach().cpu()).as_subclass(torch.Tensor))
    if not isinstance(queries, Sequence):
        raise TypeError(f"{TAKEN}, got {type(queries).__name__}.")
    return "coordinates", _parse_coordinates(queries)


def _parse_tensor(queries: torch.Tensor) -> tuple[str, torch.Tensor]:
    if queries.dtype == torch.bool:
        if not queries.any():
            raise ValueError(f"the mask of queries, of shape {list(queries.shape)}, holds no voxel.")
        return "mask", queries
    if queries.is_floating_point() or queries.is_complex() or queries.dim() != 1:
        raise TypeError(
            f"{TAKEN}, got a tensor of {queries.dtype} and shape {list(queries.shape)}: make a mask of it by `> 0`, "
            "or a list of coordinates by `.tolist()`."
        )
    if queries.numel() == 0:
        raise ValueError("queries holds no token number.")
    return "numbers", queries.long()


def _parse_coordinates(queries: Sequence) -> list[tuple[int, ...]]:
    if len(queries) == 0:
        raise ValueError("queries holds no coordinates.")
    coordinates = []
    for point in queries:
        try:
            coordinates.append(tuple(operator.index(value) for value in point))
        except TypeError:
            raise TypeError(f"{TAKEN}, got {queries!r}: each voxel is a tuple of integers.") from None
    return coordinates


def _class_tokens(place: Place) -> torch.Tensor:
    if place.class_tokens == 0:
        raise ValueError(f"{place.name!r} has no class token: choose other blocks or other queries.")
    return torch.arange(place.class_tokens)


def _numbers(numbers: torch.Tensor, place: Place) -> torch.Tensor:
    outside = numbers[(numbers < 0) | (numbers >= place.tokens)]
    if outside.numel() > 0:
        raise ValueError(f"{place.name!r} has the query tokens 0 to {place.tokens - 1}, not {outside.tolist()}.")
    return numbers


def _cells_along(size: int, covered: int, cells: int) -> torch.Tensor:
    """The cell that each voxel's center lies in, along one axis: (size,); ``cells`` or more behind the grid's end."""
    return (2 * torch.arange(size) + 1) * cells // (2 * covered)


def _cells_of(coordinates: list[tuple[int, ...]], place: Place) -> torch.Tensor:
    """Numbers of the cells in which voxels lie, one a voxel."""
    grid, image, covered = place.on_image()
    numbers = []
    for point in coordinates:
        if len(point) != len(image) or any(not 0 <= value < size for value, size in zip(point, image)):
            raise ValueError(f"the voxel {point} lies outside of the image, whose size is {image}.")
        if any(value >= size for value, size in zip(point, covered)):
            raise ValueError(
                f"no patch of {place.name!r} holds the voxel {point}: patches cover the first {covered} of {image}."
            )
        number = 0
        for value, size, inside, cells in zip(point, image, covered, grid):
            number = number * cells + int(_cells_along(size, inside, cells)[value])
        numbers.append(number)
    return torch.tensor(numbers)


def _cells_of_mask(mask: torch.Tensor, place: Place) -> torch.Tensor:
    """Numbers of the cells that hold any voxel of a mask, ascending."""
    grid, image, covered = place.on_image()
    if mask.dim() == len(image) + 1:
        mask = mask.any(dim=0)
    if tuple(mask.shape) != image:
        raise ValueError(
            f"the mask of queries has the spatial shape {list(mask.shape)}, the network's input image {list(image)}: "
            "resample it to that grid."
        )
    held = mask.to(torch.int32)
    for axis, (size, inside, cells) in enumerate(zip(image, covered, grid)):
        along = _cells_along(size, inside, cells)
        kept = held.narrow(axis, 0, int((along < cells).sum()))
        shape = [*kept.shape[:axis], cells, *kept.shape[axis + 1 :]]
        held = torch.zeros(shape, dtype=torch.int32).index_add_(axis, along[along < cells], kept)
    numbers = held.flatten().nonzero().flatten()
    if numbers.numel() == 0:
        raise ValueError(f"no patch of {place.name!r} holds any voxel of the mask: they cover {covered} of {image}.")
    return numbers
