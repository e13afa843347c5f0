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

"""Position embeddings for another grid of tokens, by their number or by where they lie in millimeters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from monai.networks.blocks.token_resampling import rebuilt_positions, resample_grid
from monai.networks.state_dict.rules import Misfit

__all__ = ["FIXED", "place_grid", "rebuild_positions", "resample_positions", "told_grid"]

FIXED = ("sincos", "fourier")
"""Types of position embeddings that a formula gives."""


def told_grid(tokens: int, dims: int, grid: Sequence[int] | None = None) -> tuple[int, ...]:
    """
    The grid that a file's tokens lie on.

    Of a file nothing but the number of tokens is known. In 2-D a square number is a square: the networks that are
    passed around were trained on square images. Volumes are often no cubes, so that nothing is guessed in 3-D.

    Args:
        tokens: their number, class tokens apart.
        dims: number of axes.
        grid: the grid, where it is known.

    Raises:
        Misfit: if the number does not tell the grid, or is not that of ``grid``.
    """
    if grid is not None:
        if len(grid) != dims or math.prod(grid) != tokens:
            raise Misfit(f"grid={tuple(grid)} is none of {tokens} tokens in {dims}-D: give the one of the file.")
        return tuple(grid)
    if dims == 1:
        return (tokens,)
    side = math.isqrt(tokens)
    if dims == 2 and side * side == tokens:
        return (side, side)
    cube = round(tokens ** (1 / 3))
    example = f"grid=({cube}, {cube}, {cube}) if it is a cube" if dims == 3 and cube**3 == tokens else "grid=(...)"
    raise Misfit(
        f"the file has {tokens} position embeddings, which do not tell their grid in {dims}-D: say it, {example} "
        "(number of patches along each axis)."
    )


def place_grid(
    old_grid: Sequence[int], new_grid: Sequence[int], old_token: Sequence[float], new_token: Sequence[float]
) -> tuple[list[float], list[float]]:
    """
    Where tokens of another size lie among the old ones, if both images have the same center, as after a crop or a pad.

    Args:
        old_grid: number of the old tokens along each axis.
        new_grid: of the new ones.
        old_token: length of an old token along each axis, in mm: spacing of the voxels times size of a patch.
        new_token: of a new one.

    Returns:
        where the new grid begins along each axis, and how long its tokens are, both in old tokens.
    """
    steps = [new / old for old, new in zip(old_token, new_token)]
    begins = [(old - new * step) / 2 for old, new, step in zip(old_grid, new_grid, steps)]
    return begins, steps


def resample_positions(
    values: torch.Tensor,
    new_grid: Sequence[int],
    old_grid: Sequence[int],
    class_tokens: int = 0,
    begins: Sequence[float] | None = None,
    steps: Sequence[float] | None = None,
) -> torch.Tensor:
    """
    Resample learned position embeddings by an antialiased cubic kernel, axis by axis; in 2-D as timm does it.

    Args:
        values: class tokens, then the tokens of a grid, row-major: (1, class_tokens + product of ``old_grid``, C).
        new_grid: number of tokens along each axis, 1 to 3 axes.
        old_grid: likewise.
        class_tokens: how many come first and stay as they are. Defaults to 0.
        begins: where the new grid begins along each axis, in old tokens, see :func:`place_grid`. By default both grids
            cover the same field.
        steps: how long the new tokens are along each axis, in old ones.

    Returns:
        (1, class_tokens + product of ``new_grid``, C), of the type of ``values``; itself where no token moves.

    Raises:
        Misfit: if there are other tokens than those of the grid, or new ones lie outside of the old ones' field.
    """
    if values.dim() != 3 or values.shape[0] != 1 or values.shape[1] != class_tokens + math.prod(old_grid):
        raise Misfit(
            f"position embeddings of shape {list(values.shape)} are none of {class_tokens} class tokens and the grid "
            f"{tuple(old_grid)}: give the one of the file."
        )
    if begins is None or steps is None:
        begins, steps = [0.0] * len(old_grid), [old / new for old, new in zip(old_grid, new_grid)]
    if list(old_grid) == list(new_grid) and all(step == 1.0 for step in steps) and not any(begins):
        return values
    for axis, (old, new, begin, step) in enumerate(zip(old_grid, new_grid, begins, steps)):
        first, last = begin + step / 2, begin + (new - 0.5) * step
        if first < 0 or last > old:
            raise Misfit(
                f"along axis {axis} the {new} tokens lie from {first:.2f} to {last:.2f} of the file's {old} (counted "
                "in its tokens): outside of its field no position was learned. Take a smaller img_size, or leave out "
                "spacings, which stretches the file's positions over the whole image."
            )
    grid = values[:, class_tokens:]
    moved = resample_grid(grid, list(old_grid), list(new_grid), list(begins), list(steps))
    return torch.cat([values[:, :class_tokens], moved], dim=1) if class_tokens else moved


def rebuild_positions(
    values: torch.Tensor,
    new_grid: Sequence[int],
    old_grid: Sequence[int],
    kind: str,
    temperature: float = 10000.0,
    begins: Sequence[float] | None = None,
    steps: Sequence[float] | None = None,
) -> torch.Tensor | None:
    """
    Fixed position embeddings for another grid, by their formula.

    Args:
        values: (1, product of ``old_grid``, C).
        new_grid: number of tokens along each axis.
        old_grid: likewise.
        kind: one of :data:`FIXED`, with the formula of :class:`~monai.networks.blocks.PatchEmbeddingBlock`.
        temperature: of sincos. Defaults to 10000.0.
        begins: see :func:`resample_positions`. By default the grid is that of a network that is built for it.
        steps: likewise.

    Returns:
        (1, product of ``new_grid``, C), of the type of ``values``; None if these are not the formula's, or the old grid
        is too coarse to tell the frequencies of Fourier features.
    """
    if kind not in FIXED or (kind == "sincos" and len(old_grid) == 1):
        return None
    places = (None, None) if begins is None or steps is None else (list(begins), list(steps))
    found, told = rebuilt_positions(values, list(old_grid), list(new_grid), kind, temperature, *places)
    return found if bool(told) else None
