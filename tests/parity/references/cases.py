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


"""Which networks each package builds, and with which options."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

__all__ = ["CASES", "MAISI", "WITHOUT_OPTIONS", "WRITERS", "Case"]

# What is imported together; the first one writes the checkpoint.
WRITERS = {
    "stable-diffusion-sdkit==2.1.5": ["stable-diffusion-sdkit==2.1.5"],
    "monai-generative==0.2.1": ["monai-generative==0.2.1", "monai==1.3.2"],
    "monai-generative==0.2.3": ["monai-generative==0.2.3", "monai==1.3.2"],
    **{name: [name] for name in ("monai==1.2.0", "monai==1.3.2", "monai==1.4.0", "monai==1.5.2", "monai==1.6.1")},
}
ELDER = "monai==1.5.2"  # computes what the layouts below computed, which no package on PyPI writes

MAISI = ("AutoencoderKlMaisi", "DiffusionModelUNetMaisi", "ControlNetMaisi")
WITHOUT_OPTIONS = ("VQVAE", "ViT", "ViTAutoEnc", "UNETR", "MaskedAutoEncoderViT")  # in the releases, that is

DIFFUSION: dict[str, Any] = {
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 1,
    "num_res_blocks": (1, 1),
    "channels": (8, 16),
    "attention_levels": (False, True),
    "norm_num_groups": 4,
    "num_head_channels": 4,
}
SOLID: dict[str, Any] = {"spatial_dims": 3, "channels": (4, 12), "norm_num_groups": 2}
CONDITIONED: dict[str, Any] = {"with_conditioning": True, "cross_attention_dim": 6}
CONTROL: dict[str, Any] = {"conditioning_embedding_in_channels": 1, "conditioning_embedding_num_channels": (8, 16)}
SPADE: dict[str, Any] = {"label_nc": 3, "spade_intermediate_channels": 8}
AUTOENCODER: dict[str, Any] = {
    **{name: DIFFUSION[name] for name in DIFFUSION if name != "num_head_channels"},
    "latent_channels": 4,
}
WHOLE: dict[str, Any] = {"num_splits": 1, "save_mem": False}  # volumes in one piece: the releases cut them wrong
EVERYWHERE: dict[str, Any] = {"with_encoder_nonlocal_attn": True, "with_decoder_nonlocal_attn": True}
NOWHERE: dict[str, Any] = {"with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False}
TOKENS: dict[str, Any] = {
    "num_tokens": 10,
    "max_seq_len": 6,
    "attn_layers_dim": 8,
    "attn_layers_depth": 2,
    "attn_layers_heads": 2,
}
VISION: dict[str, Any] = {
    "in_channels": 1,
    "img_size": (16, 16),
    "patch_size": (8, 8),
    "hidden_size": 12,
    "mlp_dim": 24,
    "num_layers": 2,
    "num_heads": 2,
    "spatial_dims": 2,
}
CUBE: dict[str, Any] = {"spatial_dims": 3, "img_size": (8, 8, 8), "patch_size": (4, 4, 4), "proj_type": "perceptron"}
PATCH: dict[str, Any] = {"img_size": (32, 32), "patch_size": (16, 16)}  # the only one that MONAI 1.2 takes here
BRICK: dict[str, Any] = {"img_size": (16, 16, 32), "patch_size": (16, 16, 16)}
MASKED: dict[str, Any] = {
    "decoder_hidden_size": 12,
    "decoder_mlp_dim": 24,
    "decoder_num_layers": 2,
    "decoder_num_heads": 2,
}
UNETR: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 2,
    "img_size": (32, 32),
    "feature_size": 4,
    "hidden_size": 12,
    "mlp_dim": 24,
    "num_heads": 2,
    "spatial_dims": 2,
}

# The first variants of a network are written with every set of options, the starred ones too; the others with two.
_DIFFUSION_VARIANTS: dict[str, dict[str, Any]] = {
    "2-D": {},
    "3-D *": SOLID,
    "2-D conditioned *": CONDITIONED,
    "3-D conditioned": {**CONDITIONED, **SOLID, "transformer_num_layers": 2},
    "2-D one head": {"num_head_channels": (8, 16)},
    "2-D eight heads": {"num_head_channels": 2},
    "2-D residual samplers": {"resblock_updown": True},
    "2-D classes": {"num_class_embeds": 3},
    "2-D all levels": {"attention_levels": (True, True), "num_res_blocks": (2, 1)},
}
_REGIONS = {f"include_{name}_input": True for name in ("top_region_index", "bottom_region_index", "spacing")}
_AUTOENCODER_VARIANTS: dict[str, dict[str, Any]] = {
    "2-D": {},
    "3-D *": SOLID,
    "2-D levels only": NOWHERE,
    "2-D no attention": {**NOWHERE, "attention_levels": (False, False)},
    "2-D transposed": {"use_convtranspose": True},
    "3-D transposed": {**SOLID, "use_convtranspose": True},
}
_VISION_VARIANTS: dict[str, dict[str, Any]] = {
    "2-D": {},
    "3-D perceptron": CUBE,
    "2-D bias": {"qkv_bias": True},
    "2-D six heads": {"num_heads": 6},
}
_POSITIONS = {f"2-D {name} positions": {"pos_embed_type": name} for name in ("none", "sincos")}
_CLASSES = {
    "2-D classes": {"classification": True},
    "2-D classes, no activation": {"classification": True, "post_activation": "none"},
}

NETWORKS: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    "AutoencoderKL": (AUTOENCODER, _AUTOENCODER_VARIANTS),
    "SPADEAutoencoderKL": (
        {**AUTOENCODER, **SPADE},
        {name: kwargs for name, kwargs in _AUTOENCODER_VARIANTS.items() if "transposed" not in name},
    ),
    "AutoencoderKlMaisi": (
        {**AUTOENCODER, **WHOLE, **SOLID},
        {
            "3-D": EVERYWHERE,
            "3-D no attention": {"attention_levels": (False, False)},
            "3-D transposed *": {**EVERYWHERE, "use_convtranspose": True},
            "3-D half norms": {**EVERYWHERE, "norm_float16": True},
        },
    ),
    "VQVAE": (
        {
            "spatial_dims": 2,
            "in_channels": 1,
            "out_channels": 1,
            "channels": (8, 8),
            "num_res_layers": 1,
            "num_res_channels": (8, 8),
            "downsample_parameters": ((2, 4, 1, 1), (2, 4, 1, 1)),
            "upsample_parameters": ((2, 4, 1, 1, 0), (2, 4, 1, 1, 0)),
            "num_embeddings": 16,
            "embedding_dim": 4,
        },
        {"2-D": {}, "3-D": {"spatial_dims": 3}},
    ),
    "DiffusionModelUNet": (DIFFUSION, _DIFFUSION_VARIANTS),
    "DiffusionModelEncoder": (
        {**DIFFUSION, "input_shape": (8, 8)},
        {
            "2-D": {},
            "3-D": {"spatial_dims": 3, "input_shape": (8, 8, 8)},
            "2-D conditioned": CONDITIONED,
            "2-D classes": {"num_class_embeds": 3},
        },
    ),
    "ControlNet": (
        {**{name: value for name, value in DIFFUSION.items() if name != "out_channels"}, **CONTROL},
        _DIFFUSION_VARIANTS,
    ),
    "SPADEDiffusionModelUNet": ({**DIFFUSION, **SPADE}, _DIFFUSION_VARIANTS),
    "DiffusionModelUNetMaisi": (DIFFUSION, {**_DIFFUSION_VARIANTS, "3-D regions": {**SOLID, **_REGIONS}}),
    "ControlNetMaisi": (
        {
            **{name: value for name, value in DIFFUSION.items() if name != "out_channels"},
            **CONTROL,
            "use_checkpointing": False,
        },
        _DIFFUSION_VARIANTS,
    ),
    "DecoderOnlyTransformer": (TOKENS, {"self": {}, "cross *": {"with_cross_attention": True}}),
    "ViT": (VISION, {**_VISION_VARIANTS, **_POSITIONS, **_CLASSES}),
    "ViTAutoEnc": (
        {**VISION, **PATCH},
        {**_VISION_VARIANTS, "3-D perceptron": {**CUBE, **BRICK}, "2-D small patches": {"patch_size": (4, 4)}},
    ),
    "UNETR": (UNETR, {"2-D": {}, "3-D perceptron": {"spatial_dims": 3, "img_size": (32, 16, 16)}}),
    "MaskedAutoEncoderViT": ({**VISION, **MASKED}, {**_VISION_VARIANTS, **_POSITIONS}),
}


@dataclass(frozen=True)
class Case:
    """
    A checkpoint to be written.

    Args:
        writer: a key of ``WRITERS``.
        network: name of the class.
        variant: what sets its sizes apart.
        kwargs: arguments of the class, in the fork's words, for whoever writes and whoever loads.
        options: arguments of the writer alone.
        untrained: whether output projections that are never used keep the weights that torch gave them.
        layout: the older layout into which the keys are renamed back.
    """

    writer: str
    network: str
    variant: str
    kwargs: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    untrained: bool = False
    layout: str = ""

    @property
    def name(self) -> str:
        options = [f"{name}={value}" for name, value in self.options.items()]
        options += ["untrained projections"] if self.untrained else []
        return ", ".join([self.source, self.network, self.variant, *options])

    @property
    def source(self) -> str:
        """Who wrote the file, or seems to have written it."""
        return self.layout or self.writer

    @property
    def slug(self) -> str:
        """The name as that of a file."""
        return re.sub(r"[^A-Za-z0-9.]+", "_", self.name)

    @property
    def seed(self) -> int:
        return zlib.crc32(self.name.encode())


def _cases() -> Iterator[Case]:
    for writer in WRITERS:
        for network, (kwargs, variants) in NETWORKS.items():
            if not _has(writer, network):
                continue
            for number, (variant, changes) in enumerate(variants.items()):
                if _takes(writer, changes):
                    sizes = _sizes(writer, network, {**kwargs, **changes})
                    yield from _with_options(writer, network, variant, sizes, number == 0)
    yield from _elders()


def _has(writer: str, network: str) -> bool:
    package, _, version = writer.partition("==")
    if package == "stable-diffusion-sdkit":
        return network == "DiffusionModelUNet"
    if package == "monai-generative":
        older = network in MAISI or network in WITHOUT_OPTIONS and network != "VQVAE"
        return not older and not (version == "0.2.1" and network.startswith("SPADE"))
    if version < "1.4":
        return network in ("ViT", "ViTAutoEnc", "UNETR")
    return network != "MaskedAutoEncoderViT" or version > "1.4.0"


def _takes(writer: str, changes: dict[str, Any]) -> bool:
    if writer == "stable-diffusion-sdkit==2.1.5":  # in 3-D its samplers leave the first axis as it is
        return changes.get("spatial_dims") != 3 and "num_class_embeds" not in changes
    if writer == "monai-generative==0.2.1":
        return "use_convtranspose" not in changes
    return not (writer == "monai==1.2.0" and "pos_embed_type" in changes)


def _sizes(writer: str, network: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    fixed = writer == "monai==1.4.0" or writer.startswith("monai-generative")
    if network == "DiffusionModelEncoder" and fixed:  # its last linear takes 4096 features
        return {**kwargs, "input_shape": (64, 64) if kwargs["spatial_dims"] == 2 else (32, 32, 16)}
    if writer == "stable-diffusion-sdkit==2.1.5":  # its norms have 32 groups
        widths = kwargs["num_head_channels"]
        heads = 32 if isinstance(widths, tuple) else 2 * widths
        shared = {"channels": (32, 32), "norm_num_groups": 32, "norm_eps": 1e-5, "num_head_channels": heads}
        return {**kwargs, **shared, "num_res_blocks": (1, 1)}
    return kwargs


def _with_options(writer: str, network: str, variant: str, kwargs: dict[str, Any], first: bool) -> Iterator[Case]:
    name = variant.removesuffix(" *")
    if not writer.startswith("monai==") or network in WITHOUT_OPTIONS:
        yield Case(writer, network, name, kwargs)
        return
    every = first or variant.endswith("*")
    for projection, combined in product((True, False), (False, True)) if every else ((True, False), (False, True)):
        case = Case(writer, network, name, kwargs, {"include_fc": projection, "use_combined_linear": combined})
        yield case
        if writer == "monai==1.4.0" and not projection:
            yield Case(**{**vars(case), "untrained": True})
    if first and network not in MAISI:  # those want a GPU for it
        yield Case(writer, network, name, kwargs, {"use_flash_attention": True})


def _elders() -> Iterator[Case]:
    options = {"include_fc": True, "use_combined_linear": False}
    for layout, network, names in (
        ("before 0.1.0", "DiffusionModelUNet", list(_DIFFUSION_VARIANTS)),
        ("0.1.0", "DiffusionModelUNet", list(_DIFFUSION_VARIANTS)),
        ("0.1.0, unscaled", "DiffusionModelUNet", ["2-D conditioned *", "3-D conditioned"]),
        ("0.1.x", "AutoencoderKL", ["2-D", "3-D *", "2-D levels only", "2-D no attention"]),
        ("0.1.0", "AutoencoderKL", ["2-D", "3-D *"]),
        ("0.1.0", "VQVAE", ["2-D", "3-D"]),
    ):
        kwargs, variants = NETWORKS[network]
        for name in names:
            sizes = {**kwargs, **variants[name]}
            yield Case(ELDER, network, name.removesuffix(" *"), sizes, options, layout=f"monai-generative {layout}")


CASES = list(_cases())
