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

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Optional

import torch
import torch.nn as nn

from monai.networks.blocks.diffusion.first_layout import first_places
from monai.networks.blocks.diffusion.layers import convolution, embedding_mlp, get_timestep_embedding, zero_module
from monai.networks.blocks.diffusion.stages import DownStage, MidStage, StageOptions, UpStage
from monai.networks.blocks.diffusion.unet_blocks import (
    AttnDownBlock,
    AttnMidBlock,
    AttnUpBlock,
    CrossAttnDownBlock,
    CrossAttnMidBlock,
    CrossAttnUpBlock,
    DownBlock,
    UpBlock,
)
from monai.networks.state_dict.hooks import OldCheckpoints
from monai.networks.state_dict.rules import Part
from monai.utils import ensure_tuple_rep

__all__ = ["DiffusionBackbone", "DiffusionUNetBackbone", "NetworkPlan"]
DOWN_STAGES = (DownBlock, AttnDownBlock, CrossAttnDownBlock)
UP_STAGES = (UpBlock, AttnUpBlock, CrossAttnUpBlock)


@dataclass(frozen=True)
class NetworkPlan:
    """
    What a diffusion network is built from, checked, with one entry for each level; it makes the network's stages.

    Args:
        in_channels: number of the image's channels.
        channels: number of channels of each level, from the full size of the image to the smallest.
        num_res_blocks: number of residual blocks of each level.
        attention_levels: whether a level has attention.
        num_head_channels: width of one attention head of each level.
        with_conditioning: whether attention is that of transformers, which attend to a context as well.
        num_class_embeds: number of classes, or None.
        stage: what the stages have in common.
    """

    in_channels: int
    channels: Sequence[int]
    num_res_blocks: Sequence[int]
    attention_levels: Sequence[bool]
    num_head_channels: Sequence[int]
    with_conditioning: bool
    num_class_embeds: int | None
    stage: StageOptions

    @classmethod
    def from_arguments(cls, network: str, arguments: Mapping[str, Any]) -> NetworkPlan:
        """
        Pick and check the fields among the arguments of a network.

        Args:
            network: name of the network, for messages.
            arguments: values by name, ``locals()`` at the head of a constructor.

        Raises:
            ValueError: if the arguments contradict each other.
        """
        channels: Sequence[int] = arguments["channels" if "channels" in arguments else "num_channels"]
        values = {**arguments, "channels": channels}
        for name in ("num_head_channels", "num_res_blocks"):
            if isinstance(values[name], int):
                values[name] = ensure_tuple_rep(values[name], len(channels))
        for name in ("attention_levels", "num_head_channels", "num_res_blocks"):
            if len(values[name]) != len(channels):
                raise ValueError(
                    f"{network} needs one entry of {name}={values[name]} for each entry of channels={channels}; "
                    "where a level has no use for it, it is ignored."
                )
        _check(network, values)
        stage = StageOptions.from_arguments({**values, "num_head_channels": 1, "temb_channels": 0})
        own = [item.name for item in fields(cls) if item.name != "stage"]
        return cls(**{name: values[name] for name in own}, stage=stage)

    def down_stage(self, level: int, temb_channels: int, add_downsample: bool) -> DownStage:
        """Build a stage of the downward path."""
        return self._kind(level, *DOWN_STAGES).from_options(
            self._options(level, temb_channels),
            self.channels[max(level - 1, 0)],
            self.channels[level],
            self.num_res_blocks[level],
            add_downsample,
        )

    def mid_stage(self, temb_channels: int) -> MidStage:
        """Build the stage between the downward and the upward path."""
        kind = CrossAttnMidBlock if self.with_conditioning else AttnMidBlock
        return kind.from_options(self._options(-1, temb_channels), self.channels[-1])

    def up_stage(self, level: int, temb_channels: int, kinds=UP_STAGES) -> UpStage:
        """Build a stage of the upward path, see :meth:`DiffusionUNetBackbone.add_stages`."""
        return self._kind(level, *kinds).from_options(
            self._options(level, temb_channels),
            self.channels[max(level - 1, 0)],
            self.channels[min(level + 1, len(self.channels) - 1)],
            self.channels[level],
            self.num_res_blocks[level] + 1,
            level > 0,
        )

    def _options(self, level: int, temb_channels: int) -> StageOptions:
        return replace(self.stage, num_head_channels=self.num_head_channels[level], temb_channels=temb_channels)

    def _kind(self, level: int, plain, attending, conditioned):
        """The class that a level asks for."""
        if not self.attention_levels[level]:
            return plain
        return conditioned if self.with_conditioning else attending


def _check(network: str, values: Mapping[str, Any]) -> None:
    channels, groups, context = values["channels"], values["norm_num_groups"], values["cross_attention_dim"]
    if any(width % groups != 0 for width in channels):
        raise ValueError(f"{network} needs channels={channels} that are multiples of norm_num_groups={groups}.")
    if values["with_conditioning"] and context is None:
        raise ValueError(f"{network} with with_conditioning=True needs cross_attention_dim, the width of the context.")
    if context is not None and not values["with_conditioning"]:
        raise ValueError(f"{network} has no use for cross_attention_dim={context} without with_conditioning=True.")
    dropout = values.get("dropout_cattn", 0.0)
    if not 0.0 <= dropout <= 1.0:
        raise ValueError(f"{network} needs dropout_cattn between 0 and 1, got {dropout}.")


class DiffusionBackbone(OldCheckpoints):
    """
    What all diffusion networks share: the first convolution, the embeddings of time and class, the downward path.

    A subclass registers ``down_blocks``, after any embeddings of its own.

    Args:
        plan: what the network is built from.
    """

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        self.down_blocks: nn.ModuleList
        self.in_channels = plan.in_channels
        self.block_out_channels = plan.channels
        self.num_res_blocks = plan.num_res_blocks
        self.attention_levels = plan.attention_levels
        self.num_head_channels = plan.num_head_channels
        self.with_conditioning = plan.with_conditioning
        self.num_class_embeds = plan.num_class_embeds

        width = plan.channels[0]
        self.time_embed_dim = 4 * width
        self.conv_in = convolution(plan.stage.spatial_dims, plan.in_channels, width)
        self.time_embed = embedding_mlp(width, self.time_embed_dim)
        if plan.num_class_embeds is not None:
            self.class_embedding = nn.Embedding(plan.num_class_embeds, self.time_embed_dim)

    def embed(self, x: torch.Tensor, timesteps: torch.Tensor, class_labels: Optional[torch.Tensor]) -> torch.Tensor:
        """
        Embed time and class.

        Args:
            x: the image, whose type the embedding takes.
            timesteps: (B,).
            class_labels: numbers of classes, (B,); required by a network with classes.

        Returns:
            (B, 4 * channels of the first level)

        Raises:
            ValueError: if the labels are missing.
        """
        emb = self.time_embed(get_timestep_embedding(timesteps, self.block_out_channels[0]).to(x.dtype))
        if self.num_class_embeds is not None:
            if class_labels is None:
                raise ValueError(f"class_labels should be given: the network has {self.num_class_embeds} classes.")
            emb = emb + self.class_embedding(class_labels).to(x.dtype)
        return emb

    def encode(
        self, h: torch.Tensor, emb: torch.Tensor, context: Optional[torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """
        Go the downward path.

        Args:
            h: features at full size, (B, channels of the first level, sizes).
            emb: embedding of time and class.
            context: tokens for cross attention, (B, K, cross_attention_dim).

        Returns:
            the last features; and the first ones with those after every residual block and sampler.

        Raises:
            ValueError: if a context comes to a network that attends to none.
        """
        if context is not None and not self.with_conditioning:
            raise ValueError("a context was given, but the network attends to none: build it with_conditioning=True.")
        skips: list[torch.Tensor] = [h]
        for block in self.down_blocks:
            h, states = block(h, emb, context)
            skips.extend(states)
        return h, skips


class DiffusionUNetBackbone(DiffusionBackbone):
    """
    A diffusion network whose output has the size of its input: the middle, the upward path and the residuals that a
    ControlNet adds.

    A subclass registers its embeddings and then calls :meth:`add_stages`.
    """

    layout_role = "whole diffusion network"

    def adapt_state_dict(self, part: Part) -> None:
        """Bring the keys of the first U-Nets to the places of this network's. Changes the checkpoint."""
        if part.foreign("input_blocks."):
            for rule in first_places(self):
                rule.apply(part)

    def add_stages(self, plan: NetworkPlan, out_channels: int, temb_channels: int, up_kinds=UP_STAGES) -> None:
        """
        Register everything that follows the embeddings.

        Args:
            plan: what the network is built from.
            out_channels: number of the output's channels.
            temb_channels: width of the embeddings together.
            up_kinds: classes of the stages of the upward path: without attention, with it, with a context.
        """
        self.out_channels = out_channels
        levels = range(len(plan.channels))
        down = [plan.down_stage(level, temb_channels, add_downsample=level != levels[-1]) for level in levels]
        self.down_blocks = nn.ModuleList(down)
        self.middle_block = plan.mid_stage(temb_channels)
        self.up_blocks = nn.ModuleList([plan.up_stage(level, temb_channels, up_kinds) for level in reversed(levels)])
        width, stage = plan.channels[0], plan.stage
        self.out = nn.Sequential(
            nn.GroupNorm(stage.norm_num_groups, width, eps=stage.norm_eps),
            nn.SiLU(),
            zero_module(convolution(stage.spatial_dims, width, out_channels)),
        )

    def add_control(self, skips: list[torch.Tensor], residuals: Optional[list[torch.Tensor]]) -> list[torch.Tensor]:
        """
        Add a ControlNet's residuals to the features of the downward path.

        Raises:
            ValueError: if their numbers differ.
        """
        if residuals is None:
            return skips
        if len(residuals) != len(skips):
            raise ValueError(
                f"down_block_additional_residuals has {len(residuals)} entries, this network takes {len(skips)}."
            )
        return [skip + residuals[number] for number, skip in enumerate(skips)]

    def middle(
        self, h: torch.Tensor, emb: torch.Tensor, context: Optional[torch.Tensor], residual: Optional[torch.Tensor]
    ) -> torch.Tensor:
        """The middle stage, with a ControlNet's residual added."""
        h = self.middle_block(h, emb, context)
        return h if residual is None else h + residual

    def denoise(
        self,
        x: torch.Tensor,
        emb: torch.Tensor,
        context: Optional[torch.Tensor],
        down_residuals: Optional[list[torch.Tensor]],
        mid_residual: Optional[torch.Tensor],
    ) -> torch.Tensor:
        """
        Everything but the embeddings.

        Args:
            x: (B, in_channels, sizes).
            emb: embeddings, (B, temb_channels).
            context: tokens for cross attention, (B, K, cross_attention_dim).
            down_residuals: what a ControlNet adds to the features of the downward path.
            mid_residual: what it adds to the middle's.

        Returns:
            (B, out_channels, sizes)
        """
        h, skips = self.encode(self.conv_in(x), emb, context)
        skips = self.add_control(skips, down_residuals)
        h = self.middle(h, emb, context, mid_residual)
        for block in self.up_blocks:
            taken = len(skips) - len(block.resnets)  # type: ignore[arg-type]
            h = block(h, skips[taken:], emb, context)
            skips = skips[:taken]
        return self.out(h)
