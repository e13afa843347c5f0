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

"""
Position and patch embeddings on another grid, in one to three dimensions.

An axis is resampled by a matrix with the weights of an antialiased cubic kernel, one axis after the other: torch
interpolates 2-D images like this (``F.interpolate(mode="bicubic", antialias=True)``), but no volumes. A matrix depends
on sizes alone. It is remembered, and applied whenever positions are asked for, so that no result can be older than the
parameter. All of this scripts and exports, sizes included.
"""

from __future__ import annotations

from typing import Optional

import torch

from monai.networks.state_dict.torch_private import dispatch_modes

__all__ = [
    "axis_matrix",
    "fourier_embedding",
    "fourier_frequencies",
    "positions_on_grid",
    "rebuilt_positions",
    "resample_grid",
    "resize_patches",
    "sincos_embedding",
    "token_coordinates",
]

REMEMBERED = 256
_matrices: dict[tuple[int, int, float, float, torch.device], torch.Tensor] = {}


def working_type(device: torch.device) -> torch.dtype:
    """In which type positions are resampled: float64, which autocast leaves alone, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def cubic_matrix(old: int, new: int, begin: float, step: float, device: torch.device) -> torch.Tensor:
    """
    The weights of ``old`` values along an axis for ``new`` ones, (new, old).

    Args:
        old: how many values there are.
        new: how many there are to be.
        begin: where the first of the new ones begins, in old ones.
        step: how long each of the new ones is, in old ones: above 1 the kernel is that much wider.
        device: of the matrix.
    """
    dtype = working_type(device)
    centers = begin + (torch.arange(new, dtype=dtype, device=device) + 0.5) * step
    places = torch.arange(old, dtype=dtype, device=device) + 0.5
    width = (torch.ones(1, dtype=dtype, device=device) * step).clamp(min=1.0)
    x = ((places - centers[:, None]) / width).abs()
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    weights = torch.where(x < 1.0, near, torch.where(x < 2.0, far, torch.zeros_like(x)))
    return weights / weights.sum(1, keepdim=True)


def axis_matrix(old: int, new: int, begin: float, step: float, device: torch.device) -> torch.Tensor:
    """:func:`cubic_matrix`, remembered where nobody records what is computed."""
    if torch.jit.is_scripting():
        return cubic_matrix(old, new, begin, step, device)
    else:  # not compiled into a script
        return _remembered(old, new, begin, step, device)


def _remembered(old: int, new: int, begin: float, step: float, device: torch.device) -> torch.Tensor:
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or dispatch_modes():
        return cubic_matrix(old, new, begin, step, device)
    key = (old, new, begin, step, device)
    found = _matrices.get(key)
    if found is None:
        with torch.inference_mode(False), torch.no_grad():
            found = cubic_matrix(old, new, begin, step, device)
        if len(_matrices) >= REMEMBERED:
            _matrices.clear()
        _matrices[key] = found
    return found


def resample_grid(
    values: torch.Tensor,
    old: list[int],
    new: list[int],
    begins: Optional[list[float]] = None,
    steps: Optional[list[float]] = None,
) -> torch.Tensor:
    """
    Resample vectors that lie on a grid.

    Args:
        values: the vectors, (1, product of ``old``, C).
        old: their grid, row-major.
        new: the grid that is wanted.
        begins: where it begins along each axis, in old cells; 0 if None.
        steps: how long its cells are along each axis, in old ones; if None, both grids cover the same field.

    Returns:
        (1, product of ``new``, C), of the type of ``values``.
    """
    channels = values.shape[-1]
    x = values.to(working_type(values.device))
    before = 1
    after = channels
    for size in old:
        after = after * size
    for axis in range(len(old)):
        begin = 0.0 if begins is None else begins[axis]
        step = old[axis] / new[axis] if steps is None else steps[axis]
        after = after // old[axis]
        matrix = axis_matrix(old[axis], new[axis], begin, step, values.device).to(x.dtype)
        x = torch.matmul(matrix, x.reshape(before, old[axis], after))
        before = before * new[axis]
    return x.reshape(1, before, channels).to(values.dtype)


def resize_patches(weight: torch.Tensor, new: list[int]) -> torch.Tensor:
    """
    Resize the kernels of a patch embedding by the pseudo-inverse of resampling (Beyer et al., FlexiViT,
    https://arxiv.org/abs/2212.08013): an image that was resampled to the new patches gives the tokens of before, as far
    as they allow.

    Args:
        weight: (out, in, old patch size).
        new: the new patch size.

    Returns:
        (out, in, new patch size), of the type of ``weight``; ``weight`` itself where the size stays.
    """
    old = list(weight.shape[2:])
    if old == list(new):
        return weight
    x = weight.to(working_type(weight.device))
    for axis, (size, wanted) in enumerate(zip(old, new)):
        if size != wanted:
            matrix = torch.linalg.pinv(axis_matrix(size, wanted, 0.0, size / wanted, weight.device).T)
            x = torch.tensordot(x, matrix.to(x.dtype), dims=([2 + axis], [1])).movedim(-1, 2 + axis)
    return x.to(weight.dtype).contiguous()


def token_coordinates(begin: float, step: float, number: int, device: torch.device) -> torch.Tensor:
    """Where new tokens lie along an axis, as (broken) numbers of old ones: (number,)."""
    return begin + (torch.arange(number, dtype=working_type(device), device=device) + 0.5) * step - 0.5


def sincos_embedding(coordinates: list[torch.Tensor], width: int, temperature: float) -> torch.Tensor:
    """
    The sinusoidal embedding of tokens, in 2-D and 3-D.

    Args:
        coordinates: of the grid, along each axis.
        width: number C of channels, a multiple of twice the number of axes.
        temperature: ratio of the lowest frequency to the highest.

    Returns:
        (1, number of tokens, C), of the type of the coordinates.
    """
    count = width // (2 * len(coordinates))
    first = coordinates[0]
    numbers = torch.arange(count, dtype=first.dtype, device=first.device) / count
    frequencies = torch.pow(torch.full_like(numbers, temperature), -numbers)
    parts: list[torch.Tensor] = []
    for place in torch.meshgrid(coordinates, indexing="ij"):
        angles = place.reshape(-1, 1) * frequencies
        parts.append(torch.cat([angles.sin(), angles.cos()], dim=1))
    # the second axis comes first
    return torch.cat([parts[1], parts[0]] + parts[2:], dim=1)[None]


def fourier_frequencies(values: torch.Tensor, grid: list[int]) -> torch.Tensor:
    """
    The lowest frequencies with which :func:`fourier_embedding` has these values one step along each axis.

    Args:
        values: (1, product of ``grid``, C).
        grid: row-major.

    Returns:
        (C / 2, number of axes), in turns over the whole axis; 0 along an axis of one token.
    """
    half = values.shape[-1] // 2
    x = values.to(working_type(values.device))
    found: list[torch.Tensor] = []
    place = x.shape[1]
    for size in grid:
        place = place // size
        at = x[0, place if size > 1 else 0]
        phase = torch.atan2(at[:half], at[half:]) * (1.0 if size > 1 else 0.0)
        found.append(phase * (size - 1) / (2 * torch.pi))
    return torch.stack(found, dim=1)


def fourier_embedding(coordinates: list[torch.Tensor], frequencies: torch.Tensor) -> torch.Tensor:
    """
    The Fourier features of tokens.

    Args:
        coordinates: of the grid, along each axis, from 0 to 1.
        frequencies: (C / 2, number of axes).

    Returns:
        (1, number of tokens, C), of the type of the coordinates.
    """
    places = torch.stack([place.flatten() for place in torch.meshgrid(coordinates, indexing="ij")], dim=1)
    angles = 2.0 * torch.pi * places @ frequencies.T.to(places.dtype)
    return torch.cat([angles.sin(), angles.cos()], dim=1)[None]


def rebuilt_positions(
    values: torch.Tensor,
    old: list[int],
    new: list[int],
    kind: str,
    temperature: float,
    begins: Optional[list[float]] = None,
    steps: Optional[list[float]] = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    What the formula of ``kind`` gives on another grid, and whether ``values`` are that formula's at all.

    Args:
        values: positions, (1, product of ``old``, C).
        old: their grid.
        new: the grid that is wanted.
        kind: "sincos" or "fourier".
        temperature: of sincos.
        begins: see :func:`resample_grid`. If None, tokens are counted (sincos) or span the axis (fourier), as where a
            network is built.
        steps: likewise.

    Returns:
        the new positions (1, product of ``new``, C), of the type of ``values``, and a bool tensor. It is False for
        Fourier features whose frequencies a grid so coarse does not tell.
    """
    device = values.device
    there: list[torch.Tensor] = []
    here: list[torch.Tensor] = []
    for axis in range(len(old)):
        there.append(token_coordinates(0.0, 1.0, old[axis], device))
        if begins is None or steps is None:
            here.append(token_coordinates(0.0, 1.0, new[axis], device))
        else:
            here.append(token_coordinates(begins[axis], steps[axis], new[axis], device))
    told = torch.ones([], dtype=torch.bool, device=device)
    if kind == "sincos":
        before = sincos_embedding(there, values.shape[-1], temperature)
        after = sincos_embedding(here, values.shape[-1], temperature)
    else:
        frequencies = fourier_frequencies(values, old)
        for axis in range(len(old)):
            steps_there = max(old[axis] - 1, 1)
            steps_here = max(new[axis] - 1, 1) if begins is None else steps_there
            there[axis] = there[axis] / steps_there
            here[axis] = here[axis] / steps_here
            if old[axis] > 1:
                told = told & (frequencies[:, axis].abs().max() <= 0.45 * (old[axis] - 1))
            elif new[axis] > 1:
                told = torch.zeros_like(told)
        before = fourier_embedding(there, frequencies)
        after = fourier_embedding(here, frequencies)
    tolerance = 1e-4  # what float32 loses where it counts tokens
    if values.dtype == torch.float16:
        tolerance = 4e-3
    elif values.dtype == torch.bfloat16:
        tolerance = 3e-2
    told = told & ((before - values).abs().max() <= tolerance)
    return after.to(values.dtype), told


def positions_on_grid(
    values: torch.Tensor, old: list[int], new: list[int], kind: str, temperature: float
) -> torch.Tensor:
    """
    Position embeddings for another grid: fixed ones by their formula where they are the formula's, others resampled.

    Args:
        values: positions, (1, product of ``old``, C).
        old: their grid.
        new: the grid that is wanted.
        kind: "learnable", "sincos", "fourier" or "none".
        temperature: of sincos.

    Returns:
        (1, product of ``new``, C), of the type of ``values``.
    """
    resampled = resample_grid(values, old, new)
    if kind == "sincos" or kind == "fourier":
        rebuilt, told = rebuilt_positions(values, old, new, kind, temperature)
        return torch.where(told, rebuilt, resampled)
    return resampled
