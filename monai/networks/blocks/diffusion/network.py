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

"""What the diffusion networks share: the checks of their arguments, their paths, a ControlNet's residuals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch
import torch.nn as nn

from monai.networks.blocks.attention.options import projection_argument
from monai.networks.blocks.convolutions import Convolution
from monai.networks.blocks.diffusion.first_layout import first_places
from monai.networks.blocks.diffusion.layers import convolution, embedding_mlp, zero_module
from monai.networks.state_dict.hooks import OldCheckpoints
from monai.networks.state_dict.rules import Part
from monai.utils import ensure_tuple_rep

__all__ = ["DiffusionBackbone", "DiffusionUNetBackbone", "NetworkPlan", "add_residuals"]


@dataclass
class NetworkPlan:
    """
    What a diffusion network is built from, checked.

    Args:
        network: name of the network, for messages.
        spatial_dims: number of spatial axes.
        in_channels: number of the image's channels.
        num_res_blocks: number of residual blocks, one number for all levels or one for each.
        channels: number of channels of each level, from the full size of the image to the smallest.
        attention_levels: whether a level has attention.
        norm_num_groups: into how many groups the norms divide the channels.
        norm_eps: what the norms add to the variance.
        resblock_updown: whether residual blocks change the size of the image, or else plain samplers.
        num_head_channels: width of one attention head, one number for all levels or one for each.
        with_conditioning: whether attention is that of transformers, which attend to a context as well.
        transformer_num_layers: number of layers of each transformer.
        cross_attention_dim: width of the context.
        num_class_embeds: number of classes, or None.
        upcast_attention: whether attention is computed in float32.
        include_fc: whether self attention has an output projection, where ``use_proj_attn`` is None.
        use_combined_linear: whether self attention computes q, k and v with one linear.
        use_flash_attention: accepted; the fused kernel is used either way.
        use_proj_attn: whether self and cross attention have an output projection, or None.
        dropout_cattn: fraction of the transformers' attention weights and outputs dropped in training, or None for a
            network that takes no such argument.

    Raises:
        ValueError: if the arguments contradict each other.
    """

    network: str
    spatial_dims: int
    in_channels: int
    num_res_blocks: Sequence[int] | int
    channels: Sequence[int]
    attention_levels: Sequence[bool]
    norm_num_groups: int
    norm_eps: float
    resblock_updown: bool
    num_head_channels: Sequence[int] | int
    with_conditioning: bool
    transformer_num_layers: int
    cross_attention_dim: int | None
    num_class_embeds: int | None
    upcast_attention: bool
    include_fc: bool
    use_combined_linear: bool
    use_flash_attention: bool
    use_proj_attn: bool | None
    dropout_cattn: float | None = None

    def __post_init__(self) -> None:
        self._check_conditioning()
        self._check_channels()
        levels = len(self.channels)
        self.head_channels = _for_each_level("num_head_channels", self.num_head_channels, levels, self.channels)
        self.res_blocks = _for_each_level("num_res_blocks", self.num_res_blocks, levels, self.channels)

    def down_block(self, build: Callable[..., nn.Module], level: int, temb_channels: int, down: bool) -> nn.Module:
        """
        Build a stage of the downward path.

        Args:
            build: :func:`~monai.networks.nets.diffusion_model_unet.get_down_block`, as the network's module has it.
            level: number of the level, 0 for the full size of the image.
            temb_channels: width of the embeddings.
            down: whether a downsampler follows.
        """
        return build(
            in_channels=self.channels[max(level - 1, 0)],
            out_channels=self.channels[level],
            num_res_blocks=self.res_blocks[level],
            add_downsample=down,
            **self._placement(level),
            **self._shared(level, temb_channels),
        )

    def mid_block(self, build: Callable[..., nn.Module], temb_channels: int) -> nn.Module:
        """Build the stage in the middle, by :func:`~monai.networks.nets.diffusion_model_unet.get_mid_block`."""
        return build(
            in_channels=self.channels[-1],
            with_conditioning=self.with_conditioning,
            **self._shared(-1, temb_channels),
        )

    def up_block(self, build: Callable[..., nn.Module], level: int, temb_channels: int) -> nn.Module:
        """Build a stage of the upward path, by :func:`~monai.networks.nets.diffusion_model_unet.get_up_block`."""
        return build(
            in_channels=self.channels[max(level - 1, 0)],
            prev_output_channel=self.channels[min(level + 1, len(self.channels) - 1)],
            out_channels=self.channels[level],
            num_res_blocks=self.res_blocks[level] + 1,
            add_upsample=level > 0,
            **self._placement(level),
            **self._shared(level, temb_channels),
        )

    def _placement(self, level: int) -> dict[str, Any]:
        attends = self.attention_levels[level]
        return {
            "resblock_updown": self.resblock_updown,
            "with_attn": attends and not self.with_conditioning,
            "with_cross_attn": attends and self.with_conditioning,
        }

    def _shared(self, level: int, temb_channels: int) -> dict[str, Any]:
        """Arguments of all stages."""
        shared = {
            "spatial_dims": self.spatial_dims,
            "temb_channels": temb_channels,
            "norm_num_groups": self.norm_num_groups,
            "norm_eps": self.norm_eps,
            "num_head_channels": self.head_channels[level],
            "transformer_num_layers": self.transformer_num_layers,
            "cross_attention_dim": self.cross_attention_dim,
            "upcast_attention": self.upcast_attention,
            "include_fc": self.include_fc,
            "use_combined_linear": self.use_combined_linear,
            "use_flash_attention": self.use_flash_attention,
            **projection_argument(self.use_proj_attn),
        }
        if self.dropout_cattn is not None:
            shared["dropout_cattn"] = self.dropout_cattn
        return shared

    def _check_conditioning(self) -> None:
        if self.with_conditioning and self.cross_attention_dim is None:
            raise ValueError(
                f"{self.network} expects dimension of the cross-attention conditioning (cross_attention_dim) "
                "to be specified when with_conditioning=True."
            )
        if self.cross_attention_dim is not None and not self.with_conditioning:
            raise ValueError(f"{self.network} expects with_conditioning=True when specifying the cross_attention_dim.")
        if self.dropout_cattn is not None and not 0.0 <= self.dropout_cattn <= 1.0:
            raise ValueError(f"{self.network} expects dropout_cattn between 0 and 1, but got {self.dropout_cattn}.")

    def _check_channels(self) -> None:
        if any(width % self.norm_num_groups != 0 for width in self.channels):
            raise ValueError(
                f"{self.network} expects all channels to be a multiple of norm_num_groups, but got"
                f" channels={self.channels} and norm_num_groups={self.norm_num_groups}"
            )
        if len(self.channels) != len(self.attention_levels):
            raise ValueError(
                f"{self.network} expects channels to have the same length as attention_levels, but got "
                f"channels={self.channels} and attention_levels={self.attention_levels}"
            )


def _for_each_level(name: str, value: Sequence[int] | int, levels: int, channels: Sequence[int]) -> Sequence[int]:
    """One number for each level; a sequence as it was given."""
    if isinstance(value, int):
        return ensure_tuple_rep(value, levels)
    if len(value) != levels:
        raise ValueError(
            f"{name} should be an integer or have an entry for each level, but got {name}={value} and "
            f"channels={channels}; where a level has no use for it, it is ignored."
        )
    return value


def add_residuals(skips: list[torch.Tensor], residuals: list[torch.Tensor], keep_dtype: bool = False) -> None:
    """
    Add a ControlNet's residuals to the features of the downward path. Changes the list, and no tensor.

    Args:
        skips: the features, in whose place the sums are put.
        residuals: one for each of them; surplus ones are ignored.
        keep_dtype: whether the sums have the types of the features.

    Raises:
        ValueError: if there are too few.
    """
    if len(residuals) < len(skips):
        raise ValueError(
            f"down_block_additional_residuals has {len(residuals)} entries, this network takes {len(skips)}."
        )
    for number in range(len(skips)):
        dtype = skips[number].dtype
        skips[number] = skips[number] + residuals[number]
        if keep_dtype:
            skips[number] = skips[number].to(dtype)


class DiffusionBackbone(OldCheckpoints):
    """
    What all diffusion networks share: the first convolution, the embeddings of time and class, the downward path.

    A subclass registers ``down_blocks``, and ``middle_block`` if it has one, after any embeddings of its own.

    Args:
        plan: what the network is built from.
        kind: class of the first convolution.
        make_embedding: builds the layers that embed the time, from the widths of their input and output.
    """

    # numbers of axes that the release can run
    release_dims = (2, 3)

    def __init__(
        self,
        plan: NetworkPlan,
        kind: type[Convolution] = Convolution,
        make_embedding: Callable[[int, int], nn.Module] = embedding_mlp,
    ) -> None:
        super().__init__()
        self.down_blocks: nn.ModuleList
        self.middle_block: nn.Module
        self.in_channels = plan.in_channels
        self.block_out_channels = plan.channels
        self.num_res_blocks = plan.res_blocks
        self.attention_levels = plan.attention_levels
        self.num_head_channels = plan.head_channels
        self.with_conditioning = plan.with_conditioning
        self.num_class_embeds = plan.num_class_embeds

        width = plan.channels[0]
        self.conv_in = convolution(plan.spatial_dims, plan.in_channels, width, kind=kind)
        self.time_embed = make_embedding(width, 4 * width)
        if plan.num_class_embeds is not None:
            self.class_embedding = nn.Embedding(plan.num_class_embeds, 4 * width)

    def _embed_time_and_class(
        self, x: torch.Tensor, time: torch.Tensor, class_labels: Optional[torch.Tensor]
    ) -> torch.Tensor:
        """
        Embed time and class.

        Args:
            x: the image, whose type the embedding takes.
            time: the time steps as cosines and sines, (B, channels of the first level).
            class_labels: numbers of classes, (B,); required by a network with classes.

        Returns:
            (B, 4 * channels of the first level)

        Raises:
            ValueError: if the labels are missing.
        """
        emb: torch.Tensor = self.time_embed(time.to(x.dtype))
        if self.num_class_embeds is not None:
            if class_labels is None:
                raise ValueError(f"class_labels should be given: the network has {self.num_class_embeds} classes.")
            emb = emb + self.class_embedding(class_labels).to(x.dtype)
        return emb

    def _go_down(
        self,
        h: torch.Tensor,
        emb: torch.Tensor,
        context: Optional[torch.Tensor],
        context_mask: Optional[torch.Tensor],
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """
        Go the downward path.

        Args:
            h: features at full size, (B, channels of the first level, sizes).
            emb: embedding of time and class.
            context: tokens for cross attention, (B, K, cross_attention_dim).
            context_mask: nonzero where a context token may be attended to, (B, K).

        Returns:
            the last features; and the first ones with those after every residual block and sampler.

        Raises:
            ValueError: if a context or its mask comes to a network that attends to none, or a mask without a context.
        """
        self._check_context(context, context_mask)
        skips: list[torch.Tensor] = [h]
        for block in self.down_blocks:
            if context_mask is None:
                h, states = block(hidden_states=h, temb=emb, context=context)
            else:
                h, states = block(hidden_states=h, temb=emb, context=context, context_mask=context_mask)
            skips.extend(states)
        return h, skips

    def _check_context(self, context: Optional[torch.Tensor], context_mask: Optional[torch.Tensor]) -> None:
        if not self.with_conditioning:
            if context is not None:
                raise ValueError(
                    "a context was given, but the network attends to none: build it with_conditioning=True."
                )
            if context_mask is not None:
                raise ValueError(
                    "a context_mask was given, but the network attends to no context: build it with_conditioning=True."
                )
        elif context_mask is not None and context is None:
            raise ValueError("a context_mask was given without the context that it masks.")

    def _middle(
        self,
        h: torch.Tensor,
        emb: torch.Tensor,
        context: Optional[torch.Tensor],
        context_mask: Optional[torch.Tensor],
    ) -> torch.Tensor:
        """The stage in the middle; the arguments are those of :meth:`_go_down`."""
        if context_mask is None:
            h = self.middle_block(hidden_states=h, temb=emb, context=context)
        else:
            h = self.middle_block(hidden_states=h, temb=emb, context=context, context_mask=context_mask)
        return h


class DiffusionUNetBackbone(DiffusionBackbone):
    """
    A diffusion network whose output has the size of its input.

    A subclass registers its embeddings and then calls :meth:`_add_stages`.
    """

    layout_role = "whole diffusion network"

    def adapt_state_dict(self, part: Part) -> None:
        """Bring the keys of the first U-Nets to the places of this network's. Changes the checkpoint."""
        if part.foreign("input_blocks."):
            for rule in first_places(self):
                rule.apply(part)

    def _add_stages(
        self,
        plan: NetworkPlan,
        out_channels: int,
        temb_channels: int,
        builders: tuple[Callable[..., nn.Module], Callable[..., nn.Module], Callable[..., nn.Module]],
        kind: type[Convolution] = Convolution,
    ) -> None:
        """
        Register everything that follows the embeddings.

        Args:
            plan: what the network is built from.
            out_channels: number of the output's channels.
            temb_channels: width of the embeddings together.
            builders: the functions that build the stages: downward, in the middle, upward.
            kind: class of the last convolution.
        """
        self.out_channels = out_channels
        build_down, build_mid, build_up = builders
        levels = range(len(plan.channels))
        down = [plan.down_block(build_down, level, temb_channels, level != levels[-1]) for level in levels]
        self.down_blocks = nn.ModuleList(down)
        self.middle_block = plan.mid_block(build_mid, temb_channels)
        self.up_blocks = nn.ModuleList([plan.up_block(build_up, level, temb_channels) for level in reversed(levels)])
        width = plan.channels[0]
        self.out = nn.Sequential(
            nn.GroupNorm(plan.norm_num_groups, width, eps=plan.norm_eps),
            nn.SiLU(),
            zero_module(convolution(plan.spatial_dims, width, out_channels, kind=kind)),
        )

    def _go_up(
        self,
        h: torch.Tensor,
        skips: list[torch.Tensor],
        emb: torch.Tensor,
        context: Optional[torch.Tensor],
        context_mask: Optional[torch.Tensor],
    ) -> torch.Tensor:
        """
        Go the upward path.

        Args:
            h: features of the middle.
            skips: features of the downward path. Each stage takes the last ones off the list, one for each residual
                block, so that their memory is free as soon as they are used.

        The other arguments are those of :meth:`_go_down`.

        Returns:
            features at full size, (B, channels of the first level, sizes)
        """
        for block in self.up_blocks:
            taken = [skips.pop() for _ in range(len(block.resnets))][::-1]  # type: ignore[arg-type]
            if context_mask is None:
                h = block(hidden_states=h, res_hidden_states_list=taken, temb=emb, context=context)
            else:
                h = block(
                    hidden_states=h, res_hidden_states_list=taken, temb=emb, context=context, context_mask=context_mask
                )
        return h
