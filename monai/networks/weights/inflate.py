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
Weights of 2-D networks in 3-D ones: a volume that is constant along the last axis gives what its slices gave.

With "center" this holds for every layer here, to the border. With "average" it holds for patch embeddings, and for
convolutions inside of the volume: where they pad with zeros, the slices at the border see less of it. Norms, linears
and attention need nothing: the mean over repeated tokens is the same. A class token is the exception: it attends to
itself once, and to every patch as often as there are patches along the new axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn

from monai.networks.state_dict.rules import Misfit

__all__ = ["INFLATIONS", "depth_weights", "inflate_kernel", "inflate_patches", "inflate_positions"]

INFLATIONS = ("average", "center")


def inflate_kernel(weight: torch.Tensor, layer: nn.Module, how: str) -> torch.Tensor:
    """
    The weight of a 2-D convolution as that of a 3-D one.

    Args:
        weight: (out, in, kernel of 2 axes); (in, out, ...) of a transposed convolution.
        layer: the 3-D convolution, whose last axis is the new one.
        how: "average" or "center", see :func:`depth_weights`.

    Returns:
        the weight with the layer's third axis, of the type of ``weight``.

    Raises:
        Misfit: see :func:`depth_weights`.
    """
    return _spread(weight, depth_weights(layer, how))


def inflate_patches(weight: torch.Tensor, depth: int, how: str) -> torch.Tensor:
    """
    The weight of a 2-D patch embedding as that of a 3-D one.

    Args:
        weight: (out, in, patch size of 2 axes).
        depth: patch size along the new axis.
        how: "average": every slice has the weight, divided by ``depth``; "center": the middle one has all of it.

    Returns:
        (out, in, patch size of 3 axes), of the type of ``weight``.
    """
    shares = [1.0 / depth] * depth if how == "average" else [float(place == (depth - 1) // 2) for place in range(depth)]
    return _spread(weight, shares)


def inflate_positions(values: torch.Tensor, depth: int) -> torch.Tensor:
    """
    Position embeddings of a 2-D grid for a 3-D one: those of a slice, in every slice.

    Args:
        values: (1, N, C).
        depth: number of tokens along the new axis.

    Returns:
        (1, N x depth, C)
    """
    return values.repeat_interleave(depth, dim=1)


def depth_weights(layer: Any, how: str) -> list[float]:
    """
    How much of a 2-D kernel each slice of the 3-D one has.

    Args:
        layer: a 3-D convolution, transposed or not.
        how: "average": as much for every slice that the same output sees. "center": all of it where the layer sees the
            slice that it stands for: in the middle; for a transposed convolution, in the slices that make one output
            each.

    Raises:
        Misfit: if no slice of the kernel lies inside of the volume for every output.
    """
    size, stride, dilation = layer.kernel_size[-1], layer.stride[-1], layer.dilation[-1]
    if isinstance(layer, nn.ConvTranspose3d):
        return _transposed(layer, size, stride, dilation, how)
    if how == "average":
        return [1.0 / size] * size
    middle = (size - 1) // 2
    before, after = _padding(layer, size, dilation)
    if layer.padding_mode == "zeros" and (before > middle * dilation or after > (size - 1 - middle) * dilation):
        raise Misfit(
            f"inflate='center' has no slice for a convolution of size {size} with {before} and {after} slices of "
            "padding: the middle one would see padding alone."
        )
    return [float(place == middle) for place in range(size)]


def _transposed(layer: Any, size: int, stride: int, dilation: int, how: str) -> list[float]:
    if dilation > 1 or size < stride:
        raise Misfit(
            f"a transposed convolution of size {size}, stride {stride} and dilation {dilation} is not inflated."
        )
    if how == "average":
        same = [len(range(place % stride, size, stride)) for place in range(size)]
        return [1.0 / number for number in same]
    padding, beyond = layer.padding[-1], layer.output_padding[-1]
    if padding + stride > size or size + beyond - 2 * padding > stride:
        raise Misfit(
            f"inflate='center' has no slices for a transposed convolution of size {size}, stride {stride}, padding "
            f"{padding} and output_padding {beyond}: some outputs would get nothing."
        )
    return [float(padding <= place < padding + stride) for place in range(size)]


def _padding(layer: Any, size: int, dilation: int) -> tuple[int, int]:
    """How many slices are padded before and after the last axis."""
    if layer.padding == "valid":
        return 0, 0
    if layer.padding == "same":
        both = dilation * (size - 1)
        return both // 2, both - both // 2
    return layer.padding[-1], layer.padding[-1]


def _spread(weight: torch.Tensor, shares: Sequence[float]) -> torch.Tensor:
    factors = torch.tensor(shares, dtype=torch.float64, device=weight.device)
    return (weight.double()[..., None] * factors).to(weight.dtype)
