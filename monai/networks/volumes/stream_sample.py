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
What a network itself makes of a few positions: of the class, and laid out in memory, as a streamed result has to be.

It runs before the steps do, and has to fit into the memory, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn as nn

from monai.networks.blocks.reach import computes_as_declared
from monai.networks.blocks.volume_steps import Layer
from monai.networks.state_dict.torch_private import children_by_key, twin_of_class
from monai.networks.volumes.stream_plan import bytes_in_one_piece
from monai.networks.volumes.stream_run import sizes_after
from monai.networks.volumes.stream_sizes import SizedStep, Sizes, VolumeSize
from monai.networks.volumes.stream_storage import Layout, layout_of

__all__ = ["Sample", "as_class_of", "bytes_of_sample", "plain", "sample_of"]


@dataclass(frozen=True)
class Sample:
    """
    What a result looks like.

    Args:
        layout: what is contiguous in it.
        empty: a tensor without values, of the result's class and with its metadata.
    """

    layout: Layout
    empty: torch.Tensor = field(repr=False)


def sample_of(path: nn.Module, sizes: Sizes, given: Sequence[torch.Tensor], device: torch.device) -> Sample:
    """
    Let a network compute a few positions.

    Args:
        path: the network.
        sizes: its steps, and the sizes of its inputs.
        given: the inputs, whose class and metadata the few positions get.
        device: the device that computes.
    """
    few = [
        as_class_of(torch.zeros((volume.batch, volume.channels, *volume.sizes), dtype=volume.dtype, device=device), x)
        for volume, x in zip(_few_positions(sizes), given)
    ]
    try:
        made: torch.Tensor = _in_one_piece(path)(*few)
    except RuntimeError:  # too few for a large kernel: then the result is laid out as images are
        return Sample(Layout.CHANNELS, as_class_of(torch.empty(0), given[0]))
    return Sample(layout_of(plain(made)), as_class_of(torch.empty(0), made))


def bytes_of_sample(sizes: Sizes) -> int:
    """How many bytes the device holds at most while the network computes a few positions in one piece."""
    few = Sizes(sizes.steps, _few_positions(sizes))
    for step in sizes.sized:
        try:
            few.add(_shortened(step, few))
        except ValueError:  # too few for this layer: the network does not come further, either
            break
    return bytes_in_one_piece(few)


def _few_positions(sizes: Sizes) -> list[VolumeSize]:
    """
    The inputs of two images, as one does not tell how images are laid out, with as few positions as every layer that
    halves the size leaves two of.
    """
    reaches = [op.reaches for step in sizes.sized for op in step.step.operations if isinstance(op, Layer)]
    length = 2 * max([math.prod(reach.down for reach in axis) for axis in zip(*reaches)], default=1)
    return [_of_few(each, tuple(min(size, length) for size in each.sizes)) for each in sizes.inputs]


def _of_few(volume: VolumeSize, sizes: tuple[int, ...]) -> VolumeSize:
    return replace(volume, batch=min(volume.batch, 2), sizes=sizes)


def _shortened(step: SizedStep, few: Sizes) -> SizedStep:
    """A step that gets a few positions."""
    axes = [few.volume(step.step.source).sizes]
    for operation in step.step.operations:
        axes.append(sizes_after(operation, axes[-1], few))
    volumes = tuple(_of_few(each, found) for each, found in zip(step.volumes, axes))
    return SizedStep(step.step, volumes, _of_few(step.result, axes[-1]))


class _OnePiece(nn.Module):
    """
    A layer that cuts no volume by itself: its pieces overlap, and would take more than a few positions do.

    Args:
        layer: the layer, which has a method ``in_one_piece``.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, sizes) to what the layer makes of it."""
        found: torch.Tensor = self.layer.in_one_piece(x)
        return found


def _in_one_piece(module: nn.Module) -> nn.Module:
    """A module on the same tensors whose layers cut no volumes; itself if they cut none."""
    inner = dict(children_by_key(module))
    children = {name: _in_one_piece(child) for name, child in inner.items()}
    if any(children[name] is not child for name, child in inner.items()):
        return twin_of_class(module, type(module), children, lambda hook: False)
    return _OnePiece(module) if computes_as_declared(module, "in_one_piece") else module


def plain(x: torch.Tensor) -> torch.Tensor:
    """``x`` without the metadata that it may carry."""
    return x.as_subclass(torch.Tensor) if type(x) is not torch.Tensor else x


def as_class_of(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """``x`` as a tensor of the class of ``other``, with its metadata."""
    if type(other) is torch.Tensor:
        return x
    found = x.as_subclass(type(other))
    found.__dict__.update(other.__dict__)
    return found
