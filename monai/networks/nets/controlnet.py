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

from collections.abc import Sequence
from typing import Optional

import torch
import torch.nn as nn
from torch.utils.checkpoint import checkpoint

from monai.networks.blocks import Convolution
from monai.networks.blocks.diffusion.layers import convolution, get_timestep_embedding, zero_module  # noqa: F401
from monai.networks.blocks.diffusion.network import DiffusionBackbone, NetworkPlan
from monai.networks.blocks.diffusion.unet_blocks import get_down_block, get_mid_block  # noqa: F401

__all__ = ["ControlNet", "ControlNetConditioningEmbedding"]


class ControlNetConditioningEmbedding(nn.Module):
    """
    Brings the image that controls a diffusion network to the size and channels of that network's features.

    Args:
        spatial_dims: number of spatial axes.
        in_channels: number of the image's channels.
        out_channels: number of the features' channels.
        channels: number of channels of each level; the size is halved from one to the next.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, channels: Sequence[int]) -> None:
        super().__init__()

        def swish(width_in: int, width_out: int, strides: int = 1) -> Convolution:
            return Convolution(
                spatial_dims, width_in, width_out, strides=strides, padding=1, adn_ordering="A", act="SWISH"
            )

        self.conv_in = swish(in_channels, channels[0])
        blocks: list[nn.Module] = []
        for width_in, width_out in zip(channels, channels[1:]):
            blocks.extend([swish(width_in, width_in), swish(width_in, width_out, strides=2)])
        self.blocks = nn.ModuleList(blocks)
        self.conv_out = zero_module(convolution(spatial_dims, channels[-1], out_channels))

    def forward(self, conditioning: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, sizes) to (B, out_channels, sizes halved once for each level after the first)."""
        embedding = self.conv_in(conditioning)
        for block in self.blocks:
            embedding = block(embedding)
        return self.conv_out(embedding)


class ControlNet(DiffusionBackbone):
    """
    Control network: from an image it makes residuals that steer a
    :class:`~monai.networks.nets.diffusion_model_unet.DiffusionModelUNet` (Zhang and Agrawala,
    https://arxiv.org/abs/2302.05543).

    Args:
        conditioning_embedding_in_channels: number of channels of the controlling image. Defaults to 1.
        conditioning_embedding_num_channels: number of channels of the levels that embed it, whose size is halved from
            one to the next. Defaults to (16, 32, 96, 256).

    The other arguments, and the errors, are those of ``DiffusionModelUNet``.
    """

    # a constant, so that TorchScript and exporters do not meet the checkpointing of a network that does without
    __constants__ = ["use_checkpointing"]

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        num_res_blocks: Sequence[int] | int = (2, 2, 2, 2),
        channels: Sequence[int] = (32, 64, 64, 64),
        attention_levels: Sequence[bool] = (False, False, True, True),
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        resblock_updown: bool = False,
        num_head_channels: int | Sequence[int] = 8,
        with_conditioning: bool = False,
        transformer_num_layers: int = 1,
        cross_attention_dim: int | None = None,
        num_class_embeds: int | None = None,
        upcast_attention: bool = False,
        conditioning_embedding_in_channels: int = 1,
        conditioning_embedding_num_channels: Sequence[int] = (16, 32, 96, 256),
        include_fc: bool = True,
        use_combined_linear: bool = False,
        use_flash_attention: bool = False,
        use_proj_attn: bool | None = None,
    ) -> None:
        plan = NetworkPlan.from_arguments("ControlNet", locals())
        self.build(plan, conditioning_embedding_in_channels, conditioning_embedding_num_channels)

    def build(
        self,
        plan: NetworkPlan,
        condition_channels: int,
        embedding_channels: Sequence[int],
        use_checkpointing: bool = False,
    ) -> None:
        """
        Register the parts of the network; the end of every constructor.

        Args:
            plan: what the network is built from.
            condition_channels: number of channels of the controlling image.
            embedding_channels: number of channels of the levels that embed it.
            use_checkpointing: whether training computes that embedding twice, instead of keeping it.
        """
        super().__init__(plan)
        self.use_checkpointing = use_checkpointing
        spatial_dims, channels = plan.stage.spatial_dims, plan.channels
        self.controlnet_cond_embedding = ControlNetConditioningEmbedding(
            spatial_dims, condition_channels, channels[0], embedding_channels
        )

        def control(width: int) -> nn.Module:
            return zero_module(convolution(spatial_dims, width, width, kernel_size=1))

        # the release keeps the first of these convolutions without its wrapper
        down, controls = nn.ModuleList(), nn.ModuleList([control(channels[0]).get_submodule("conv")])
        for level, width in enumerate(channels):
            last = level == len(channels) - 1
            down.append(plan.down_stage(level, self.time_embed_dim, add_downsample=not last))
            controls.extend([control(width) for _ in range(plan.num_res_blocks[level] + (not last))])
        self.down_blocks, self.controlnet_down_blocks = down, controls
        self.middle_block = plan.mid_stage(self.time_embed_dim)
        self.controlnet_mid_block = control(channels[-1])

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        controlnet_cond: torch.Tensor,
        conditioning_scale: float = 1.0,
        context: Optional[torch.Tensor] = None,
        class_labels: Optional[torch.Tensor] = None,
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """
        Args:
            x: noisy image, (B, in_channels, sizes).
            timesteps: (B,).
            controlnet_cond: image that controls, (B, conditioning_embedding_in_channels, sizes), where a size is that
                of ``x`` times two to the number of levels that embed it, less one.
            conditioning_scale: factor of the residuals. Defaults to 1.0.
            context: tokens for cross attention, (B, K, cross_attention_dim).
            class_labels: numbers of classes, (B,).

        Returns:
            the residuals for the downward path, and the one for the middle, of the U-Net.

        Raises:
            ValueError: if labels are missing or a context comes unasked.
        """
        emb = self.embed(x, timesteps, class_labels)
        h, skips = self.encode(self.conv_in(x) + self.embed_condition(controlnet_cond), emb, context)
        h = self.middle_block(h, emb, context)
        residuals: list[torch.Tensor] = []
        for number, block in enumerate(self.controlnet_down_blocks):
            residuals.append(block(skips[number]) * conditioning_scale)
        return residuals, self.controlnet_mid_block(h) * conditioning_scale

    def embed_condition(self, condition: torch.Tensor) -> torch.Tensor:
        """Bring the image that controls to the features' size; with checkpointing, gradients compute it once more."""
        if self.use_checkpointing:
            if not torch.jit.is_scripting():
                if torch.is_grad_enabled() and not torch.compiler.is_exporting():
                    return checkpoint(self.controlnet_cond_embedding, condition, use_reentrant=False)
        return self.controlnet_cond_embedding(condition)
