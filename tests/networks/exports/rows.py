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

"""The grid's rows as data. A new network adds a row here."""

from __future__ import annotations

from tests.networks.exports.row import Tensor, rows_of

__all__ = ["ROWS"]

BARE = {"use_proj_attn": False}
COMBINED = {"use_combined_linear": True}

# blocks
TOKENS = {"x": Tensor(("B", "n", 24))}
GRID_TOKENS = {"x": Tensor(("B", 12, 24))}
CONTEXT = {"context": Tensor(("B", "k", 24))}
BLOCK = {"hidden_size": 24, "num_heads": 4}
LAYER = {**BLOCK, "mlp_dim": 32}
CAUSAL = {"causal": True, "sequence_length": 9}
SELF_MASK = {"attn_mask": Tensor(("B", "n"), mask=True)}
REL_POS = {"rel_pos_embedding": "decomposed", "input_size": (4, 3)}
REL_POS_3D = {"rel_pos_embedding": "decomposed", "input_size": (3, 2, 2)}

BLOCK_ROWS = [
    *rows_of(
        "SABlock",
        "monai.networks.blocks.selfattention",
        combined=({**BLOCK, **COMBINED}, TOKENS),
        separate_without_projection=({**BLOCK, "use_combined_linear": False, **BARE}, TOKENS),
        causal=({**BLOCK, **CAUSAL}, TOKENS),
        mask=(BLOCK, {**TOKENS, **SELF_MASK}),
        mask_over_pairs=(BLOCK, {**TOKENS, "attn_mask": Tensor(("B", 4, "n", "n"), mask=True)}),
        rel_pos_2D=({**BLOCK, **REL_POS}, GRID_TOKENS),
        rel_pos_3D=({**BLOCK, **REL_POS_3D}, GRID_TOKENS),
        attention_matrix=({**BLOCK, "save_attn": True}, TOKENS),
    ),
    *rows_of(
        "CrossAttentionBlock",
        "monai.networks.blocks.crossattention",
        context=(BLOCK, {**TOKENS, **CONTEXT}),
        without_projection=({**BLOCK, **BARE}, {**TOKENS, **CONTEXT}),
        mask=(BLOCK, {**TOKENS, **CONTEXT, "attn_mask": Tensor(("B", "k"), mask=True)}),
        rel_pos=({**BLOCK, **REL_POS}, GRID_TOKENS),
    ),
    *rows_of(
        "SpatialAttentionBlock",
        "monai.networks.blocks.spatialattention",
        **{
            "2-D": (
                {"spatial_dims": 2, "num_channels": 16, "norm_num_groups": 8},
                {"x": Tensor(("B", 16, "2h", "2w"))},
            ),
            "3-D without projection": (
                {"spatial_dims": 3, "num_channels": 16, "norm_num_groups": 8, "num_head_channels": 8, **BARE},
                {"x": Tensor(("B", 16, "2h", "2w", "2d"))},
            ),
            "combined": (
                {"spatial_dims": 2, "num_channels": 16, "norm_num_groups": 8, **COMBINED},
                {"x": Tensor(("B", 16, "2h", "2w"))},
            ),
        },
    ),
    *rows_of(
        "TransformerBlock",
        "monai.networks.blocks.transformerblock",
        self=(LAYER, TOKENS),
        without_projection=({**LAYER, **BARE}, TOKENS),
        mask=(LAYER, {**TOKENS, **SELF_MASK}),
        causal_with_context=({**LAYER, **CAUSAL, "with_cross_attention": True}, {**TOKENS, **CONTEXT}),
    ),
]

# networks of the previous issue: the size of an image is part of what they are built from
VIT = {"in_channels": 1, "hidden_size": 24, "mlp_dim": 32, "num_layers": 2, "num_heads": 4}
VIT_2D = {**VIT, "img_size": (16, 8), "patch_size": 4, "spatial_dims": 2}
VIT_3D = {**VIT, "img_size": (8, 8, 4), "patch_size": 4}
SEGMENTER = {"in_channels": 1, "out_channels": 2, "feature_size": 4, "hidden_size": 24, "mlp_dim": 32, "num_heads": 4}
MAE = {"decoder_hidden_size": 12, "decoder_mlp_dim": 16, "decoder_num_layers": 1, "decoder_num_heads": 2}
DECODER = {"num_tokens": 7, "max_seq_len": 9, "attn_layers_dim": 24, "attn_layers_depth": 2, "attn_layers_heads": 4}
FIXED_2D = {"x": Tensor(("B", 1, 16, 8))}
FIXED_3D = {"x": Tensor(("B", 1, 8, 8, 4))}
WORDS = {"x": Tensor(("B", "n"), below=7)}
EVERY_PATCH = {"deterministic": ("forward", {"masking_ratio": 0.0})}

TRANSFORMER_ROWS = [
    *rows_of(
        "ViT",
        "monai.networks.nets.vit",
        **{
            "2-D": (VIT_2D, FIXED_2D),
            "3-D without projection": ({**VIT_3D, "proj_type": "perceptron", **BARE}, FIXED_3D),
            "separate linears": ({**VIT_2D, "use_combined_linear": False}, FIXED_2D),
            "classification": ({**VIT_3D, "classification": True}, FIXED_3D),
        },
    ),
    *rows_of(
        "ViTAutoEnc",
        "monai.networks.nets.vitautoenc",
        **{"2-D": (VIT_2D, FIXED_2D), "3-D without projection": ({**VIT_3D, **BARE}, FIXED_3D)},
    ),
    *rows_of(
        "UNETR",
        "monai.networks.nets.unetr",
        **{
            "2-D": ({**SEGMENTER, "img_size": (32, 16), "spatial_dims": 2}, {"x_in": Tensor(("B", 1, 32, 16))}),
            "3-D without projection": (
                {**SEGMENTER, "img_size": (16, 16, 32), "proj_type": "perceptron", **BARE},
                {"x_in": Tensor(("B", 1, 16, 16, 32))},
            ),
        },
    ),
    *rows_of(
        "MaskedAutoEncoderViT",
        "monai.networks.nets.masked_autoencoder_vit",
        **{
            "2-D": ({**VIT_2D, **MAE}, FIXED_2D, EVERY_PATCH),
            "3-D without projection": ({**VIT_3D, **MAE, **BARE}, FIXED_3D, EVERY_PATCH),
        },
    ),
    *rows_of(
        "DecoderOnlyTransformer",
        "monai.networks.nets.transformer",
        tokens=(DECODER, WORDS),
        without_projection=({**DECODER, **BARE, **COMBINED}, WORDS),
        context=({**DECODER, "with_cross_attention": True}, {**WORDS, **CONTEXT}),
    ),
]

# diffusion models
LEVELS = {"num_res_blocks": 1, "attention_levels": (False, True), "norm_num_groups": 8}
HEADS = {"num_head_channels": 8}
UNET = {**LEVELS, **HEADS, "in_channels": 1, "out_channels": 2, "channels": (8, 16)}
CONTROL = {**LEVELS, **HEADS, "in_channels": 1, "channels": (8, 16), "conditioning_embedding_num_channels": (8, 8)}
MAISI = {**LEVELS, **HEADS, "spatial_dims": 3, "in_channels": 1, "num_channels": (8, 16)}
MAISI_UNET = {**MAISI, "out_channels": 2, "include_fc": True}
MAISI_CONTROL = {**MAISI, "conditioning_embedding_num_channels": (8, 8)}
CONDITIONED = {"with_conditioning": True, "cross_attention_dim": 5}
CLASSES = {"num_class_embeds": 3}
IMAGE_2D, IMAGE_3D = Tensor(("B", 1, "2h", "2w")), Tensor(("B", 1, "2h", "2w", "2d"))
STEPS = {"timesteps": Tensor(("B",), below=1000)}
NOISY_2D, NOISY_3D = {"x": IMAGE_2D, **STEPS}, {"x": IMAGE_3D, **STEPS}
FIXED_NOISY = {"x": Tensor(("B", 1, 8, 12)), **STEPS}
GUIDE = {"context": Tensor(("B", "k", 5))}
LABELS = {"class_labels": Tensor(("B",), below=3)}
SEGMENTATION_2D = {"seg": Tensor(("B", 3, "2h", "2w"))}
SEGMENTATION_3D = {"seg": Tensor(("B", 3, "2h", "2w", "2d"))}
# what the control network sees: its embedding halves the size once per further width
HINT_2D = {"controlnet_cond": Tensor(("B", 1, "4h", "4w"))}
HINT_3D = {"controlnet_cond": Tensor(("B", 1, "4h", "4w", "4d"))}
RESIDUALS_2D = {
    "down_block_additional_residuals": [
        Tensor(("B", 8, "2h", "2w")),
        Tensor(("B", 8, "2h", "2w")),
        Tensor(("B", 8, "h", "w")),
        Tensor(("B", 16, "h", "w")),
    ],
    "mid_block_additional_residual": Tensor(("B", 16, "h", "w")),
}
RESIDUALS_3D = {
    "down_block_additional_residuals": [
        Tensor(("B", 8, "2h", "2w", "2d")),
        Tensor(("B", 8, "2h", "2w", "2d")),
        Tensor(("B", 8, "h", "w", "d")),
        Tensor(("B", 16, "h", "w", "d")),
    ],
    "mid_block_additional_residual": Tensor(("B", 16, "h", "w", "d")),
}
REGIONS = {
    "include_top_region_index_input": True,
    "include_bottom_region_index_input": True,
    "include_spacing_input": True,
}
BODY = {
    "top_region_index_tensor": Tensor(("B", 4)),
    "bottom_region_index_tensor": Tensor(("B", 4)),
    "spacing_tensor": Tensor(("B", 3)),
}
IN_2D, IN_3D = {"spatial_dims": 2}, {"spatial_dims": 3}

DIFFUSION_ROWS = [
    *rows_of(
        "DiffusionModelUNet",
        "monai.networks.nets.diffusion_model_unet",
        **{
            "2-D": ({**UNET, **IN_2D}, NOISY_2D),
            "3-D without projection": ({**UNET, **IN_3D, **BARE}, NOISY_3D),
            "conditioned": ({**UNET, **IN_2D, **CONDITIONED}, {**NOISY_2D, **GUIDE}),
            "conditioned 3-D without projection": (
                {**UNET, **IN_3D, **CONDITIONED, **BARE},
                {**NOISY_3D, **GUIDE},
            ),
            "classes, combined": ({**UNET, **IN_2D, **CLASSES, **COMBINED}, {**NOISY_2D, **LABELS}),
            "resampling residual blocks": ({**UNET, **IN_2D, "resblock_updown": True}, NOISY_2D),
            "upcast attention": ({**UNET, **IN_2D, **CONDITIONED, "upcast_attention": True}, {**NOISY_2D, **GUIDE}),
            "control residuals": ({**UNET, **IN_2D}, {**NOISY_2D, **RESIDUALS_2D}),
        },
    ),
    *rows_of(
        "DiffusionModelEncoder",
        "monai.networks.nets.diffusion_model_unet",
        **{
            "2-D": ({**UNET, **IN_2D, "input_shape": (8, 12)}, FIXED_NOISY),
            "conditioned without projection": (
                {**UNET, **IN_2D, **CONDITIONED, **BARE, "input_shape": (8, 12)},
                {**FIXED_NOISY, **GUIDE},
            ),
            "classes, combined, 3-D": (
                {**UNET, **IN_3D, **CLASSES, **COMBINED, "input_shape": (8, 8, 4)},
                {"x": Tensor(("B", 1, 8, 8, 4)), **STEPS, **LABELS},
            ),
        },
    ),
    *rows_of(
        "ControlNet",
        "monai.networks.nets.controlnet",
        **{
            "2-D": ({**CONTROL, **IN_2D}, {**NOISY_2D, **HINT_2D}),
            "3-D without projection": ({**CONTROL, **IN_3D, **BARE}, {**NOISY_3D, **HINT_3D}),
            "conditioned": ({**CONTROL, **IN_2D, **CONDITIONED}, {**NOISY_2D, **HINT_2D, **GUIDE}),
            "classes, combined": ({**CONTROL, **IN_2D, **CLASSES, **COMBINED}, {**NOISY_2D, **HINT_2D, **LABELS}),
        },
    ),
    *rows_of(
        "SPADEDiffusionModelUNet",
        "monai.networks.nets.spade_diffusion_model_unet",
        **{
            "2-D": ({**UNET, **IN_2D, "label_nc": 3}, {**NOISY_2D, **SEGMENTATION_2D}),
            "conditioned 3-D without projection": (
                {**UNET, **IN_3D, "label_nc": 3, **CONDITIONED, **BARE},
                {**NOISY_3D, **SEGMENTATION_3D, **GUIDE},
            ),
            "classes, combined": (
                {**UNET, **IN_2D, "label_nc": 3, **CLASSES, **COMBINED},
                {**NOISY_2D, **SEGMENTATION_2D, **LABELS},
            ),
        },
    ),
    *rows_of(
        "DiffusionModelUNetMaisi",
        "monai.apps.generation.maisi.networks.diffusion_model_unet_maisi",
        **{
            "spacing and body region": ({**MAISI_UNET, **REGIONS}, {**NOISY_3D, **BODY}),
            "classes, without projection": ({**MAISI_UNET, **CLASSES, **BARE}, {**NOISY_3D, **LABELS}),
            "conditioned, combined": ({**MAISI_UNET, **CONDITIONED, **COMBINED}, {**NOISY_3D, **GUIDE}),
            "control residuals": ({**MAISI_UNET, "resblock_updown": True}, {**NOISY_3D, **RESIDUALS_3D}),
        },
    ),
    *rows_of(
        "ControlNetMaisi",
        "monai.apps.generation.maisi.networks.controlnet_maisi",
        **{
            "classes": ({**MAISI_CONTROL, **CLASSES}, {**NOISY_3D, **HINT_3D, **LABELS}),
            "conditioned": (
                {**MAISI_CONTROL, **CONDITIONED, "include_fc": True, "use_checkpointing": False},
                {**NOISY_3D, **HINT_3D, **GUIDE},
            ),
        },
    ),
]

# autoencoders
AUTOENCODER = {**LEVELS, "in_channels": 1, "out_channels": 1, "channels": (8, 16), "latent_channels": 2}
MAISI_AUTOENCODER = {
    **LEVELS,
    "spatial_dims": 3,
    "num_res_blocks": (1, 1),
    "in_channels": 1,
    "out_channels": 1,
    "num_channels": (8, 16),
    "latent_channels": 2,
    "num_splits": 2,
    "dim_split": 0,
}
QUANTIZER = {
    "in_channels": 1,
    "out_channels": 1,
    "channels": (8, 8),
    "num_res_layers": 1,
    "num_res_channels": (8, 8),
    "downsample_parameters": ((2, 4, 1, 1),) * 2,
    "upsample_parameters": ((2, 4, 1, 1, 0),) * 2,
    "num_embeddings": 16,
    "embedding_dim": 4,
}
LARGE_2D, LARGE_3D = {"x": Tensor(("B", 1, "4h", "4w"))}, {"x": Tensor(("B", 1, "4h", "4w", "4d"))}
HALF_NORMS = "onnxruntime rounds norms in float16 otherwise than torch: the outputs agree to 2e-3."
RECONSTRUCT = {"deterministic": ("reconstruct", {})}

AUTOENCODER_ROWS = [
    *rows_of(
        "AutoencoderKL",
        "monai.networks.nets.autoencoderkl",
        **{
            "2-D": ({**AUTOENCODER, **IN_2D}, LARGE_2D, RECONSTRUCT),
            "3-D without projection": ({**AUTOENCODER, **IN_3D, **BARE}, LARGE_3D, RECONSTRUCT),
            "combined, transposed convolutions, checkpoints": (
                {**AUTOENCODER, **IN_2D, **COMBINED, "use_convtranspose": True, "use_checkpoint": True},
                LARGE_2D,
                RECONSTRUCT,
            ),
        },
    ),
    *rows_of(
        "SPADEAutoencoderKL",
        "monai.networks.nets.spade_autoencoderkl",
        **{
            "2-D": (
                {**AUTOENCODER, **IN_2D, "label_nc": 3},
                {**LARGE_2D, "seg": Tensor(("B", 3, "4h", "4w"))},
                RECONSTRUCT,
            ),
            "3-D without projection": (
                {**AUTOENCODER, **IN_3D, "label_nc": 3, **BARE},
                {**LARGE_3D, "seg": Tensor(("B", 3, "4h", "4w", "4d"))},
                RECONSTRUCT,
            ),
        },
    ),
    *rows_of(
        "AutoencoderKlMaisi",
        "monai.apps.generation.maisi.networks.autoencoderkl_maisi",
        **{
            "as published": ({**MAISI_AUTOENCODER, "use_checkpointing": False}, LARGE_3D, RECONSTRUCT),
            "non-local attention with projection": (
                {
                    **MAISI_AUTOENCODER,
                    "with_encoder_nonlocal_attn": True,
                    "with_decoder_nonlocal_attn": True,
                    "use_proj_attn": True,
                    "save_mem": False,
                },
                LARGE_3D,
                RECONSTRUCT,
            ),
            "transposed convolutions, checkpoints, half norms": (
                {**MAISI_AUTOENCODER, "use_convtranspose": True, "use_checkpointing": True, "norm_float16": True},
                LARGE_3D,
                {**RECONSTRUCT, "cannot": {"onnx": HALF_NORMS}},
            ),
        },
    ),
    *rows_of(
        "VQVAE",
        "monai.networks.nets.vqvae",
        **{
            "2-D": ({**QUANTIZER, **IN_2D}, {"images": LARGE_2D["x"]}),
            "3-D": ({**QUANTIZER, **IN_3D}, {"images": LARGE_3D["x"]}),
        },
    ),
]

ROWS = [*BLOCK_ROWS, *TRANSFORMER_ROWS, *DIFFUSION_ROWS, *AUTOENCODER_ROWS]
