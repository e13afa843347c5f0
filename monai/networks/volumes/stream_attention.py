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

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn as nn

from monai.networks.blocks.attention.block import runs_own_forward
from monai.networks.blocks.spatialattention import SpatialAttentionBlock
from monai.networks.blocks.volume_statistics import Statistics, normalize
from monai.networks.state_dict.torch_private import has_hooks_that_see_values
from monai.networks.volumes.stream_sizes import Box
from monai.networks.volumes.stream_storage import Transfers

__all__ = ["attend_in_slabs", "attends_in_slabs"]


def attends_in_slabs(block: nn.Module) -> bool:
    """Whether a block of attention can be computed slab by slab: nobody changes or watches what it computes."""
    if type(block) is not SpatialAttentionBlock or type(block.norm) is not nn.GroupNorm:
        return False
    attention = block.attn
    if not runs_own_forward(attention) or attention.save_attn or not attention.fuses:
        return False
    watched = any(has_hooks_that_see_values(module) for module in block.modules())
    return attention.rel_positional_embedding is None and not watched


def attend_in_slabs(
    block: Any, volume: torch.Tensor, length: int, transfers: Transfers
) -> Iterator[tuple[Box, torch.Tensor]]:
    """
    Compute a block of attention, with the keys and values of the whole volume on the device.

    Args:
        block: the block.
        volume: where its input rests, (B, C, sizes).
        length: thickness of the slabs along the first axis. One slab is the whole: then the block is called.
        transfers: brings slabs to the device.

    Returns:
        every slab of the result, with its place
    """
    size, others = volume.shape[2], tuple((0, each) for each in volume.shape[3:])
    if length >= size:
        yield ((0, size), *others), block(transfers.read(volume))
        return
    slabs = [(begin, min(begin + length, size)) for begin in range(0, size, length)]

    def read() -> Iterator[torch.Tensor]:
        for begin, end in slabs:
            yield transfers.read(volume[:, :, begin:end])

    statistics = Statistics()
    for slab in read():
        statistics.add(slab)
    mean, variance = statistics.of_groups(block.norm.num_groups)

    def projected(slab: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        x = normalize(slab, mean, variance, block.norm.weight, block.norm.bias, block.norm.eps)
        tokens = x.flatten(2).transpose(1, 2)
        return tokens, block.attn.project(tokens)

    keys_and_values = [projected(slab)[1][1:] for slab in read()]
    keys = torch.cat([keys for keys, _ in keys_and_values], 2)
    values = torch.cat([values for _, values in keys_and_values], 2)
    del keys_and_values
    for place, slab in zip(slabs, read()):
        tokens, (queries, _, _) = projected(slab)
        attended = block.attn.attend(tokens, queries, keys, values, None)
        yield (place, *others), attended.transpose(1, 2).reshape(slab.shape) + slab
