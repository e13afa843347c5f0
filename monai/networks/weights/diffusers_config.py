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

"""Whether a network computes what a configuration of diffusers says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch.nn as nn

from monai.networks.blocks.spatialattention import SpatialAttentionBlock
from monai.networks.nets.autoencoderkl import AutoencoderKL, Decoder, Encoder

from .diffusers_autoencoder import PATHS
from .diffusers_classes import AUTOENCODER, CONDITIONED, UNCONDITIONED
from .diffusers_written import diffusers_config

__all__ = ["implied", "problems"]

TRANSFORMER_EPS = 1e-6  # diffusers has no arguments for these three
AUTOENCODER_EPS = 1e-6
LAYER_EPS = 1e-5
UNKNOWN_HEADS = (
    "nothing says how many heads attend, in how many groups the norms divide the channels, or how the time is encoded: "
    "give the configuration that diffusers saved beside the weights (config.json)."
)

# Stable Diffusion, whose shapes no other network of diffusers has: widths of the levels, of the context, and whether
# the projections around the transformers are convolutions
_WIDTHS = (320, 640, 1280, 1280)
_STABLE_DIFFUSION: dict[tuple[int, int], dict[str, Any]] = {
    (768, 4): {"attention_head_dim": 8, "flip_sin_to_cos": True, "freq_shift": 0},
    (1024, 2): {"attention_head_dim": [5, 10, 20, 20], "flip_sin_to_cos": True, "freq_shift": 0},
}


def implied(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """
    The configuration that the weights themselves show: that of Stable Diffusion 1 and 2, and of its autoencoder.

    Args:
        state: weights under diffusers' names.

    Returns:
        what matters of it; None where the weights may be anything
    """
    if _is_autoencoder(state):
        widths = _widths(state, "encoder.down_blocks.{}.resnets.0.conv2.weight")
        return {"layers_per_block": 2} if widths == (128, 256, 512, 512) else None
    context = state.get("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight")
    inside = state.get("down_blocks.0.attentions.0.proj_in.weight")
    if context is None or inside is None or _widths(state, "down_blocks.{}.resnets.0.conv2.weight") != _WIDTHS:
        return None
    return _STABLE_DIFFUSION.get((context.shape[-1], inside.dim()))


def _is_autoencoder(state: Mapping[str, Any]) -> bool:
    return any(key.startswith(("encoder.", "decoder.")) for key in state)


def _widths(state: Mapping[str, Any], pattern: str) -> tuple[int, ...]:
    widths: list[int] = []
    while pattern.format(len(widths)) in state:
        widths.append(int(state[pattern.format(len(widths))].shape[0]))
    return tuple(widths)


def problems(net: nn.Module, state: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """
    What our network would compute in another way than diffusers' did.

    Args:
        net: an AutoencoderKL or a DiffusionModelUNet.
        state: weights under diffusers' names; none where the network is to be written for diffusers.
        config: the configuration beside them, if there is one.
    """
    if not state:
        yield from _not_two_dimensional(net)
        if not list(_not_two_dimensional(net)):
            yield from _of_class(net, {}, diffusers_config(net))
    elif _is_autoencoder(state) != isinstance(net, AutoencoderKL):
        here, there = ("an autoencoder", "no autoencoder")[:: 1 if _is_autoencoder(state) else -1]
        yield f"The file holds {here}, and a {type(net).__name__} is {there}."
    else:
        found = dict(config) or implied(state)
        if found is None:
            yield UNKNOWN_HEADS
        else:
            yield from _of_class(net, state, found)


def _not_two_dimensional(net: Any) -> Iterator[str]:
    path = "encoder.blocks.0.conv.weight" if isinstance(net, AutoencoderKL) else "conv_in.conv.weight"
    weight = net.get_parameter(path)
    if weight.dim() != 4:
        yield f"The network has {weight.dim() - 2} spatial axes, and diffusers' have 2."


def _of_class(net: Any, state: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(net, AutoencoderKL):
        kind, check = AUTOENCODER, _autoencoder
    elif net.with_conditioning:
        kind, check = CONDITIONED, _unet
    else:
        kind, check = UNCONDITIONED, _unet
    name = config.get("_class_name", kind.name)
    if name != kind.name:
        remedy = "" if kind is AUTOENCODER else f", built with_conditioning={net.with_conditioning},"
        yield f"The configuration is of a {name}; a {type(net).__name__}{remedy} takes the weights of a {kind.name}."
        return
    yield from kind.misfits(config)
    yield from check(net, state, kind.complete(config))


def _autoencoder(net: Any, state: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    if not (isinstance(net.encoder, Encoder) and isinstance(net.decoder, Decoder)):
        yield f"The encoder and the decoder of a {type(net).__name__} are not those of an AutoencoderKL."
        return
    if not any(isinstance(block, nn.SiLU) for block in net.decoder.blocks):
        yield "The network is built as MONAI has it, diffusers' as in latent diffusion: as_in_latent_diffusion=True."
        return
    for half, _ in PATHS:
        part: Any = getattr(net, half)
        blocks = config["layers_per_block"] + (half == "decoder")
        if set(part.num_res_blocks) != {blocks}:
            yield (
                f"layers_per_block={config['layers_per_block']} in diffusers, where the {half} of this network has "
                f"{list(part.num_res_blocks)}, with one more in the decoder: build it with num_res_blocks="
                f"{config['layers_per_block']}."
            )
        attentions = sum(isinstance(block, SpatialAttentionBlock) for block in part.blocks)
        if attentions == sum(n for n, attends in zip(part.num_res_blocks, part.attention_levels) if attends):
            yield f"diffusers attends in the middle of the {half}: build the network with_{half}_nonlocal_attn=True."
    if any(isinstance(module, nn.modules.conv._ConvTransposeNd) for module in net.decoder.modules()):
        yield "diffusers repeats positions where this network's convolutions are transposed: use_convtranspose=False."
    for name in ("quant_conv", "post_quant_conv") if state else ():
        there = any(key.startswith(f"{name}.") for key in state)
        if there != config[f"use_{name}"]:
            yield f"{name}: the file has {'one' if there else 'none'}, the configuration says use_{name}={not there}."
    yield from _norms(net, config["norm_num_groups"], AUTOENCODER_EPS, AUTOENCODER_EPS)
    yield from _heads("the network", net, _exactly(1))


def _unet(net: Any, state: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    conditioned = net.with_conditioning
    groups = config["norm_num_groups"]
    yield from _norms(net, groups, config["norm_eps"], TRANSFORMER_EPS if conditioned else config["norm_eps"])
    if config.get("attn_norm_num_groups") not in (None, groups):
        yield f"attn_norm_num_groups={config['attn_norm_num_groups']}: this network has {groups} groups there."
    if any(getattr(stage, "resblock_updown", False) for stage in [*net.down_blocks, *net.up_blocks]):
        yield "diffusers changes the size by convolutions here: build the network with resblock_updown=False."
    if not conditioned and len(set(net.num_res_blocks)) > 1:
        yield f"UNet2DModel has one layers_per_block, this network num_res_blocks={list(net.num_res_blocks)}."
    if config.get("flip_sin_to_cos") is False and net.block_out_channels[0] % 2:
        yield "flip_sin_to_cos=False with an odd number of channels: the halves of the time's encoding differ."
    given = config["attention_head_dim"]
    heads = config.get("num_attention_heads") or given
    levels = len(net.block_out_channels)
    if isinstance(heads, (list, tuple)) and len(heads) != levels:
        yield f"The configuration has {len(heads)} numbers of heads, and the network {levels} levels."
        return
    per_level = list(heads) if isinstance(heads, (list, tuple)) else [heads] * levels
    stages = [(f"down_blocks.{i}", stage, per_level[i]) for i, stage in enumerate(net.down_blocks)]
    stages += [(f"up_blocks.{i}", stage, per_level[-1 - i]) for i, stage in enumerate(net.up_blocks)]
    for name, stage, number in [*stages, ("middle_block", net.middle_block, per_level[-1])]:
        yield from _heads(name, stage, _exactly(number) if conditioned else _of_width(number))


def _exactly(heads: int) -> Callable[[int], int]:
    return lambda width: heads


def _of_width(head: int | None) -> Callable[[int], int]:
    """As many heads as have a width; one of any width where it is None."""
    return lambda width: width // (head or width)


def _norms(net: nn.Module, groups: int, eps: float, transformer_eps: float) -> Iterator[str]:
    """The first norm that is another one than diffusers'."""
    for name, module in net.named_modules():
        if isinstance(module, nn.LayerNorm) and module.eps != LAYER_EPS:
            yield f"{name}: diffusers adds {LAYER_EPS} to the variance, this network {module.eps}."
            return
        if isinstance(module, nn.GroupNorm):
            transforms = name.split(".")[-2] in ("attention",) or ".attentions." in name
            want, argument = (transformer_eps, "transformer_norm_eps") if transforms else (eps, "norm_eps")
            if module.num_groups != groups:
                yield f"{name}: norm_num_groups={groups} in diffusers, {module.num_groups} in this network."
                return
            if module.eps != want:
                yield f"{name}: diffusers adds {want} to the variance, not {module.eps}: build it by {argument}={want}."
                return


def _heads(name: str, part: nn.Module, wanted: Callable[[int], int]) -> Iterator[str]:
    """The first attention in a part that is not diffusers', which has so many heads for its width."""
    for path, module in part.named_modules():
        if getattr(module, "layout_role", None) not in ("self attention", "cross attention"):
            continue
        if isinstance(module.out_proj, nn.Identity):
            yield f"{name}.{path}: diffusers has an output projection there: build the network with use_proj_attn=True."
            return
        heads, width = int(module.num_heads), int(module.inner_dim)
        number = wanted(width)
        if heads != number:
            remedy = f"build it with num_head_channels={width // number} at this level" if number else "build it alike"
            yield f"{name}.{path}: {number} heads attend in diffusers, and {heads} in this network: {remedy}."
            return
