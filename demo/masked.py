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

"""Masked image modeling: part of the patches is hidden and a ViT fills them in from the others."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn as nn

HIDDEN_VALUE = -1.0
"""What a hidden patch is filled with: no intensity of the scan."""


def to_patches(images: torch.Tensor, patch: Sequence[int]) -> torch.Tensor:
    """Cut ``(B, 1, *size)`` into ``(B, patches, voxels)``, in the order of a ViT's tokens."""
    x = images[:, 0]
    for axis, size in enumerate(patch, start=1):
        x = x.unfold(axis, size, size)
    return x.flatten(1, len(patch)).flatten(2)


def from_patches(patches: torch.Tensor, grid: Sequence[int], patch: Sequence[int]) -> torch.Tensor:
    """The inverse of :func:`to_patches` for a grid of patches."""
    n = len(grid)
    x = patches.unflatten(2, tuple(patch)).unflatten(1, tuple(grid))
    order = [0] + [axis for i in range(n) for axis in (1 + i, 1 + n + i)]
    size = [g * p for g, p in zip(grid, patch)]
    out: torch.Tensor = x.permute(order).reshape(len(patches), 1, *size)
    return out


def hide(
    images: torch.Tensor, patch: Sequence[int], share: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hide a random share of the patches of every image.

    Returns:
        the images with those patches at ``HIDDEN_VALUE``, and a bool mask ``(B, patches)`` of the hidden ones.
    """
    grid = [s // p for s, p in zip(images.shape[2:], patch)]
    order = torch.rand(len(images), math.prod(grid), generator=generator).argsort(1).argsort(1)
    mask = order < round(share * order.shape[1])
    return paint(images, mask, patch), mask


def paint(images: torch.Tensor, mask: torch.Tensor, patch: Sequence[int]) -> torch.Tensor:
    """The images with the patches of ``mask`` at ``HIDDEN_VALUE``."""
    grid = [s // p for s, p in zip(images.shape[2:], patch)]
    voxels = mask.unsqueeze(2).expand(-1, -1, math.prod(patch))
    return images.masked_fill(from_patches(voxels, grid, patch).to(images.device), HIDDEN_VALUE)


def fill_in(vit: nn.Module, head: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Every patch as the ViT and a linear head on its tokens see it: ``(B, patches, voxels)``."""
    out: torch.Tensor = head(vit(hidden)[0])
    return out


def hidden_error(filled: torch.Tensor, images: torch.Tensor, mask: torch.Tensor, patch: Sequence[int]) -> torch.Tensor:
    """Mean absolute error over the hidden patches."""
    mask = mask.to(images.device)
    return (filled[mask] - to_patches(images, patch)[mask]).abs().mean()


class Filling:
    """
    A ViT with a new linear head that fills in hidden patches, and images to judge it by.

    Args:
        vit: the network.
        tests: the images to judge by, ``(B, 1, *size)``.
        patch: size of a patch.
        share: of the patches that is hidden.
        generator: draws which.
    """

    def __init__(
        self, vit: nn.Module, tests: torch.Tensor, patch: Sequence[int], share: float, generator: torch.Generator
    ) -> None:
        self.vit, self.tests, self.patch, self.share, self.generator = vit, tests, patch, share, generator
        self.hidden, self.mask = hide(tests, patch, share, generator)
        self.head = nn.Linear(vit(self.hidden)[0].shape[-1], math.prod(patch)).to(tests.device)

    def weights(self) -> list[nn.Parameter]:
        """What is to be trained."""
        return [*self.vit.parameters(), *self.head.parameters()]

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        """The error of newly hidden patches of training images."""
        hidden, mask = hide(images, self.patch, self.share, self.generator)
        return hidden_error(fill_in(self.vit, self.head, hidden), images, mask, self.patch)

    @torch.no_grad()
    def judge(self) -> float:
        """The error of the hidden patches of the images to judge by."""
        return float(hidden_error(fill_in(self.vit, self.head, self.hidden), self.tests, self.mask, self.patch))
