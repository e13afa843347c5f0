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

"""The arguments of diffusers' classes: which of them our networks can follow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["AUTOENCODER", "CONDITIONED", "UNCONDITIONED", "DiffusersClass"]

SILU = ("silu", "swish")


@dataclass(frozen=True)
class DiffusersClass:
    """
    A class of diffusers.

    Args:
        name: its name.
        defaults: its arguments that say how it computes, with the values that they have where nothing is said. Those
            that the shapes of the weights show, or that change no output, are there as well.
        allowed: the values of arguments that our network computes.
        free: whether our network computes every value of these: the shapes show them, or no output depends on them.
    """

    name: str
    defaults: Mapping[str, Any]
    allowed: Mapping[str, Sequence[Any]]
    free: frozenset[str] = field(default_factory=frozenset)

    def complete(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration with the values that it leaves out."""
        return {**self.defaults, **{key: value for key, value in config.items() if not key.startswith("_")}}

    def misfits(self, config: Mapping[str, Any]) -> Iterator[str]:
        """A line for each argument that no network of this package has."""
        known = {*self.defaults, *self.allowed, *self.free}
        for key, value in self.complete(config).items():
            if key not in known:
                yield f"{key}={value!r} of the configuration of {self.name} is not known here."
            elif key in self.allowed and not all(one in self.allowed[key] for one in _spread(value)):
                allowed = " or ".join(repr(one) for one in self.allowed[key])
                yield f"{key}={value!r}: {self.name} computes what this network does for {allowed} alone."


def _spread(value: Any) -> list[Any]:
    """The values of an argument that may have one for each level."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


_SIZES = ("in_channels", "out_channels", "block_out_channels", "layers_per_block", "sample_size")
_UNET_FREE = {*_SIZES, "dropout", "num_class_embeds", "time_embedding_dim", "num_train_timesteps", "flip_sin_to_cos"}
_UNET_DEFAULTS = {"norm_num_groups": 32, "norm_eps": 1e-5, "attention_head_dim": 8}
_UNET_ALLOWED: dict[str, Sequence[Any]] = {
    "act_fn": SILU,
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "downsample_padding": (1,),
    "freq_shift": (0,),
    "mid_block_scale_factor": (1,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_type": ("positional",),
}
CONDITIONED = DiffusersClass(
    "UNet2DConditionModel",
    {**_UNET_DEFAULTS, "num_attention_heads": None},
    {
        **_UNET_ALLOWED,
        "addition_embed_type": (None,),
        "addition_time_embed_dim": (None,),
        "attention_type": ("default",),
        "class_embeddings_concat": (False,),
        "conv_in_kernel": (3,),
        "conv_out_kernel": (3,),
        "cross_attention_norm": (None,),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "dual_cross_attention": (False,),
        "encoder_hid_dim": (None,),
        "encoder_hid_dim_type": (None,),
        "mid_block_only_cross_attention": (None, False),
        "mid_block_type": ("UNetMidBlock2DCrossAttn",),
        "only_cross_attention": (False,),
        "projection_class_embeddings_input_dim": (None,),
        "resnet_out_scale_factor": (1.0,),
        "resnet_skip_time_act": (False,),
        "reverse_transformer_layers_per_block": (None,),
        "time_cond_proj_dim": (None,),
        "time_embedding_act_fn": (None,),
        "timestep_post_act": (None,),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    },
    frozenset(
        {
            *_UNET_FREE,
            "addition_embed_type_num_heads",
            "cross_attention_dim",
            "transformer_layers_per_block",
            "upcast_attention",
            "use_linear_projection",
        }
    ),
)
UNCONDITIONED = DiffusersClass(
    "UNet2DModel",
    {**_UNET_DEFAULTS, "attn_norm_num_groups": None},
    {
        **_UNET_ALLOWED,
        "add_attention": (True,),
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
        "downsample_type": ("conv",),
        "mid_block_type": ("UNetMidBlock2D",),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "upsample_type": ("conv",),
    },
    frozenset(_UNET_FREE),
)
AUTOENCODER = DiffusersClass(
    "AutoencoderKL",
    {"norm_num_groups": 32, "layers_per_block": 1, "use_quant_conv": True, "use_post_quant_conv": True},
    {
        "act_fn": SILU,
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "mid_block_add_attention": (True,),
        "up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
    },
    frozenset(
        {
            *_SIZES,
            "force_upcast",
            "latent_channels",
            "latents_mean",
            "latents_std",
            "scaling_factor",
            "shift_factor",
        }
    ),
)
