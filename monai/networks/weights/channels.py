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

"""Weights of other numbers of channels: of the image that comes in, or of what goes out."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai.networks.state_dict.rules import Misfit

__all__ = ["IN_CHANNELS", "adapt_in_channels", "adapt_out_channels"]

IN_CHANNELS = ("mean", "repeat")

Indices = Sequence["int | None"]


def adapt_in_channels(
    weight: torch.Tensor, number: int, how: str | Indices, own: torch.Tensor | None = None
) -> torch.Tensor:
    """
    The weight of a first layer for another number of the image's channels.

    Args:
        weight: (out, in, kernel).
        number: of the channels that the image has now.
        how: ``"mean"``: every channel has the sum of the old channels' weights, divided by ``number``.
            ``"repeat"``: channel j has the weight of the old channel j modulo their number, divided by how many
            channels have the same; one channel has the sum of all. Either way an image whose channels are equal gives
            what it gave before. Or, for each channel, the old one whose weight it has, unchanged; None leaves the
            channel as it is in ``own``.
        own: (out, number, kernel), what the network has.

    Returns:
        (out, number, kernel), of the type of ``weight``.

    Raises:
        Misfit: if "repeat" would drop channels, an index is none of the old channels, there is another number of
            indices, or ``own`` is needed and not there.
    """
    old = weight.shape[1]
    exact = weight.double()
    if how == "mean" or (how == "repeat" and number == 1):
        mean = exact.sum(1, keepdim=True) / number
        return mean.expand(-1, number, *[-1] * (weight.dim() - 2)).to(weight.dtype).contiguous()
    if how == "repeat":
        if number < old:
            raise Misfit(
                f"in_channels='repeat' cannot make {number} channels of {old} without leaving some out: take 'mean', "
                "or say by a tuple of indices which of them stay."
            )
        times = [sum(1 for channel in range(number) if channel % old == index) for index in range(old)]
        parts = [exact[:, channel % old] / times[channel % old] for channel in range(number)]
        return torch.stack(parts, dim=1).to(weight.dtype)
    return _picked(weight, number, how, own, 1, "in_channels")  # type: ignore[arg-type]


def adapt_out_channels(
    weight: torch.Tensor, indices: Indices, own: torch.Tensor | None = None, dim: int = 0
) -> torch.Tensor:
    """
    The weight or bias of a last layer for other channels or classes.

    Args:
        weight: the old one.
        indices: for each new channel the old one that it is; None leaves it as it is in ``own``.
        own: what the network has, with ``len(indices)`` channels.
        dim: the axis of the channels; 1 for a transposed convolution. Defaults to 0.

    Returns:
        a tensor with ``len(indices)`` channels, of the type of ``weight``.

    Raises:
        Misfit: if an index is none of the old channels, or ``own`` is needed and not there.
    """
    return _picked(weight, len(indices), indices, own, dim, "out_channels")


def _picked(
    weight: torch.Tensor, number: int, indices: Indices, own: torch.Tensor | None, dim: int, option: str
) -> torch.Tensor:
    old = weight.shape[dim]
    if len(indices) != number:
        raise Misfit(f"{option} has {len(indices)} indices, and the network {number} channels: give one for each.")
    wrong = [index for index in indices if index is not None and not 0 <= index < old]
    if wrong:
        raise Misfit(f"{option} asks for the old channels {wrong}, and there are {old}, counted from 0.")
    if None in indices and (own is None or own.is_meta):
        raise Misfit(f"{option} leaves channels as they are (None), and the network's weights are not there.")
    parts = []
    for place, index in enumerate(indices):
        if index is None and own is not None:
            parts.append(own.detach().select(dim, place).to(weight))
        elif index is not None:
            parts.append(weight.select(dim, index))
    return torch.stack(parts, dim=dim)
