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

"""The cases that have targets of their own."""

from __future__ import annotations

from typing import Any

from benchmarks.case import Case, Goals, Input

__all__ = [
    "BLOCKS",
    "DECODER",
    "NETS",
    "SABLOCK",
    "SA_256",
    "SPATIAL",
    "TARGETS",
    "TIMESTEPS",
    "decoder",
    "sampling",
    "tokens_of",
]

BLOCKS = "monai.networks.blocks"
NETS = "monai.networks.nets"
SABLOCK = f"{BLOCKS}.selfattention.SABlock"
SPATIAL = f"{BLOCKS}.spatialattention.SpatialAttentionBlock"
DECODER = f"{NETS}.transformer.DecoderOnlyTransformer"


SA_256: dict[str, Any] = {"hidden_size": 256, "num_heads": 8}
TIMESTEPS = Input((1,), below=1000)


def tokens_of(number: int, width: int = 256) -> dict[str, Input]:
    """The input of a transformer's block."""
    return {"x": Input((1, number, width))}


UNET_3D: dict[str, Any] = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 1,
    "num_res_blocks": 1,
    "channels": (32, 64),
    "attention_levels": (False, True),
    "num_head_channels": 32,
}
AUTOENCODER_2D: dict[str, Any] = {
    "spatial_dims": 2,
    "num_res_blocks": 1,
    "channels": (32, 32, 64),
    "attention_levels": (False, False, True),
}
VIT: dict[str, Any] = {
    "in_channels": 1,
    "img_size": 96,
    "patch_size": 8,
    "hidden_size": 384,
    "mlp_dim": 1536,
    "num_layers": 6,
    "num_heads": 12,
}


def decoder(tokens: int, **changes: Any) -> dict[str, Any]:
    """Options of the decoder that is sampled: 4 layers, 128 wide."""
    options = {
        "num_tokens": 257,
        "max_seq_len": tokens + 1,
        "attn_layers_dim": 128,
        "attn_layers_depth": 4,
        "attn_layers_heads": 4,
    }
    return {**options, **changes}


BEGIN = {"x": Input((1, 1), below=257)}
CONTEXT = {"context": Input((1, 64, 128))}


def sampling(tokens: int, **changes: Any) -> Case:
    """Tokens sampled from the decoder through VQVAETransformerInferer."""
    arguments: dict[str, Any] = {
        "name": f"decode-{tokens}",
        "title": f"DecoderOnlyTransformer, {tokens} tokens sampled",
        "group": "targets",
        "target": DECODER,
        "options": decoder(tokens),
        "inputs": BEGIN,
        "work": "sample",
        "tokens": tokens,
        "curve": "decode",
    }
    return Case(**{**arguments, **changes})


TARGETS = (
    Case(
        "sablock",
        "SABlock 256 wide, 8 heads, 4096 tokens",
        "targets",
        SABLOCK,
        SA_256,
        tokens_of(4096),
        goals=Goals(release=5.0, limit=1.05),
        tokens=4096,
        flash=True,
    ),
    Case(
        "sablock-train",
        "the same, forward + backward",
        "targets",
        SABLOCK,
        SA_256,
        tokens_of(4096),
        work="train",
        goals=Goals(memory=0.2),
        tokens=4096,
        flash=True,
    ),
    Case(
        "rel-pos-2d",
        "SABlock with rel-pos, 64 x 64 tokens",
        "targets",
        SABLOCK,
        {**SA_256, "rel_pos_embedding": "decomposed", "input_size": (64, 64)},
        tokens_of(4096),
        goals=Goals(release=1.8),
        tokens=4096,
    ),
    Case(
        "rel-pos-3d",
        "the same in 3-D, 16 x 16 x 16 tokens",
        "targets",
        SABLOCK,
        {**SA_256, "rel_pos_embedding": "decomposed", "input_size": (16, 16, 16)},
        tokens_of(4096),
        tokens=4096,
    ),
    Case(
        "unet-3d",
        "DiffusionModelUNet 32^3, attention at 16^3",
        "targets",
        f"{NETS}.diffusion_model_unet.DiffusionModelUNet",
        UNET_3D,
        {"x": Input((1, 1, 32, 32, 32)), "timesteps": TIMESTEPS},
        goals=Goals(release=1.7, flash=0.97),
        tokens=4096,
        flash=True,
    ),
    Case(
        "autoencoder-2d",
        "AutoencoderKL 256^2, attention at 64^2",
        "targets",
        f"{NETS}.autoencoderkl.AutoencoderKL",
        AUTOENCODER_2D,
        {"x": Input((1, 1, 256, 256))},
        method="reconstruct",
        goals=Goals(release=1.7, flash=0.97),
        tokens=4096,
        flash=True,
    ),
    Case(
        "vit",
        "ViT, 1728 tokens, 6 layers",
        "targets",
        f"{NETS}.vit.ViT",
        VIT,
        {"x": Input((1, 1, 96, 96, 96))},
        goals=Goals(release=1.7),
        tokens=1728,
    ),
    sampling(64),
    sampling(255),
    sampling(511, goals=Goals(release=10.0, limit=1.3, rival=1.0), rival=True),
    sampling(1023, memory=False, slow=True),
    sampling(4095, memory=False, slow=True, release=False),  # the release would take the better part of an hour
    sampling(
        255,
        name="decode-conditioned",
        title="the same with cross attention, 255 tokens",
        options=decoder(255, with_cross_attention=True),
        inputs={**BEGIN, **CONTEXT},
        curve=None,
    ),
    sampling(
        511,
        name="decode-greedy",
        title="CachedDecoder, 511 tokens, the likeliest",
        work="greedy",
        release=False,
        goals=Goals(limit=1.3),
        curve=None,
    ),
    sampling(
        511,
        name="decode-compiled",
        title="the same, compiled",
        work="greedy",
        release=False,
        compiled=True,
        goals=Goals(limit=1.0),
        memory=False,
        curve=None,
    ),
    Case(
        "state-dict",
        "state dict of a 12-layer, 1024-token, 96-wide decoder",
        "targets",
        DECODER,
        decoder(1023, attn_layers_dim=96, attn_layers_depth=12, attn_layers_heads=6),
        {},
        work="state_dict",
        goals=Goals(megabytes=6.0),
    ),
)
