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

"""The ControlNet, which steers a diffusion U-Net by an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import torch
import torch.nn as nn

from monai.networks.blocks import Convolution
from monai.networks.blocks.diffusion.layers import convolution, zero_module
from monai.networks.blocks.diffusion.network import DiffusionBackbone, NetworkPlan
from monai.networks.nets.diffusion_model_unet import get_down_block, get_mid_block, get_timestep_embedding
from monai.utils import ensure_tuple_rep  # noqa: F401

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

    works_on_slabs = True

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, channels: Sequence[int]) -> None:
        super().__init__()

        def swish(width_in: int, width_out: int, strides: int = 1) -> Convolution:
            return Convolution(
                spatial_dims=spatial_dims,
                in_channels=width_in,
                out_channels=width_out,
                strides=strides,
                kernel_size=3,
                padding=1,
                adn_ordering="A",
                act="SWISH",
            )

        self.conv_in = swish(in_channels, channels[0])
        blocks: list[nn.Module] = []
        for width_in, width_out in zip(channels, channels[1:]):
            blocks.extend([swish(width_in, width_in), swish(width_in, width_out, strides=2)])
        self.blocks = nn.ModuleList(blocks)
        self.conv_out = zero_module(convolution(spatial_dims, channels[-1], out_channels, kind=Convolution))

    def forward(self, conditioning: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, sizes) to (B, out_channels, sizes halved once for each level after the first)."""
        embedding: torch.Tensor = self.conv_in(conditioning)
        for block in self.blocks:
            embedding = block(embedding)
        embedding = self.conv_out(embedding)
        return embedding


class ControlNet(DiffusionBackbone):
    """
    Control network: from an image it makes residuals that steer a
    :class:`~monai.networks.nets.diffusion_model_unet.DiffusionModelUNet` (Zhang and Agrawala,
    https://arxiv.org/abs/2302.05543).

    Args:
        conditioning_embedding_in_channels: number of channels of the controlling image. Defaults to 1.
        conditioning_embedding_num_channels: number of channels of the levels that embed it; the size is halved from
            one to the next. Defaults to (16, 32, 96, 256).

    The other arguments, and the errors, are those of ``DiffusionModelUNet``.
    """

    works_on_slabs = True
    beside_the_path = ("controlnet_cond_embedding",)

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
        plan = NetworkPlan(
            "ControlNet",
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            num_res_blocks=num_res_blocks,
            channels=channels,
            attention_levels=attention_levels,
            norm_num_groups=norm_num_groups,
            norm_eps=norm_eps,
            resblock_updown=resblock_updown,
            num_head_channels=num_head_channels,
            with_conditioning=with_conditioning,
            transformer_num_layers=transformer_num_layers,
            cross_attention_dim=cross_attention_dim,
            num_class_embeds=num_class_embeds,
            upcast_attention=upcast_attention,
            include_fc=include_fc,
            use_combined_linear=use_combined_linear,
            use_flash_attention=use_flash_attention,
            use_proj_attn=use_proj_attn,
        )
        super().__init__(plan, Convolution)
        self.controlnet_cond_embedding = ControlNetConditioningEmbedding(
            spatial_dims=spatial_dims,
            in_channels=conditioning_embedding_in_channels,
            channels=conditioning_embedding_num_channels,
            out_channels=channels[0],
        )
        self._add_controls(plan)

    def _add_controls(self, plan: NetworkPlan) -> None:
        """Register the stages, and the convolution that each of their residuals passes."""

        def control(width: int) -> nn.Module:
            return zero_module(convolution(plan.spatial_dims, width, width, kernel_size=1, kind=Convolution))

        channels = plan.channels
        # the release keeps the first of these convolutions without its wrapper
        down, controls = nn.ModuleList(), nn.ModuleList([control(channels[0]).get_submodule("conv")])
        for level, width in enumerate(channels):
            last = level == len(channels) - 1
            down.append(plan.down_block(get_down_block, level, 4 * channels[0], not last))
            controls.extend([control(width) for _ in range(plan.res_blocks[level] + (not last))])
        self.down_blocks, self.controlnet_down_blocks = down, controls
        self.middle_block = plan.mid_block(get_mid_block, 4 * channels[0])
        self.controlnet_mid_block = control(channels[-1])

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        controlnet_cond: torch.Tensor,
        conditioning_scale: float = 1.0,
        context: Optional[torch.Tensor] = None,
        class_labels: Optional[torch.Tensor] = None,
        context_mask: Optional[torch.Tensor] = None,
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
            context_mask: nonzero where a context token may be attended to, (B, K) or another shape that
                :class:`~monai.networks.blocks.CrossAttentionBlock` takes. None, the default, lets all be attended to.

        Returns:
            the residuals for the downward path, and the one for the middle, of the U-Net.

        Raises:
            ValueError: if labels or the context are missing, or a context comes unasked.
        """
        time = get_timestep_embedding(timesteps, self.block_out_channels[0])
        emb = self._embed_time_and_class(x, time, class_labels)
        h = self.conv_in(x)
        h = h + self.controlnet_cond_embedding(controlnet_cond)
        h, skips = self._go_down(h, emb, context, context_mask)
        h = self._middle(h, emb, context, context_mask)
        residuals, residual = self._residuals(h, skips)
        return [each * conditioning_scale for each in residuals], residual * conditioning_scale

    def _residuals(self, h: torch.Tensor, skips: list[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The residuals for a U-Net, from the features of the middle and of the downward path."""
        residuals: list[torch.Tensor] = []
        for number, block in enumerate(self.controlnet_down_blocks):
            residuals.append(block(skips[number]))
        return residuals, self.controlnet_mid_block(h)
