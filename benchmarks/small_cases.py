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

"""Small shapes, where the overhead of Python counts. They are only asked not to be slower than the release."""

from __future__ import annotations

from typing import Any

from benchmarks.case import Case, Input
from benchmarks.target_cases import BLOCKS, DECODER, NETS, SA_256, SABLOCK, SPATIAL, TIMESTEPS, decoder, tokens_of

__all__ = ["SMALL"]

MAISI = "monai.apps.generation.maisi.networks"


def small(name: str, title: str, target: str, options: dict[str, Any], inputs: dict[str, Input], **more: Any) -> Case:
    """A case that is only asked not to be slower than the release."""
    return Case(name, title, "small", target, options, inputs, **more)


def as_maisi(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a network by MAISI's names."""
    return {("num_channels" if name == "channels" else name): value for name, value in options.items()}


VIT_SMALL: dict[str, Any] = {
    "in_channels": 1,
    "img_size": 96,
    "hidden_size": 192,
    "mlp_dim": 768,
    "num_heads": 6,
}
UNET_SMALL: dict[str, Any] = {
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 1,
    "num_res_blocks": 1,
    "channels": (16, 32),
    "attention_levels": (False, True),
    "norm_num_groups": 8,
    "num_head_channels": 8,
}
CONTROL_SMALL = {key: value for key, value in UNET_SMALL.items() if key != "out_channels"}
AUTOENCODER_SMALL: dict[str, Any] = {
    "spatial_dims": 2,
    "num_res_blocks": 1,
    "channels": (16, 32),
    "attention_levels": (False, True),
    "norm_num_groups": 8,
}
IMAGE = {"x": Input((1, 1, 16, 16))}
NOISY = {**IMAGE, "timesteps": TIMESTEPS}
WORDS = {"context": Input((1, 8, 24))}
SEGMENTATION = {"seg": Input((1, 3, 16, 16))}

SMALL = (
    *(
        small(f"sablock-{n}", f"SABlock, {n} tokens", SABLOCK, SA_256, tokens_of(n), tokens=n, flash=True)
        for n in (16, 64, 216)
    ),
    small("sablock-16-train", "SABlock, 16 tokens, forward + backward", SABLOCK, SA_256, tokens_of(16), work="train"),
    *(
        small(
            f"sablock-{n}-dropout",
            f"SABlock, {n} tokens, dropout, forward + backward",
            SABLOCK,
            {**SA_256, "dropout_rate": 0.1},
            tokens_of(n),
            work="dropout",
            tokens=n,
        )
        for n in (64, 1024)
    ),
    small(
        "sablock-causal",
        "SABlock, causal, 64 tokens",
        SABLOCK,
        {**SA_256, "causal": True, "sequence_length": 64},
        tokens_of(64),
        tokens=64,
    ),
    small(
        "rel-pos-small",
        "SABlock with rel-pos, 8 x 8 tokens",
        SABLOCK,
        {**SA_256, "rel_pos_embedding": "decomposed", "input_size": (8, 8)},
        tokens_of(64),
        tokens=64,
    ),
    small(
        "cross-small",
        "CrossAttentionBlock, 64 tokens, 8 words",
        f"{BLOCKS}.crossattention.CrossAttentionBlock",
        {**SA_256, "context_input_size": 24},
        {**tokens_of(64), **WORDS},
        tokens=64,
        flash=True,
    ),
    small(
        "spatial-8x8",
        "SpatialAttentionBlock, 8 x 8",
        SPATIAL,
        {"spatial_dims": 2, "num_channels": 64, "num_head_channels": 32},
        {"x": Input((1, 64, 8, 8))},
        tokens=64,
        flash=True,
    ),
    small(
        "transformer-16",
        "TransformerBlock, 16 tokens",
        f"{BLOCKS}.transformerblock.TransformerBlock",
        {"hidden_size": 256, "mlp_dim": 1024, "num_heads": 8},
        tokens_of(16),
        tokens=16,
        flash=True,
    ),
    small(
        "decoder-16",
        "DecoderOnlyTransformer, 16 tokens in one pass",
        DECODER,
        decoder(16),
        {"x": Input((1, 16), below=257)},
        tokens=16,
    ),
    small(
        "vit-216",
        "ViT, 216 tokens, 12 layers",
        f"{NETS}.vit.ViT",
        {**VIT_SMALL, "patch_size": 16},
        {"x": Input((1, 1, 96, 96, 96))},
        tokens=216,
    ),
    small(
        "unetr-216",
        "UNETR, 216 tokens",
        f"{NETS}.unetr.UNETR",
        {**VIT_SMALL, "out_channels": 2, "feature_size": 8, "img_size": (96, 96, 96)},
        {"x_in": Input((1, 1, 96, 96, 96))},
        tokens=216,
    ),
    small(
        "vitautoenc-small",
        "ViTAutoEnc, 64 tokens",
        f"{NETS}.vitautoenc.ViTAutoEnc",
        {
            "in_channels": 1,
            "img_size": (32, 32),
            "patch_size": (4, 4),
            "hidden_size": 96,
            "mlp_dim": 192,
            "num_layers": 2,
            "num_heads": 4,
            "spatial_dims": 2,
        },
        {"x": Input((1, 1, 32, 32))},
        tokens=64,
    ),
    small(
        "unet-small",
        "DiffusionModelUNet 16^2, attention at 8^2",
        f"{NETS}.diffusion_model_unet.DiffusionModelUNet",
        UNET_SMALL,
        NOISY,
    ),
    small(
        "unet-conditioned",
        "DiffusionModelUNet 16^2 with cross attention",
        f"{NETS}.diffusion_model_unet.DiffusionModelUNet",
        {**UNET_SMALL, "with_conditioning": True, "cross_attention_dim": 24},
        {**NOISY, **WORDS},
    ),
    small(
        "controlnet-small",
        "ControlNet 16^2, attention at 8^2",
        f"{NETS}.controlnet.ControlNet",
        {**CONTROL_SMALL, "conditioning_embedding_num_channels": (16, 16)},
        {**NOISY, "controlnet_cond": Input((1, 1, 32, 32))},
    ),
    small(
        "spade-unet-small",
        "SPADEDiffusionModelUNet 16^2, attention at 8^2",
        f"{NETS}.spade_diffusion_model_unet.SPADEDiffusionModelUNet",
        {**UNET_SMALL, "label_nc": 3},
        {**NOISY, **SEGMENTATION},
    ),
    small(
        "maisi-unet-small",
        "DiffusionModelUNetMaisi 16^2, attention at 8^2",
        f"{MAISI}.diffusion_model_unet_maisi.DiffusionModelUNetMaisi",
        as_maisi(UNET_SMALL),
        NOISY,
    ),
    small(
        "autoencoder-small",
        "AutoencoderKL 16^2, attention at 8^2",
        f"{NETS}.autoencoderkl.AutoencoderKL",
        AUTOENCODER_SMALL,
        IMAGE,
        method="reconstruct",
    ),
    small(
        "spade-autoencoder-small",
        "SPADEAutoencoderKL 16^2, attention at 8^2",
        f"{NETS}.spade_autoencoderkl.SPADEAutoencoderKL",
        {**AUTOENCODER_SMALL, "label_nc": 3},
        {**IMAGE, **SEGMENTATION},
    ),
    small(
        "vqvae-small",
        "VQVAE 32^2",
        f"{NETS}.vqvae.VQVAE",
        {
            "spatial_dims": 2,
            "in_channels": 1,
            "out_channels": 1,
            "channels": (16, 16),
            "num_res_layers": 1,
            "num_res_channels": (16, 16),
            "downsample_parameters": ((2, 4, 1, 1),) * 2,
            "upsample_parameters": ((2, 4, 1, 1, 0),) * 2,
            "num_embeddings": 16,
            "embedding_dim": 8,
        },
        {"images": Input((1, 1, 32, 32))},
    ),
)
