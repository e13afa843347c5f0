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

"""Attention between all positions of a volume that is seen slab by slab."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn as nn

from monai.networks.blocks.attention.block import runs_own_forward
from monai.networks.blocks.reach import computes_as
from monai.networks.blocks.spatialattention import SpatialAttentionBlock
from monai.networks.blocks.volume_statistics import Statistics, normalize
from monai.networks.state_dict.torch_private import has_hooks_that_see_values
from monai.networks.volumes.stream_sizes import Box, VolumeSize
from monai.networks.volumes.stream_storage import part_of

__all__ = ["attend_in_slabs", "attends_in_slabs"]


def attends_in_slabs(block: nn.Module) -> bool:
    """Whether a block of attention can be computed slab by slab: nobody changes or watches what it computes."""
    if type(block) is not SpatialAttentionBlock or type(block.norm) is not nn.GroupNorm:
        return False
    if not computes_as(block.norm, (nn.GroupNorm,)):
        return False
    attention = block.attn
    if not runs_own_forward(attention) or attention.save_attn or not attention.fuses:
        return False
    watched = any(has_hooks_that_see_values(module) for module in block.modules())
    return attention.rel_positional_embedding is None and not watched


def attend_in_slabs(
    block: Any, volume: VolumeSize, result: Box, length: int, read: Callable[[Box], torch.Tensor]
) -> Iterator[tuple[Box, torch.Tensor]]:
    """
    Compute a block of attention, with the keys and values of the whole volume on the device.

    Args:
        block: the block.
        volume: size of its input.
        result: which part of its output is wanted.
        length: thickness of the slabs along the first axis. One slab is the whole: then the block is called.
        read: brings a part of the input to the device.

    Returns:
        every slab of the result, with its place
    """
    if length >= volume.sizes[0]:
        yield result, part_of(block(read(volume.whole)), result)
        return
    slabs = list(_slabs(volume.whole, length))
    statistics = Statistics()
    for slab in slabs:
        statistics.add(read(slab))
    mean, variance = statistics.of_groups(block.norm.num_groups)

    def projected(slab: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        x = normalize(slab, mean, variance, block.norm.weight, block.norm.bias, block.norm.eps)
        tokens = x.flatten(2).transpose(1, 2)
        return tokens, block.attn.project(tokens)

    keys, values = _of_all((projected(read(slab))[1][1:] for slab in slabs), volume.positions)

    def attended(slab: torch.Tensor) -> torch.Tensor:
        tokens, (queries, *_) = projected(slab)
        found = block.attn.attend(tokens, queries, keys, values, None)
        out: torch.Tensor = found.transpose(1, 2).reshape(slab.shape) + slab
        return out

    for place in _slabs(result, length):
        yield place, attended(read(place))


def _of_all(slabs: Iterator[tuple[torch.Tensor, torch.Tensor]], number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of all ``number`` positions, (B, heads, N, C), of those of slabs: never twice on the device."""
    whole: tuple[torch.Tensor, ...] = ()
    begin = 0
    for pair in slabs:
        length = pair[0].shape[2]
        whole = whole or tuple(each.new_empty((*each.shape[:2], number, each.shape[3])) for each in pair)
        for target, each in zip(whole, pair):
            target.narrow(2, begin, length).copy_(each)
        begin += length
        del pair, each  # before the next ones are computed
    keys, values = whole
    return keys, values


def _slabs(box: Box, length: int) -> Iterator[Box]:
    """Slabs of a box along its first axis."""
    begin, end = box[0]
    for first in range(begin, end, length):
        yield ((first, min(first + length, end)), *box[1:])
