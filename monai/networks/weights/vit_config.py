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


"""The configuration that transformers needs beside the weights of a network that is written in its layout."""

from __future__ import annotations

from typing import Any

import torch.nn as nn

__all__ = ["transformers_config"]

MODELS = {
    "hf": ("vit", "ViTModel"),
    "hf-dinov2": ("dinov2", "Dinov2Model"),
    "hf-mae": ("vit_mae", "ViTMAEForPreTraining"),
}


def transformers_config(net: nn.Module, name: str) -> dict[str, Any]:
    """
    Content of a ``config.json`` with which transformers computes what a network does.

    Args:
        net: a ViT or a MaskedAutoEncoderViT that :func:`~monai.networks.weights.source.translate_back` takes.
        name: of the layout: "hf", "hf-dinov2" or "hf-mae".

    Raises:
        ValueError: if the layout has another name, or the configuration cannot say how wide the feed-forward is.
    """
    if name not in MODELS:
        raise ValueError(f"name={name!r} should be one of {tuple(MODELS)}.")
    kind, model = MODELS[name]
    whole: Any = net
    embedding, block = whole.patch_embedding, whole.blocks[0]
    attention, width = block.attn, block.attn.hidden_input_size
    config = {
        "model_type": kind,
        "architectures": [model],
        "hidden_size": width,
        "num_hidden_layers": sum(hasattr(layer, "attn") for layer in whole.blocks),
        "num_attention_heads": attention.num_heads,
        "layer_norm_eps": block.norm1.eps,
        "hidden_act": "gelu",
        "qkv_bias": _has_bias(attention),
        "image_size": _size(embedding.img_size),
        "patch_size": _size(embedding.patch_size),
        "num_channels": embedding.patch_dim // (embedding.patch_size[0] * embedding.patch_size[1]),
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    hidden = block.mlp.linear1.out_features
    return {**config, **_feed_forward(name, width, hidden), **_head(net, name), **_decoder(net, name)}


def _feed_forward(name: str, width: int, hidden: int) -> dict[str, Any]:
    if name != "hf-dinov2":
        return {"intermediate_size": hidden}
    ratio = hidden / width
    if int(width * ratio) != hidden:
        raise ValueError(f"mlp_dim={hidden} is no multiple of hidden_size={width} that DINOv2's mlp_ratio can tell.")
    return {"mlp_ratio": int(ratio) if ratio.is_integer() else ratio}


def _head(net: nn.Module, name: str) -> dict[str, Any]:
    head = getattr(net, "classification_head", None)
    if name != "hf" or not isinstance(head, nn.Linear):
        return {}
    labels = {number: f"LABEL_{number}" for number in range(head.out_features)}
    return {
        "architectures": ["ViTForImageClassification"],
        "id2label": {str(number): label for number, label in labels.items()},
        "label2id": {label: number for number, label in labels.items()},
    }


def _decoder(net: nn.Module, name: str) -> dict[str, Any]:
    if name != "hf-mae":
        return {}
    whole: Any = net
    block = whole.decoder_blocks[0]
    return {
        "decoder_hidden_size": block.attn.hidden_input_size,
        "decoder_num_hidden_layers": sum(hasattr(layer, "attn") for layer in whole.decoder_blocks),
        "decoder_num_attention_heads": block.attn.num_heads,
        "decoder_intermediate_size": block.mlp.linear1.out_features,
        "mask_ratio": whole.masking_ratio,
    }


def _has_bias(attention: Any) -> bool:
    linear = attention.qkv if isinstance(attention.qkv, nn.Linear) else attention.to_q
    return linear.bias is not None


def _size(sizes: list[int]) -> int | list[int]:
    return sizes[0] if len(set(sizes)) == 1 else list(sizes)
