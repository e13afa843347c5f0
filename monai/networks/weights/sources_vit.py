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


"""
Vision transformers of timm, DINO, DINOv2, MAE and transformers, as tables of rules.

The rules bring a file's keys to timm's first, whose names for the embeddings and the blocks are the shortest, and from
there to this package's.
"""

from __future__ import annotations

from functools import partial

from monai.networks.state_dict.rules import DropPart, Join, Rename, Rule, Split

from .patterns import OneWay
from .source import Source
from .vit_checks import check_dinov2, check_hf, check_hf_dinov2, check_hf_mae, check_mae, check_timm
from .vit_config import transformers_config
from .vit_rules import (
    ClassPosition,
    DecoderLeftOut,
    DecoderPositions,
    FinalNorm,
    FoldScale,
    HeadInFront,
    IdleNorm,
    PatchProjection,
    PretrainingToken,
    Unchunk,
    UnusedPooler,
)

__all__ = ["VIT_SOURCES"]

QKV = ("to_q", "to_k", "to_v")
ENCODERS = ("ViT", "ViTAutoEnc", "MaskedAutoEncoderViT")
LEAVE = 'leave it out by ignore=("{0}",)'

REFUSALS: tuple[tuple[str, str], ...] = (
    (
        r"(?:^|\.)(?:patch_embedding\.|classification_head\.|mask_tokens$|decoder_pos_embedding$)"
        r"|\.(?:attn\.(?:out_proj|to_[qkv])|mlp\.linear[12]|norm_cross_attn)\.",
        "this is a key of MONAI beside those of another package: keys of two layouts are mixed. Take the file as it "
        "was written.",
    ),
    (
        r"(?:^|\.)(?:reg_token|register_tokens|storage_tokens)$",
        "register tokens (DINOv2 with registers, DINOv3), which no network here has: take the model without registers.",
    ),
    (
        r"\.mlp\.(?:w1|w2|w3|w12|weights_in|weights_out|fc1_g|fc1_x|gate_proj|up_proj|down_proj)\.",
        "a gated feed-forward network (SwiGLU: DINOv2 g, DINOv3 H+, EVA-02), which the blocks here do not have: take "
        "DINOv2 S, B or L.",
    ),
    (
        r"(?:^|[._])(?:rope|rotary)(?:[._]|$)|\.periods$|\.freqs$|qkv\.bias_mask$",
        "rotary positions (RoPE: DINOv3, EVA-02), which the attention here does not have: take DINOv2 or DINO.",
    ),
    (
        r"relative_position|(?:^|\.)rel_pos|\.(?:q_bias|v_bias)$|\.(?:gamma|lambda)_[12]$",
        "BEiT's or EVA's attention, with relative positions or without a bias of k, which is not what ViT computes.",
    ),
    (
        r"(?:^|\.)(?:dist_token|distillation_token|head_dist\.\w+|distillation_classifier\.\w+)$",
        "a distillation token, to which the other tokens attend, and which no network here has: take the DeiT without "
        "distillation (facebook/deit-*-patch16-224), which is a ViT.",
    ),
    (
        r"(?:^|\.)(?:norm_pre|pre_layrnorm|pre_layernorm|ln_pre|class_embedding|text_model|vision_model|visual)(?:\.|$)",
        "a network of CLIP or SigLIP: it has a norm before its blocks, or a quick GELU, which ViT has not.",
    ),
    (
        r"(?:^|\.)(?:attn_pool|attention_pool)\.",
        'attention pooling, which no network here has: the encoder alone is loaded with ignore=("attn_pool.*",).',
    ),
    (
        r"\.(?:q_norm|k_norm|query_norm|key_norm)\.|\.(?:attn|mlp)\.norm\.",
        "norms inside of the attention or the feed-forward network, which the blocks here do not have.",
    ),
    (r"\.(?:attns|ffns)\.\d", "blocks with parallel attentions, which no network here has."),
    (
        r"(?:^|\.)patch_embed\.(?!proj\.)",
        "patches that do not come from one convolution (hybrid networks, or a norm on the patches).",
    ),
    (r"(?:^|\.)embeds\.", "a network for images of many sizes (NaFlex), whose embeddings are others."),
    (
        r"(?:^|\.)fc_norm\.",
        "a norm on the mean of the patches, in place of that on each token: the blocks alone are loaded with "
        'ignore=("fc_norm.*", "head.*") and allow=("norm.*", "classification_head.*").',
    ),
    (
        r"(?:^|\.)head\.(?!weight$|bias$)",
        'a head of several layers, which ViT has not: the encoder alone is loaded with ignore=("head.*",).',
    ),
)
WITHOUT_CLASSES = (
    (
        r"(?:^|\.)(?:head|classifier)\.(?:weight|bias)$",
        "a head for classes, which takes something else than the class token or is no part of this layout: "
        + LEAVE.format("classifier.*"),
    ),
)

# from timm's names to this package's
_JOINED: dict[str, tuple[Rule, ...]] = {"self attention": (Split("qkv", QKV),)}
_BLOCK: tuple[Rule, ...] = (
    IdleNorm(),
    Rename("attn.proj.", "attn.out_proj."),
    Rename("mlp.fc1.", "mlp.linear1."),
    Rename("mlp.fc2.", "mlp.linear2."),
)
_HEAD = Rename("head.", "classification_head.")
_TIMM: dict[str, tuple[Rule, ...]] = {
    "": (OneWay(Rename("backbone.", "")), ClassPosition(always=False), PatchProjection(), _HEAD, FinalNorm()),
    "transformer block": _BLOCK,
    **_JOINED,
}
_DINOV2: dict[str, tuple[Rule, ...]] = {
    "": (
        OneWay(Rename("backbone.", "")),
        Unchunk(),
        PretrainingToken(),
        ClassPosition(always=False),
        PatchProjection(),
        _HEAD,
        FinalNorm(),
    ),
    "transformer block": (*_BLOCK, FoldScale("ls1.gamma", "attn.out_proj"), FoldScale("ls2.gamma", "mlp.linear2")),
    **_JOINED,
}
_DECODER: tuple[Rule, ...] = (
    DecoderLeftOut("decoder_"),
    DropPart("mask_token"),
    Rename("mask_token", "mask_tokens"),
    DecoderPositions(),
    FinalNorm("decoder_norm", "decoder_blocks"),
)
_MAE: dict[str, tuple[Rule, ...]] = {
    "": (*_DECODER, ClassPosition(), PatchProjection(), FinalNorm()),
    "transformer block": _BLOCK,
    **_JOINED,
}

# from transformers' names
_HF_EMBEDDINGS: tuple[Rule, ...] = (
    Rename("embeddings.cls_token", "cls_token"),
    Rename("embeddings.position_embeddings", "pos_embed"),
    Rename("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    OneWay(Rename("layers.", "encoder.layer.")),
    Rename("encoder.layer.", "blocks."),
    Rename("layernorm.", "norm."),
)
_HF_ATTENTION: tuple[Rule, ...] = tuple(
    rule
    for name, letter in (("query", "q"), ("key", "k"), ("value", "v"))
    for rule in (
        OneWay(Rename(f"attention.{letter}_proj.", f"attn.to_{letter}.")),
        Rename(f"attention.attention.{name}.", f"attn.to_{letter}."),
    )
) + (OneWay(Rename("attention.o_proj.", "attn.out_proj.")), Rename("attention.output.dense.", "attn.out_proj."))
_HF_SEPARATE: dict[str, tuple[Rule, ...]] = {"self attention": (Join(QKV, "qkv"),)}
_HF_BLOCK: tuple[Rule, ...] = (
    IdleNorm(),
    *_HF_ATTENTION,
    Rename("layernorm_before.", "norm1."),
    Rename("layernorm_after.", "norm2."),
    OneWay(Rename("mlp.fc1.", "mlp.linear1.")),
    OneWay(Rename("mlp.fc2.", "mlp.linear2.")),
    Rename("intermediate.dense.", "mlp.linear1."),
    Rename("output.dense.", "mlp.linear2."),
)
_HF_END: tuple[Rule, ...] = (ClassPosition(), PatchProjection(), FinalNorm())
_HF: dict[str, tuple[Rule, ...]] = {
    "": (
        HeadInFront("vit", "classifier."),
        UnusedPooler(r"pooler\."),
        *_HF_EMBEDDINGS,
        Rename("classifier.", "classification_head."),
        *_HF_END,
    ),
    "transformer block": _HF_BLOCK,
    **_HF_SEPARATE,
}
_HF_DINOV2: dict[str, tuple[Rule, ...]] = {
    "": (
        OneWay(Rename("dinov2.", "")),
        PretrainingToken("embeddings.mask_token"),
        *_HF_EMBEDDINGS,
        *_HF_END,
    ),
    "transformer block": (
        *(IdleNorm(), *_HF_ATTENTION),
        Rename("mlp.fc1.", "mlp.linear1."),
        Rename("mlp.fc2.", "mlp.linear2."),
        FoldScale("layer_scale1.lambda1", "attn.out_proj"),
        FoldScale("layer_scale2.lambda1", "mlp.linear2"),
    ),
    **_HF_SEPARATE,
}
_HF_MAE: dict[str, tuple[Rule, ...]] = {
    "": (
        HeadInFront("vit", "decoder."),
        Rename("decoder.mask_token", "mask_token"),
        *(Rename(f"decoder.decoder_{name}", f"decoder_{name}") for name in ("pos_embed", "embed.", "norm.", "pred.")),
        OneWay(Rename("decoder.decoder_encoder.layer.", "decoder.decoder_layers.")),
        Rename("decoder.decoder_layers.", "decoder_blocks."),
        *_DECODER,
        *_HF_EMBEDDINGS,
        *_HF_END,
    ),
    "transformer block": _HF_BLOCK,
    **_HF_SEPARATE,
}

_TIMM_KEY = r"^(?:backbone\.)?blocks\.\d+\.(?:(?:mlp|attn)\.(?:fc1|fc1_g|w1|w12|proj)\.|attns\.\d)"
_SCALED = r"^(?:backbone\.)?blocks\.(?:\d+\.)?\d+\.ls[12]\.gamma$"
_HF_LAYER = (
    r"^(?:vit\.|deit\.|beit\.)?(?:encoder\.layer|layers)\.\d+\.layernorm_(?:before|after)\."
    r"|^(?:vision_model|text_model|visual)\."  # CLIP and SigLIP, to be refused by name
)
_HF_SCALED = r"^(?:\w+\.)?(?:encoder\.)?(?:model\.)?layer\.\d+\.layer_scale[12]\.lambda1$"
_HF_DECODER = r"^decoder\.decoder_"
_DECODER_KEY = r"^decoder_blocks\.\d+\.(?:attn\.proj|mlp\.fc1)\."

VIT_SOURCES: tuple[Source, ...] = (
    Source(
        "timm",
        "timm (vit_*, DeiT) or DINO",
        _TIMM_KEY,
        ENCODERS,
        _TIMM,
        REFUSALS,
        check_timm,
        unless=f"{_SCALED}|{_DECODER_KEY}",
    ),
    Source(
        "dinov2",
        "DINOv2, or timm with LayerScale (DeiT III)",
        _SCALED,
        ENCODERS,
        _DINOV2,
        REFUSALS,
        check_dinov2,
    ),
    Source("mae", "MAE of its authors", _DECODER_KEY, ENCODERS, _MAE, (*REFUSALS, *WITHOUT_CLASSES), check_mae),
    Source(
        "hf",
        "transformers, a ViT",
        _HF_LAYER,
        ENCODERS,
        _HF,
        REFUSALS,
        check_hf,
        written_config=partial(transformers_config, name="hf"),
        unless=_HF_DECODER,
    ),
    Source(
        "hf-dinov2",
        "transformers, a DINOv2 (RAD-DINO)",
        _HF_SCALED,
        ENCODERS,
        _HF_DINOV2,
        (*REFUSALS, *WITHOUT_CLASSES),
        check_hf_dinov2,
        written_config=partial(transformers_config, name="hf-dinov2"),
    ),
    Source(
        "hf-mae",
        "transformers, a ViTMAE with its decoder",
        _HF_DECODER,
        ENCODERS,
        _HF_MAE,
        (*REFUSALS, *WITHOUT_CLASSES),
        check_hf_mae,
        written_config=partial(transformers_config, name="hf-mae"),
    ),
)
"""The layouts, no two of which are shown by the same file."""
