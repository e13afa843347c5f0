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

"""What a caller may ask for where a file's network and the one that loads differ in size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from monai.networks.weights.channels import IN_CHANNELS
from monai.networks.weights.inflate import INFLATIONS

__all__ = ["RESAMPLED", "SizeOptions"]

RESAMPLED = ("position", "patch")


@dataclass(frozen=True)
class SizeOptions:
    """
    How weights of other sizes are fitted to a network. Nothing is done that is not asked for.

    Args:
        resample: what is resampled: "position" for position embeddings, "patch" for patch embeddings; one of them or
            several.
        grid: the grid of the file's tokens, where their number does not tell it, in the file's dimensions.
        spacings: spacing of the voxels along each axis, in mm, of the file's images and of this network's. Then
            positions are resampled by where they lie, with both images around the same center, instead of stretched.
        in_channels: how the first layers are made ones for other channels: "mean", "repeat", or for each channel the
            old one, see :func:`~monai.networks.weights.channels.adapt_in_channels`.
        out_channels: for each channel or class of the last layers the old one, or None to leave it as it was.
        inflate: how 2-D kernels become 3-D, "average" or "center", see :mod:`monai.networks.weights.inflate`.

    Raises:
        ValueError: if a value is none of these, or needs an option that is not there.
        TypeError: if a value has another type.
    """

    resample: tuple[str, ...] = ()
    grid: tuple[int, ...] | None = None
    spacings: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    in_channels: str | tuple[int | None, ...] | None = None
    out_channels: tuple[int | None, ...] | None = None
    inflate: str | None = None

    def __post_init__(self) -> None:
        resample = (self.resample,) if isinstance(self.resample, str) else _tuple("resample", self.resample)
        for each in resample:
            if each not in RESAMPLED:
                raise ValueError(f"resample={each!r} should be one of {RESAMPLED}.")
        self._put("resample", resample)
        if self.grid is not None:
            self._put("grid", _numbers("grid", self.grid, int))
            if "position" not in resample and self.inflate is None:
                raise ValueError(
                    "grid says where the file's positions lie: it goes with resample='position' or inflate."
                )
        if self.spacings is not None:
            self._put("spacings", self._checked_spacings())
        if self.in_channels is not None and not isinstance(self.in_channels, str):
            self._put("in_channels", _indices("in_channels", self.in_channels))
        elif self.in_channels not in (None, *IN_CHANNELS):
            raise ValueError(f"in_channels={self.in_channels!r} should be one of {IN_CHANNELS}, or a tuple of indices.")
        if self.out_channels is not None:
            self._put("out_channels", _indices("out_channels", self.out_channels))
        if self.inflate not in (None, *INFLATIONS):
            raise ValueError(f"inflate={self.inflate!r} should be one of {INFLATIONS}.")

    def __bool__(self) -> bool:
        """Whether anything is asked for."""
        return self != SizeOptions()

    def _put(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _checked_spacings(self) -> tuple[tuple[float, ...], ...]:
        if "position" not in self.resample:
            raise ValueError("spacings say how positions are resampled: they go with resample='position'.")
        both = _tuple("spacings", self.spacings)
        if len(both) != 2:
            raise ValueError(f"spacings={self.spacings!r} should be two: of the file's images, and of this network's.")
        return tuple(_numbers("spacings", each, (int, float)) for each in both)


def _tuple(name: str, value: Any) -> tuple:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name} should be a tuple, got {value!r}.")
    return tuple(value)


def _numbers(name: str, value: Any, kind: Any) -> tuple:
    numbers = _tuple(name, value)
    if not numbers or any(isinstance(each, bool) or not isinstance(each, kind) or not each > 0 for each in numbers):
        raise ValueError(f"{name} should be made of numbers above 0, got {value!r}.")
    return numbers


def _indices(name: str, value: Any) -> tuple[int | None, ...]:
    indices = _tuple(name, value)
    for each in indices:
        if each is not None and (isinstance(each, bool) or not isinstance(each, int) or each < 0):
            raise ValueError(f"{name} should be made of old channels, counted from 0, or None, got {value!r}.")
    if not indices:
        raise ValueError(f"{name} should name a channel at least.")
    return indices
