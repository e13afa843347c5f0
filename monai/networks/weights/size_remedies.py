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

"""Which option would fit a tensor of another size, for those who did not ask for it."""

from __future__ import annotations

import math

import torch
import torch.nn as nn

from monai.networks.weights.places import Place, places

__all__ = ["remedy_for_size"]


def remedy_for_size(key: str, have: torch.Tensor, want: torch.Tensor, net: nn.Module) -> str:
    """
    What a caller may ask for where a tensor of a file has another shape than the network's.

    Args:
        key: of both.
        have: the file's.
        want: the network's.
        net: the network.

    Returns:
        a sentence; empty where no option helps.
    """
    place = places(net).get(key)
    if place is None:
        return ""
    if place.role == "position":
        return _for_positions(place, have, want)
    if place.role == "patch":
        return _for_patches(place, have, want)
    return _for_layers(place, have, want)


def _for_positions(place: Place, have: torch.Tensor, want: torch.Tensor) -> str:
    if have.dim() != 3 or have.shape[2] != want.shape[2] or have.shape[1] == want.shape[1]:
        return ""
    grid = "x".join(map(str, place.grid))
    text = f"Positions are resampled to the network's grid {grid} by resample='position'"
    if len(place.grid) == 3:
        text += ", with grid=(the number of the file's patches along each axis)"
        if math.isqrt(have.shape[1]) ** 2 == have.shape[1]:
            text += "; those of a 2-D file become 3-D by inflate='average' or 'center'"
    return text + "."


def _for_patches(place: Place, have: torch.Tensor, want: torch.Tensor) -> str:
    if have.shape[0] != want.shape[0]:
        return ""
    if want.dim() == 2:
        return (
            "The file's patches, dimensions or channels are others: ask for resample='patch', inflate or in_channels."
        )
    if have.dim() == want.dim() - 1 == 4:
        return "A 2-D kernel becomes 3-D by inflate='average' or 'center'."
    if have.dim() != want.dim():
        return ""
    asked = [] if have.shape[2:] == want.shape[2:] else ["resample='patch'"]
    asked += [] if have.shape[1] == want.shape[1] else ["in_channels='mean'"]
    return f"The patch embedding is fitted by {' and '.join(asked)}."


def _for_layers(place: Place, have: torch.Tensor, want: torch.Tensor) -> str:
    three = isinstance(place.module, (nn.Conv3d, nn.ConvTranspose3d))
    if three and have.dim() == want.dim() - 1 == 4 and have.shape[2:] == want.shape[2:-1]:
        return "A 2-D kernel becomes 3-D by inflate='average' or 'center'."
    if place.role == "" or have.dim() != want.dim():
        return ""
    other = [axis for axis in range(have.dim()) if have.shape[axis] != want.shape[axis]]
    if other == [1] and place.role == "convolution":
        return (
            "If it is a first layer, in_channels='mean', 'repeat' or a tuple of old channels makes it one for others."
        )
    if other == [place.channel_axis]:
        return (
            "If it is a last layer, out_channels=(the old channel or class for each new one, or None) fits it, or "
            "allow it to stay as it is."
        )
    return ""
