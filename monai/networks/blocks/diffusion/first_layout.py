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


"""The keys of the first diffusion U-Nets, from before GenerativeModels 0.1.0, which came from latent diffusion."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn as nn

from monai.networks.blocks.attention_loading import rename_prefix
from monai.networks.blocks.diffusion.layers import ResidualBlock, WrappedUpsample
from monai.networks.blocks.spatialattention import SpatialAttentionBlock

__all__ = ["adapt_first_layout"]


def adapt_first_layout(net: Any, state_dict: dict[str, torch.Tensor], prefix: str) -> None:
    """
    Bring the first layout's keys to a network's. Changes ``state_dict``.

    Its blocks are numbered one after another (``input_blocks``, ``middle_block``, ``output_blocks``): which residual
    block, attention or sampler a number stands for follows from the network's levels. One convolution gives q, k and v,
    interleaved by heads, whose number the network knows, too. A key that finds no place keeps its name, and so is
    refused.

    Args:
        net: a :class:`DiffusionUNetBackbone`.
        state_dict: the checkpoint.
        prefix: of the network's keys.
    """
    for old, new in _places(net):
        rename_prefix(state_dict, prefix + old, prefix + new)
    for path, module in net.named_modules():
        if isinstance(module, ResidualBlock):
            _adapt_residual(state_dict, f"{prefix}{path}.")
        elif isinstance(module, WrappedUpsample):
            rename_prefix(state_dict, f"{prefix}{path}.conv.", f"{prefix}{path}.postconv.")
        elif isinstance(module, SpatialAttentionBlock):
            _adapt_attention(module, state_dict, f"{prefix}{path}.")
    _name_convolutions(net, state_dict, prefix)


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


def _adapt_residual(state_dict: dict[str, torch.Tensor], prefix: str) -> None:
    """Norm and convolution are the first and last numbered layers of ``in_layers``, and of ``out_layers``."""
    for layers, norm, conv in (("in_layers", "norm1", "conv1"), ("out_layers", "norm2", "conv2")):
        numbers = _layer_numbers(state_dict, f"{prefix}{layers}.")
        if len(numbers) == 2:
            rename_prefix(state_dict, f"{prefix}{layers}.{numbers[0]}.", f"{prefix}{norm}.")
            rename_prefix(state_dict, f"{prefix}{layers}.{numbers[1]}.", f"{prefix}{conv}.")
    for number in _layer_numbers(state_dict, f"{prefix}emb_layers."):
        rename_prefix(state_dict, f"{prefix}emb_layers.{number}.", f"{prefix}time_emb_proj.")


def _layer_numbers(state_dict: dict[str, torch.Tensor], prefix: str) -> list[int]:
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return sorted({int(match[1]) for match in map(pattern.match, state_dict) if match})


def _adapt_attention(block: SpatialAttentionBlock, state_dict: dict[str, torch.Tensor], prefix: str) -> None:
    """The rows of ``qkv`` are ordered by head, then by q, k and v, then by the head's channels."""
    for wrapped in ("conv.", ""):
        rename_prefix(state_dict, f"{prefix}proj_out.{wrapped}", f"{prefix}attn.out_proj.")
        for kind in ("weight", "bias"):
            rows = state_dict.get(f"{prefix}qkv.{wrapped}{kind}")
            if rows is None or rows.shape[0] != 3 * block.attn.inner_dim:
                continue
            del state_dict[f"{prefix}qkv.{wrapped}{kind}"]
            separate = rows.reshape(block.attn.num_heads, 3, block.attn.head_dim, -1).transpose(0, 1).flatten(1, 2)
            for name, values in zip("qkv", separate):
                state_dict[f"{prefix}attn.to_{name}.{kind}"] = values if kind == "weight" else values[:, 0]
    weight = f"{prefix}attn.out_proj.weight"
    if weight in state_dict:
        state_dict[weight] = state_dict[weight].flatten(1)


def _name_convolutions(net: nn.Module, state_dict: dict[str, torch.Tensor], prefix: str) -> None:
    """Give the weights of bare convolutions the keys of wrapped ones."""
    for key in net.state_dict():
        path, wrapped, kind = key.rpartition("conv.")
        if wrapped and kind in ("weight", "bias") and f"{prefix}{path}{kind}" in state_dict:
            state_dict[f"{prefix}{key}"] = state_dict.pop(f"{prefix}{path}{kind}")
