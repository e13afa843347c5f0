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

"""diffusers: its AutoencoderKL, UNet2DConditionModel and UNet2DModel, as tables of rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from monai.networks.state_dict.rules import Flatten, Join, Rename, Rule, Split

from .diffusers_autoencoder import Blocks, NoQuantization
from .diffusers_config import problems
from .diffusers_written import diffusers_config
from .journal import Journal
from .patterns import Everywhere, OneWay, Unflatten
from .source import Source

__all__ = ["DIFFUSERS", "SOURCES", "diffusers_config"]

QKV = ("to_q", "to_k", "to_v")
_TRANSFORMER = r"((?:(?:down|up)_blocks\.\d+\.attentions\.\d+|middle_block\.attention)\.proj_(?:in|out))"


def _renamed(*names: tuple[str, str]) -> tuple[Rename, ...]:
    return tuple(Rename(f"{old}.", f"{new}.") for old, new in names)


def _time_as_here(journal: Journal, config: Mapping[str, Any]) -> None:
    """Without ``flip_sin_to_cos``, the time's encoding begins with the sines, and ours begins with the cosines."""
    key = "time_embedding.linear_1.weight"
    if config.get("flip_sin_to_cos", True) is False and key in journal:
        with journal.doing("columns in the order of cosines and sines"):
            sines, cosines = journal[key].chunk(2, dim=1)
            journal[key] = torch.cat([cosines, sines], dim=1)


_SAMPLERS = (
    Everywhere(
        r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(weight|bias)",
        r"down_blocks.\1.downsampler.op.conv.\2",
        r"down_blocks\.(\d+)\.downsampler\.op\.conv\.(weight|bias)",
        r"down_blocks.\1.downsamplers.0.conv.\2",
    ),
    Everywhere(
        r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.(weight|bias)",
        r"up_blocks.\1.upsampler.postconv.conv.\2",
        r"up_blocks\.(\d+)\.upsampler\.postconv\.conv\.(weight|bias)",
        r"up_blocks.\1.upsamplers.0.conv.\2",
    ),
)
_PROJECTIONS = (
    Unflatten(rf"{_TRANSFORMER}\.weight", dims=2),
    Everywhere(rf"{_TRANSFORMER}\.(weight|bias)", r"\1.conv.\2", rf"{_TRANSFORMER}\.conv\.(weight|bias)", r"\1.\2"),
)
_AUTOENCODER: tuple[Rule, ...] = (
    NoQuantization(),
    Split("quant_conv", ("quant_conv_mu.conv", "quant_conv_log_sigma.conv")),
    Rename("post_quant_conv.", "post_quant_conv.conv."),
    Blocks(),
)
_UNET: tuple[Rule, ...] = (
    *_renamed(
        ("conv_in", "conv_in.conv"),
        ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"),
        ("mid_block.resnets.0", "middle_block.resnet_1"),
        ("mid_block.attentions.0", "middle_block.attention"),
        ("mid_block.resnets.1", "middle_block.resnet_2"),
        ("conv_norm_out", "out.0"),
        ("conv_out", "out.2.conv"),
    ),
    *_SAMPLERS,
    *_PROJECTIONS,
)
_ATTENTION: tuple[Rule, ...] = (
    *(OneWay(rule) for rule in _renamed(*zip(("query", "key", "value", "proj_attn"), (*QKV, "to_out.0")))),
    *_renamed(("group_norm", "norm"), ("to_out.0", "attn.out_proj"), *((name, f"attn.{name}") for name in QKV)),
    *(OneWay(Flatten(f"attn.{name}.weight")) for name in (*QKV, "out_proj")),
)
_ELSEWHERE = "no network of this package has such a part."

DIFFUSERS = Source(
    name="diffusers",
    package="diffusers",
    pattern=r"^(?:(?:encoder\.|decoder\.)?(?:mid_block\.(?:resnets|attentions)|(?:down|up)_blocks\.\d+\.(?:down|up)"
    r"samplers)\.\d|encoder\.down_blocks\.|decoder\.up_blocks\.|time_embedding\.linear_|conv_norm_out\.)",
    networks=("AutoencoderKL", "DiffusionModelUNet"),
    rules={
        "": _AUTOENCODER,
        "whole diffusion network": _UNET,
        "diffusion residual block": _renamed(
            ("conv1", "conv1.conv"), ("conv2", "conv2.conv"), ("conv_shortcut", "skip_connection.conv")
        ),
        "diffusion transformer": _renamed(
            ("attn1.to_out.0", "attn1.out_proj"),
            ("attn2.to_out.0", "attn2.out_proj"),
            ("ff.net.0.proj", "ff.linear1"),
            ("ff.net.2", "ff.linear2"),
        ),
        "spatial attention": _ATTENTION,
        "self attention": (Join(QKV, "qkv"),),
    },
    refusals=(
        (r"(?:^|[._])lora_", "weights of LoRA lie beside those of the network: merge them first (fuse_lora)."),
        (r"^add_embedding\.", f"Stable Diffusion XL embeds sizes and a pooled text: {_ELSEWHERE}"),
        (r"^encoder_hid_proj\.", f"the context is projected before it is attended to: {_ELSEWHERE}"),
        (r"^time_embedding\.cond_proj\.", f"the time is embedded together with a condition: {_ELSEWHERE}"),
        (r"^class_embedding\.linear_", f"classes are embedded as times are (class_embed_type): {_ELSEWHERE}"),
        (r"^time_proj\.", f"the encoding of the time has weights (time_embedding_type): {_ELSEWHERE}"),
        (
            r"samplers\.0\.(?:norm1|conv1)\.",
            f"residual blocks change the size by convolutions of their own: {_ELSEWHERE}",
        ),
        (
            r"\.(?:motion_modules|temp_attentions|temp_convs)\.|time_conv_out\.",
            f"frames of a video are mixed: {_ELSEWHERE}",
        ),
        (
            r"\.(?:norm_q|norm_k|norm_cross|add_[kqv]_proj|fuser|to_[kv]_ip)\.",
            f"attention has more parts: {_ELSEWHERE}",
        ),
    ),
    check=problems,
    adapt=_time_as_here,
    written_config=diffusers_config,
)

SOURCES: tuple[Source, ...] = (DIFFUSERS,)
