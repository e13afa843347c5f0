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

"""Training steps of every network, and loads of a file of the same layout: neither may cost more than the release's."""

from __future__ import annotations

from typing import Any

from benchmarks.case import Case, Goals, Input
from benchmarks.small_cases import MAISI, WORDS, as_maisi
from benchmarks.target_cases import CONTEXT, DECODER, NETS, TIMESTEPS, UNET_3D, decoder

__all__ = ["LOADING", "TRAINING"]

STEP = Goals(memory=1.05)
LOAD = Goals(release=1 / 1.1)


def step(name: str, title: str, target: str, options: dict[str, Any], inputs: dict[str, Input]) -> Case:
    """A training step: forward, backward, optimizer."""
    return Case(f"step-{name}", title, "training", target, options, inputs, work="step", goals=STEP)


VIT: dict[str, Any] = {
    "in_channels": 1,
    "img_size": 64,
    "patch_size": 8,
    "hidden_size": 192,
    "mlp_dim": 768,
    "num_heads": 6,
}
AUTOENCODER: dict[str, Any] = {
    "spatial_dims": 3,
    "num_res_blocks": 1,
    "channels": (16, 32),
    "attention_levels": (False, False),
    "norm_num_groups": 16,
}
VOLUME = {"x": Input((1, 1, 32, 32, 32))}
SLICE = {"x": Input((1, 1, 64, 64))}
SEGMENTED = {"seg": Input((1, 3, 64, 64))}
NOISY = {"x": Input((1, 1, 16, 16, 16)), "timesteps": TIMESTEPS}
CONTROL = {key: value for key, value in UNET_3D.items() if key != "out_channels"}
MAISI_UNET = as_maisi(UNET_3D)
UNET_2D = {**UNET_3D, "spatial_dims": 2}
MAISI_AUTOENCODER: dict[str, Any] = {
    **as_maisi(AUTOENCODER),
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 4,
    "num_res_blocks": (1, 1),
    "norm_float16": False,
    "with_encoder_nonlocal_attn": False,
    "with_decoder_nonlocal_attn": False,
    "print_info": False,
    "save_mem": False,
}
VQVAE: dict[str, Any] = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 1,
    "channels": (32, 32),
    "num_res_layers": 1,
    "num_res_channels": (32, 32),
    "downsample_parameters": ((2, 4, 1, 1),) * 2,
    "upsample_parameters": ((2, 4, 1, 1, 0),) * 2,
    "num_embeddings": 64,
    "embedding_dim": 16,
}

TRAINING = (
    step("vit", "ViT, 512 tokens", f"{NETS}.vit.ViT", VIT, {"x": Input((1, 1, 64, 64, 64))}),
    step(
        "unetr",
        "UNETR 32^3",
        f"{NETS}.unetr.UNETR",
        {**{k: v for k, v in VIT.items() if k != "patch_size"}, "img_size": 32, "out_channels": 2, "feature_size": 8},
        {"x_in": Input((1, 1, 32, 32, 32))},
    ),
    step(
        "vitautoenc",
        "ViTAutoEnc, 64 tokens",
        f"{NETS}.vitautoenc.ViTAutoEnc",
        {**VIT, "img_size": (64, 64, 64), "patch_size": (16, 16, 16), "num_layers": 4},
        {"x": Input((1, 1, 64, 64, 64))},
    ),
    step(
        "mae",
        "MaskedAutoEncoderViT, 256 tokens",
        f"{NETS}.masked_autoencoder_vit.MaskedAutoEncoderViT",
        {**VIT, "img_size": 128, "spatial_dims": 2, "num_layers": 4, "decoder_num_layers": 4},
        {"x": Input((2, 1, 128, 128))},
    ),
    step("decoder", "DecoderOnlyTransformer, 512 tokens", DECODER, decoder(512), {"x": Input((2, 512), below=257)}),
    step(
        "decoder-conditioned",
        "the same with cross attention",
        DECODER,
        decoder(512, with_cross_attention=True),
        {"x": Input((1, 512), below=257), **CONTEXT},
    ),
    step("unet", "DiffusionModelUNet 16^3", f"{NETS}.diffusion_model_unet.DiffusionModelUNet", UNET_3D, NOISY),
    step(
        "unet-conditioned",
        "the same with cross attention",
        f"{NETS}.diffusion_model_unet.DiffusionModelUNet",
        {**UNET_3D, "with_conditioning": True, "cross_attention_dim": 24},
        {**NOISY, **WORDS},
    ),
    step(
        "encoder",
        "DiffusionModelEncoder 64^2",
        f"{NETS}.diffusion_model_unet.DiffusionModelEncoder",
        {**UNET_2D, "num_res_blocks": (1, 1), "num_head_channels": (32, 32)},
        {**SLICE, "timesteps": TIMESTEPS},
    ),
    step(
        "controlnet",
        "ControlNet 16^3",
        f"{NETS}.controlnet.ControlNet",
        {**CONTROL, "conditioning_embedding_num_channels": (16, 16)},
        {**NOISY, "controlnet_cond": Input((1, 1, 32, 32, 32))},
    ),
    step(
        "spade-unet",
        "SPADEDiffusionModelUNet 64^2",
        f"{NETS}.spade_diffusion_model_unet.SPADEDiffusionModelUNet",
        {**UNET_2D, "label_nc": 3},
        {**SLICE, "timesteps": TIMESTEPS, **SEGMENTED},
    ),
    step(
        "maisi-unet",
        "DiffusionModelUNetMaisi 16^3",
        f"{MAISI}.diffusion_model_unet_maisi.DiffusionModelUNetMaisi",
        MAISI_UNET,
        NOISY,
    ),
    step(
        "maisi-controlnet",
        "ControlNetMaisi 16^3",
        f"{MAISI}.controlnet_maisi.ControlNetMaisi",
        {
            **{key: value for key, value in MAISI_UNET.items() if key != "out_channels"},
            "conditioning_embedding_num_channels": (16, 16),
        },
        {**NOISY, "controlnet_cond": Input((1, 1, 32, 32, 32))},
    ),
    step("autoencoder", "AutoencoderKL 32^3", f"{NETS}.autoencoderkl.AutoencoderKL", AUTOENCODER, VOLUME),
    step(
        "spade-autoencoder",
        "SPADEAutoencoderKL 64^2",
        f"{NETS}.spade_autoencoderkl.SPADEAutoencoderKL",
        {**AUTOENCODER, "spatial_dims": 2, "label_nc": 3},
        {**SLICE, **SEGMENTED},
    ),
    *(
        step(
            f"maisi-autoencoder-{splits}",
            f"AutoencoderKlMaisi 32^3, num_splits={splits}",
            f"{MAISI}.autoencoderkl_maisi.AutoencoderKlMaisi",
            {**MAISI_AUTOENCODER, "num_splits": splits},
            VOLUME,
        )
        for splits in (1, 2, 4)
    ),
    step("vqvae", "VQVAE 32^3", f"{NETS}.vqvae.VQVAE", VQVAE, {"images": Input((1, 1, 32, 32, 32))}),
)

LOADING = (
    Case(
        "load-vit",
        "ViT-B loads a state dict",
        "loading",
        f"{NETS}.vit.ViT",
        {"in_channels": 1, "img_size": 96, "patch_size": 16},
        {},
        work="load",
        goals=LOAD,
        memory=False,
    ),
    Case(
        "load-unet",
        "DiffusionModelUNet of 58 million weights loads one",
        "loading",
        f"{NETS}.diffusion_model_unet.DiffusionModelUNet",
        {
            **UNET_3D,
            "num_res_blocks": 2,
            "channels": (64, 128, 192, 256),
            "attention_levels": (False, False, True, True),
        },
        {},
        work="load",
        goals=LOAD,
        memory=False,
    ),
)
