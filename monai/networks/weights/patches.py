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

"""The weights that project patches, as a convolution or as a linear, for patches of another size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from monai.networks.blocks.patchembedding import as_kernel, as_linear
from monai.networks.blocks.token_resampling import resize_patches
from monai.networks.state_dict.rules import Misfit

__all__ = ["as_kernel", "as_linear", "resample_patches", "told_patch"]


def resample_patches(
    weight: torch.Tensor, patch_size: Sequence[int], old_size: Sequence[int] | None = None
) -> torch.Tensor:
    """
    Resize the weight of a patch embedding by the pseudo-inverse of resampling (FlexiViT); in 2-D as timm does it.

    Args:
        weight: of a convolution, (out, in, old patch size), or of a "perceptron", (out, old patch x in).
        patch_size: the new patch size, 1 to 3 axes.
        old_size: the old one, which the weight of a "perceptron" does not tell.

    Returns:
        the weight in the same layout, of the same type; ``weight`` itself where the size stays.

    Raises:
        Misfit: if the weight is not that of such patches.
    """
    if weight.dim() == 2 and old_size is not None:
        if list(old_size) == list(patch_size):
            return weight
        if len(old_size) != len(patch_size) or weight.shape[1] % math.prod(old_size):
            raise Misfit(f"a weight of shape {list(weight.shape)} is not that of patches of {tuple(old_size)}.")
        return as_linear(resize_patches(as_kernel(weight, old_size), list(patch_size)))
    if weight.dim() != 2 + len(patch_size):
        raise Misfit(f"a weight of shape {list(weight.shape)} projects no patches of {len(patch_size)} axes.")
    return resize_patches(weight, list(patch_size))


def told_patch(columns: int, channels: int, dims: int) -> tuple[int, ...]:
    """
    The patch size of a file with a "perceptron": its linear has a column for every voxel of a patch and every channel.
    A square number is a square in 2-D; in 3-D nothing is guessed.

    Raises:
        Misfit: if the number does not tell the size.
    """
    voxels = columns // channels
    side = math.isqrt(voxels)
    if columns % channels == 0 and dims == 1:
        return (voxels,)
    if columns % channels == 0 and dims == 2 and side * side == voxels:
        return (side, side)
    raise Misfit(
        f"a perceptron of {columns} columns does not tell the size of the file's patches in {dims}-D with {channels} "
        "channels: build the network with the file's patch_size, load, and call set_input_size."
    )
