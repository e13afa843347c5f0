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

"""The configuration with which diffusers builds a network like ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn as nn

from monai.networks.nets.autoencoderkl import AutoencoderKL

__all__ = ["diffusers_config"]


def diffusers_config(net: nn.Module) -> dict[str, Any]:
    """
    The configuration with which diffusers builds a network like ours, as it stands in its ``config.json``.

    Args:
        net: an AutoencoderKL or a DiffusionModelUNet with two spatial axes.

    Example::

        theirs = diffusers.UNet2DConditionModel.from_config(diffusers_config(net))
        theirs.load_state_dict(translate_back(net, net.state_dict(), DIFFUSERS))
    """
    return _autoencoder(net) if isinstance(net, AutoencoderKL) else _unet(net)


def _autoencoder(net: AutoencoderKL) -> dict[str, Any]:
    encoder: Any = net.encoder
    levels = list(encoder.attention_levels)
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": encoder.in_channels,
        "out_channels": net.decoder.out_channels,
        "down_block_types": [f"{'Attn' * on}DownEncoderBlock2D" for on in levels],
        "up_block_types": [f"{'Attn' * on}UpDecoderBlock2D" for on in reversed(levels)],
        "block_out_channels": list(encoder.channels),
        "layers_per_block": encoder.num_res_blocks[0],
        "latent_channels": net.latent_channels,
        "norm_num_groups": encoder.norm_num_groups,
        "act_fn": "silu",
    }


def _unet(net: Any) -> dict[str, Any]:
    first = net.middle_block.resnet_1
    config = {
        "in_channels": net.in_channels,
        "out_channels": net.out_channels,
        "block_out_channels": list(net.block_out_channels),
        "norm_num_groups": first.norm1.num_groups,
        "norm_eps": first.norm1.eps,
        "num_class_embeds": net.num_class_embeds,
        "act_fn": "silu",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "downsample_padding": 1,
    }
    return {**config, **(_conditioned(net) if net.with_conditioning else _unconditioned(net))}


def _types(kind: str, levels: Sequence[bool]) -> dict[str, list[str]]:
    return {
        "down_block_types": [f"{kind * on}DownBlock2D" for on in levels],
        "up_block_types": [f"{kind * on}UpBlock2D" for on in reversed(levels)],
    }


def _conditioned(net: Any) -> dict[str, Any]:
    layers = net.middle_block.attention.transformer_blocks
    return {
        "_class_name": "UNet2DConditionModel",
        **_types("CrossAttn", net.attention_levels),
        "layers_per_block": list(net.num_res_blocks),
        "cross_attention_dim": layers[0].attn2.context_input_size,
        "transformer_layers_per_block": len(layers),
        "attention_head_dim": [  # the number of heads: diffusers keeps this name, see its issue 2011
            width // head for width, head in zip(net.block_out_channels, net.num_head_channels)
        ],
    }


def _unconditioned(net: Any) -> dict[str, Any]:
    alone = list(net.num_head_channels) == list(net.block_out_channels)  # one head at every level
    return {
        "_class_name": "UNet2DModel",
        **_types("Attn", net.attention_levels),
        "layers_per_block": net.num_res_blocks[-1],
        "attention_head_dim": None if alone else net.num_head_channels[-1],
    }
