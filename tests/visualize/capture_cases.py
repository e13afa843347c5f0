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


"""Small networks and blocks with attention, what they are called with, and how their attention is captured."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn as nn

from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.apps.generation.maisi.networks.controlnet_maisi import ControlNetMaisi
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from monai.networks.blocks import CrossAttentionBlock, SABlock
from monai.networks.nets import (
    UNETR,
    AutoencoderKL,
    ControlNet,
    DecoderOnlyTransformer,
    DiffusionModelUNet,
    MaskedAutoEncoderViT,
    SPADEAutoencoderKL,
    SPADEDiffusionModelUNet,
    ViT,
    ViTAutoEnc,
)
from monai.networks.nets.diffusion_model_unet import DiffusionModelEncoder
from monai.visualize.attention.capture import capture_attention
from monai.visualize.attention.maps import AttentionMap
from tests.networks.nets.diffusion_cases import BASE, CONDITIONED, inputs, normal, randomized

PATCHES = {"in_channels": 1, "hidden_size": 24, "mlp_dim": 32, "num_heads": 4}
VIT = {**PATCHES, "num_layers": 2, "img_size": (16, 8), "patch_size": 4, "spatial_dims": 2}
MAE = {"decoder_hidden_size": 12, "decoder_mlp_dim": 16, "decoder_num_layers": 2, "decoder_num_heads": 2}
WORDS = {
    "num_tokens": 7,
    "max_seq_len": 9,
    "attn_layers_dim": 24,
    "attn_layers_depth": 2,
    "attn_layers_heads": 4,
}
LEVELS = {"num_res_blocks": (1, 1), "attention_levels": (False, True), "latent_channels": 4, "norm_num_groups": 4}
KL = {**LEVELS, "spatial_dims": 2, "channels": (8, 16)}
SPADE_KL = {**KL, "label_nc": 3, "spade_intermediate_channels": 8}
MAISI_KL = {**LEVELS, "spatial_dims": 3, "num_channels": (8, 16), "in_channels": 1, "out_channels": 1}
MAISI_KL |= {"num_splits": 2, "with_encoder_nonlocal_attn": True, "with_decoder_nonlocal_attn": True}
UNET = {**BASE, "out_channels": 1}
MAISI = {**{key: value for key, value in BASE.items() if key != "channels"}, "num_channels": (8, 16)}
CONTROL = {"conditioning_embedding_in_channels": 2, "conditioning_embedding_num_channels": (4, 8)}
SPADE = {**UNET, "label_nc": 3, "spade_intermediate_channels": 8}
TOKENS = torch.tensor([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]])
CONTEXT_MASK = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 0]])


def diffusion(cls: type[nn.Module], kwargs: dict[str, Any]) -> tuple:
    return cls, kwargs, (), inputs(kwargs)


NETWORKS = {
    "vit": (ViT, {**VIT, "classification": True}, (normal(2, 1, 16, 8),), {}),
    "vit_3d": (ViT, {**VIT, "img_size": (8, 12, 4), "spatial_dims": 3}, (normal(2, 1, 8, 12, 4),), {}),
    "vitautoenc": (ViTAutoEnc, VIT, (normal(2, 1, 16, 8),), {}),
    "unetr": (
        UNETR,
        {**PATCHES, "out_channels": 2, "img_size": (32, 48), "feature_size": 4, "spatial_dims": 2},
        (normal(1, 1, 32, 48),),
        {},
    ),
    "mae": (MaskedAutoEncoderViT, {**VIT, **MAE, "masking_ratio": 0.5}, (normal(2, 1, 16, 8),), {}),
    "decoder": (DecoderOnlyTransformer, WORDS, (TOKENS,), {}),
    "decoder_with_context": (
        DecoderOnlyTransformer,
        {**WORDS, "with_cross_attention": True},
        (TOKENS, normal(2, 4, 24)),
        {"context_mask": CONTEXT_MASK},
    ),
    "autoencoderkl": (AutoencoderKL, KL, (normal(2, 1, 12, 8),), {}),
    "spade_autoencoderkl": (SPADEAutoencoderKL, SPADE_KL, (normal(2, 1, 12, 8), normal(2, 3, 12, 8)), {}),
    "maisi_autoencoderkl": (AutoencoderKlMaisi, MAISI_KL, (normal(1, 1, 8, 12, 8),), {}),
    "unet": diffusion(DiffusionModelUNet, UNET),
    "unet_3d": diffusion(DiffusionModelUNet, {**UNET, "spatial_dims": 3}),
    "unet_conditioned": diffusion(DiffusionModelUNet, {**UNET, **CONDITIONED}),
    "unet_upcast": diffusion(DiffusionModelUNet, {**UNET, **CONDITIONED, "upcast_attention": True}),
    "controlnet": diffusion(ControlNet, {**BASE, **CONTROL}),
    "spade_unet": diffusion(SPADEDiffusionModelUNet, SPADE),
    "spade_unet_conditioned": diffusion(SPADEDiffusionModelUNet, {**SPADE, **CONDITIONED}),
    "maisi_unet": diffusion(DiffusionModelUNetMaisi, {**MAISI, "out_channels": 1, "include_spacing_input": True}),
    "maisi_unet_conditioned": diffusion(DiffusionModelUNetMaisi, {**MAISI, **CONDITIONED, "out_channels": 1}),
    "maisi_controlnet": diffusion(ControlNetMaisi, {**MAISI, **CONTROL}),
    "encoder": diffusion(DiffusionModelEncoder, {**UNET, "input_shape": (8, 8)}),
}
HALF = torch.bfloat16
GRID = {"rel_pos_embedding": "decomposed", "input_size": (3, 4)}
VOLUME = {"rel_pos_embedding": "decomposed", "input_size": (2, 3, 2)}
SELF = {"hidden_size": 24, "num_heads": 4, "qkv_bias": True}
CROSS = {**SELF, "context_input_size": 8}
PAIRS = torch.rand(2, 12, 12, generator=torch.Generator().manual_seed(5)) < 0.5
PAIRS[0, 3] = False  # a query without any key
BLOCKS = {
    "plain": (SABlock, SELF, {}),
    "separate_linears": (SABlock, {**SELF, "use_combined_linear": False, "use_proj_attn": False}, {}),
    "mask_over_keys": (SABlock, SELF, {"attn_mask": torch.arange(12).remainder(3).expand(2, -1)}),
    "mask_of_pairs": (SABlock, SELF, {"attn_mask": PAIRS}),
    "mask_of_all_heads": (SABlock, SELF, {"attn_mask": PAIRS[:, None]}),
    "mask_a_head": (SABlock, SELF, {"attn_mask": torch.stack([PAIRS, ~PAIRS, PAIRS.mT, ~PAIRS.mT], dim=1)}),
    "causal": (SABlock, {**SELF, "causal": True, "sequence_length": 8}, {}),
    "rel_pos": (SABlock, {**SELF, **GRID}, {}),
    "rel_pos_3d_mask": (SABlock, {**SELF, **VOLUME}, {"attn_mask": PAIRS}),
    "half": (SABlock, {**SELF, "attention_dtype": HALF}, {}),
    "cross": (CrossAttentionBlock, CROSS, {"context": normal(2, 5, 8)}),
    "cross_without_context": (CrossAttentionBlock, SELF, {}),
    "cross_mask": (CrossAttentionBlock, CROSS, {"context": normal(2, 12, 8), "attn_mask": PAIRS}),
    "cross_causal": (
        CrossAttentionBlock,
        {**CROSS, "causal": True, "sequence_length": 12},
        {"context": normal(2, 7, 8)},
    ),
    "cross_rel_pos": (
        CrossAttentionBlock,
        {**CROSS, **GRID, "rel_pos_embedding": ("decomposed", {"s_context_dims": (5, 2)})},
        {"context": normal(2, 10, 8)},
    ),
}


def build(cls: type[nn.Module], kwargs: dict[str, Any]) -> nn.Module:
    return randomized(cls(**kwargs))


def saving(net: nn.Module) -> nn.Module:
    """A copy of ``net`` whose blocks keep their matrices."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if hasattr(module, "att_mat"):
            module.save_attn = True
    return net


def run(net: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Call ``net`` without gradient, with the same random numbers every time."""
    torch.manual_seed(0)
    with torch.no_grad():
        return net(*args, **kwargs)


def captured(net: nn.Module, args: tuple, kwargs: dict[str, Any] | None = None, **options: Any) -> list[AttentionMap]:
    with capture_attention(net, **options) as capture:
        run(net, args, kwargs or {})
    return capture.maps


def vit(**kwargs: Any) -> nn.Module:
    return build(ViT, {**VIT, **kwargs})
