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

"""Mean and variance of a volume that is seen part by part, and the norm that they give."""

from __future__ import annotations

import torch

__all__ = ["Statistics", "normalize", "type_of_statistics"]


class Statistics:
    """
    Mean and variance of every channel of a volume, gathered from its parts.

    Parts are combined by the formula of Chan, Golub and LeVeque (Updating formulae and a pairwise algorithm for
    computing sample variances, 1979), which holds however large the mean is. They are computed in float32, in float64
    for parts in float64.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: torch.Tensor | None = None
        self.squares: torch.Tensor | None = None

    def add(self, part: torch.Tensor) -> None:
        """Take ``part``, (B, C, sizes), into account."""
        count = part[0, 0].numel()
        if count == 0 or part.shape[0] == 0:
            return
        self.merge(count, *_moments(part))

    def merge(self, count: int, mean: torch.Tensor, squares: torch.Tensor) -> None:
        """
        Take the statistics of another part into account.

        Args:
            count: number of its positions.
            mean: of every channel, (B, C).
            squares: sum of the squared distances from it, likewise.
        """
        if self.mean is None or self.squares is None:
            self.count, self.mean, self.squares = count, mean.clone(), squares.clone()
            return
        total = self.count + count
        distance = mean - self.mean
        self.squares += squares + distance.square() * (self.count * count / total)
        self.mean += distance * (count / total)
        self.count = total

    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Means, and sums of the squared distances from them, of every channel, both (B, C).

        Raises:
            RuntimeError: if there was no part.
        """
        if self.mean is None or self.squares is None:
            raise RuntimeError("there are no statistics of a volume of which no part was seen.")
        return self.mean, self.squares

    def of_groups(self, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Mean and variance of groups of channels that follow one another, both (B, groups).

        Raises:
            RuntimeError: if there was no part.
        """
        channels, squares = self.moments()
        means = channels.unflatten(1, (groups, -1))
        mean = means.mean(2)
        variance = (squares.unflatten(1, (groups, -1)) / self.count).mean(2)
        return mean, variance + (means - mean[..., None]).square().mean(2)


def type_of_statistics(dtype: torch.dtype) -> torch.dtype:
    """The type in which the statistics of a volume of type ``dtype`` are computed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _moments(part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Means, and sums of squared distances from them, of every channel: (B, C) each."""
    # few channels at a time: copies of another type, and differences from the mean, stay small
    number = 1 if part.device.type == "cpu" else 8
    dtype = type_of_statistics(part.dtype)
    means, squares = [], []
    for channels in part.split(number, 1):
        values = channels.flatten(2).to(dtype)
        mean = values.mean(2, keepdim=True)
        distances = values - mean
        means.append(mean[..., 0])
        squares.append(torch.linalg.vecdot(distances, distances))
    with torch.autocast(part.device.type, enabled=False):
        return torch.cat(means, 1), torch.cat(squares, 1)


def normalize(
    x: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    """
    Group norm of a part of a volume by the statistics of the whole.

    Args:
        x: the part, (B, C, sizes).
        mean: of each group of channels, (B, groups).
        variance: likewise.
        weight: of each channel, (C,), or None.
        bias: likewise.
        eps: what is added to the variance.

    Returns:
        the shape and type of ``x``; half types are rounded once, at the end
    """
    batch, channels = x.shape[:2]
    width = channels // mean.shape[1]
    scale = (variance + eps).rsqrt().repeat_interleave(width, 1)
    shift = -mean.repeat_interleave(width, 1) * scale
    if weight is not None:
        scale, shift = scale * weight, shift * weight
    if bias is not None:
        shift = shift + bias
    if x.dtype in (torch.float32, torch.float64):
        shape = (batch, channels) + (1,) * (x.dim() - 2)
        return x.mul(scale.to(x.dtype).view(shape)).add_(shift.to(x.dtype).view(shape))
    # a norm by running statistics does the same of half types, without a copy in float32
    flat = x.reshape(1, batch * channels, *x.shape[2:])
    one = torch.ones_like(scale).flatten()
    scaled = torch.batch_norm(
        flat, scale.flatten(), shift.flatten(), torch.zeros_like(one), one, False, 0.0, 0.0, False
    )
    return scaled.view(x.shape)
