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


"""The layout of the pristine release MONAI 1.6, for those who do not run the fork."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn as nn

from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.networks.blocks.attention.block import AttentionBlock
from monai.networks.blocks.attention.mask import lower_triangle
from monai.networks.blocks.crossattention import CrossAttentionBlock
from monai.networks.blocks.diffusion.network import DiffusionBackbone
from monai.networks.blocks.selfattention import SABlock
from monai.networks.nets.masked_autoencoder_vit import MaskedAutoEncoderViT
from monai.networks.nets.spade_diffusion_model_unet import SPADEDiffusionModelUNet
from monai.networks.nets.unetr import UNETR
from monai.networks.nets.vit import ViT
from monai.networks.nets.vitautoenc import ViTAutoEnc
from monai.networks.nets.vqvae import VQVAE
from monai.networks.state_dict.projections import Attention, identity

__all__ = ["release_arguments", "release_state_dict"]

# networks whose attention the release always builds with one linear and a projection
FIXED = (ViT, ViTAutoEnc, UNETR, MaskedAutoEncoderViT)
UNKNOWN_THERE = ("use_combined_linear", "use_flash_attention")
# the network whose upward path the release builds without its attention options
DEAF_UPWARD = SPADEDiffusionModelUNet
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def release_state_dict(net: nn.Module, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Bring a state dict to the layout that MONAI 1.6 loads strictly, to the same outputs.

    The release saves causal masks; where it builds a projection or a linear
    that ``net`` lacks, an identity and the split or joined weights stand in, which compute the same.

    Args:
        net: the network; its weights are not read, so that it may lie on the meta device.
        state_dict: its weights in the fork's layout.

    Returns:
        a new dictionary. The release's network takes it when it is built from :func:`release_arguments`.

    Raises:
        ValueError: if the release cannot compute what ``net`` does.
    """
    _refuse(net)
    adapted = dict(state_dict)
    masks: dict[int, torch.Tensor] = {}
    for path, block, fixed, deaf in _blocks(net):
        prefix = f"{path}." if path else ""
        if not block.use_proj_attn and (fixed or deaf or isinstance(block, CrossAttentionBlock)):
            adapted.update(identity(Attention(block, prefix), adapted))
        if isinstance(block, SABlock):
            _set_linears(adapted, prefix, fixed or (block.use_combined_linear and not deaf))
        if block.causal:
            length = block.sequence_length
            masks.setdefault(length, lower_triangle(length, length).float())
            adapted[f"{prefix}causal_mask"] = masks[length]
    return adapted


def release_arguments(net: nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
    """
    Arguments from which the release builds the network that takes :func:`release_state_dict`.

    Args:
        net: the fork's network.
        arguments: what it was built from.
    """
    kept = {name: value for name, value in arguments.items() if name != "use_proj_attn"}
    if isinstance(net, FIXED):
        return {name: value for name, value in kept.items() if name not in UNKNOWN_THERE}
    if arguments.get("use_proj_attn") is not None:
        kept["include_fc"] = arguments["use_proj_attn"]
    return kept


def _blocks(net: nn.Module) -> Iterator[tuple[str, Any, bool, bool]]:
    """
    Path and attention block, and whether the release builds it in its one fixed way, or without
    the network's options.
    """
    fixed = _prefixes(net, FIXED)
    deaf = tuple(f"{prefix}up_blocks." for prefix in _prefixes(net, DEAF_UPWARD))
    for path, module in net.named_modules():
        if isinstance(module, AttentionBlock):
            yield path, module, f"{path}.".startswith(fixed), f"{path}.".startswith(deaf)


def _prefixes(net: nn.Module, kinds: type | tuple[type, ...]) -> tuple[str, ...]:
    """What the keys begin with of the networks of these kinds, ``net`` itself or in it."""
    return tuple(f"{path}." if path else "" for path, module in net.named_modules() if isinstance(module, kinds))


def _set_linears(adapted: dict[str, torch.Tensor], prefix: str, combined: bool) -> None:
    """Join the linears of q, k and v, or split them, where they are not that way yet."""
    for kind in ("weight", "bias"):
        whole, parts = f"{prefix}qkv.{kind}", [f"{prefix}to_{name}.{kind}" for name in "qkv"]
        if combined and parts[0] in adapted:
            adapted[whole] = torch.cat([adapted.pop(key) for key in parts])
        elif not combined and whole in adapted:
            adapted.update(zip(parts, adapted.pop(whole).chunk(3)))


def _refuse(net: nn.Module) -> None:
    """
    Raise where the release raises, or computes something else with the same weights.

    Raises:
        ValueError: if it does.
    """
    kinds = ((module, dims, kind) for module in net.modules() for dims, kind in CONVOLUTIONS.items())
    dims = next((dims for module, dims, kind in kinds if isinstance(module, kind)), None)
    in_1d = dims == 1 and isinstance(net, (DiffusionBackbone, VQVAE))
    if in_1d or (dims != 3 and isinstance(net, AutoencoderKlMaisi)):
        raise ValueError(
            f"MONAI 1.6 cannot run {type(net).__name__} with spatial_dims={dims}: keep this checkpoint for the fork."
        )
    for path, module in net.named_modules():
        if isinstance(module, AttentionBlock) and module.fused_rel_pos and len(module.input_size or ()) == 3:
            raise ValueError(
                f"{path} has decomposed relative positions in 3-D, which MONAI 1.6 computes wrongly: it would not "
                "reproduce the outputs. Keep this checkpoint for the fork."
            )
