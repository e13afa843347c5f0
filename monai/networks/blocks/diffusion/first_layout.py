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


"""Where the parts of the first diffusion U-Nets, from before GenerativeModels 0.1.0, stand in the present ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.nn as nn

from monai.networks.state_dict.rules import Rename

__all__ = ["first_places"]


def first_places(net: Any) -> list[Rename]:
    """
    Renames of all parts of a network. Its first layout numbers them one after another (``input_blocks``,
    ``middle_block``, ``output_blocks``): which residual block, attention or sampler a number stands for follows from
    the network's levels.

    Args:
        net: a :class:`DiffusionUNetBackbone`.
    """
    return [Rename(old, new) for old, new in _places(net)]


def _places(net: Any) -> Iterator[tuple[str, str]]:
    """The prefixes of all parts of a network, the first layout's and the present ones."""
    yield "label_emb.", "class_embedding."
    yield "input_blocks.0.0.", "conv_in."
    number = 1
    for level, stage in enumerate(net.down_blocks):
        for parts in _numbered(stage, f"down_blocks.{level}"):
            yield from _numbered_places(f"input_blocks.{number}", parts)
            number += 1
        if stage.downsampler is not None:
            yield f"input_blocks.{number}.0.", f"down_blocks.{level}.downsampler."
            number += 1
    middle = ["middle_block.resnet_1", "middle_block.attention", "middle_block.resnet_2"]
    yield from _numbered_places("middle_block", middle)
    number = 0
    for level, stage in enumerate(net.up_blocks):
        for last, parts in enumerate(_numbered(stage, f"up_blocks.{level}"), 1 - len(stage.resnets)):
            sampler = [f"up_blocks.{level}.upsampler"] if last == 0 and stage.upsampler is not None else []
            yield from _numbered_places(f"output_blocks.{number}", parts + sampler)
            number += 1


def _numbered(stage: Any, path: str) -> Iterator[list[str]]:
    """For each residual block of a stage, the paths of it and of the attention that follows, if one does."""
    attends = isinstance(getattr(stage, "attentions", None), nn.ModuleList) and _has_weights(stage.attentions)
    for number in range(len(stage.resnets)):
        yield [f"{path}.resnets.{number}", *([f"{path}.attentions.{number}"] if attends else [])]


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _numbered_places(old: str, paths: list[str]) -> Iterator[tuple[str, str]]:
    for number, path in enumerate(paths):
        yield f"{old}.{number}.", f"{path}."
