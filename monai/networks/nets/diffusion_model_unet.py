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

"""The diffusion U-Net, and the classifier of noisy images that has its downward path."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Optional

import torch
import torch.nn as nn

# the release has these names in this module; a class that a user puts in the place of one of them is built instead
from monai.networks.blocks import (  # noqa: F401
    Convolution,
    CrossAttentionBlock,
    MLPBlock,
    SABlock,
    SpatialAttentionBlock,
    Upsample,
)
from monai.networks.blocks.attention.options import projection_argument, upcast_argument
from monai.networks.blocks.diffusion.layers import (  # noqa: F401
    DiffusionUnetDownsample,
    DiffusionUNetResnetBlock,
    WrappedUpsample,
    get_timestep_embedding,
    zero_module,
)
from monai.networks.blocks.diffusion.names import UNET_NAMES
from monai.networks.blocks.diffusion.network import DiffusionBackbone, DiffusionUNetBackbone, NetworkPlan, add_residuals
from monai.networks.blocks.diffusion.stages import (
    AttnDownBlock,
    AttnMidBlock,
    CrossAttnDownBlock,
    CrossAttnMidBlock,
    DownBlock,
)
from monai.networks.blocks.diffusion.transformer import DiffusionUNetTransformerBlock, SpatialTransformer  # noqa: F401
from monai.networks.blocks.diffusion.up_stages import AttnUpBlock, CrossAttnUpBlock, UpBlock
from monai.networks.layers.factories import Pool  # noqa: F401
from monai.utils import ensure_tuple_rep  # noqa: F401

__all__ = ["DiffusionModelEncoder", "DiffusionModelUNet"]

UNET_NAMES.follow(globals())


def get_down_block(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    temb_channels: int,
    num_res_blocks: int,
    norm_num_groups: int,
    norm_eps: float,
    add_downsample: bool,
    resblock_updown: bool,
    with_attn: bool,
    with_cross_attn: bool,
    num_head_channels: int,
    transformer_num_layers: int,
    cross_attention_dim: int | None,
    upcast_attention: bool = False,
    dropout_cattn: float = 0.0,
    include_fc: bool = True,
    use_combined_linear: bool = False,
    use_flash_attention: bool = False,
    use_proj_attn: bool | None = None,
) -> nn.Module:
    """Build the stage of the downward path that ``with_attn`` and ``with_cross_attn`` ask for."""
    if with_attn:
        return AttnDownBlock(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            out_channels=out_channels,
            temb_channels=temb_channels,
            num_res_blocks=num_res_blocks,
            norm_num_groups=norm_num_groups,
            norm_eps=norm_eps,
            add_downsample=add_downsample,
            resblock_updown=resblock_updown,
            num_head_channels=num_head_channels,
            include_fc=include_fc,
            use_combined_linear=use_combined_linear,
            use_flash_attention=use_flash_attention,
            **upcast_argument(upcast_attention),
            **projection_argument(use_proj_attn),
        )
    if with_cross_attn:
        return CrossAttnDownBlock(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            out_channels=out_channels,
            temb_channels=temb_channels,
            num_res_blocks=num_res_blocks,
            norm_num_groups=norm_num_groups,
            norm_eps=norm_eps,
            add_downsample=add_downsample,
            resblock_updown=resblock_updown,
            num_head_channels=num_head_channels,
            transformer_num_layers=transformer_num_layers,
            cross_attention_dim=cross_attention_dim,
            upcast_attention=upcast_attention,
            dropout_cattn=dropout_cattn,
            include_fc=include_fc,
            use_combined_linear=use_combined_linear,
            use_flash_attention=use_flash_attention,
            **projection_argument(use_proj_attn),
        )
    return DownBlock(
        spatial_dims=spatial_dims,
        in_channels=in_channels,
        out_channels=out_channels,
        temb_channels=temb_channels,
        num_res_blocks=num_res_blocks,
        norm_num_groups=norm_num_groups,
        norm_eps=norm_eps,
        add_downsample=add_downsample,
        resblock_updown=resblock_updown,
    )


def get_mid_block(
    spatial_dims: int,
    in_channels: int,
    temb_channels: int,
    norm_num_groups: int,
    norm_eps: float,
    with_conditioning: bool,
    num_head_channels: int,
    transformer_num_layers: int,
    cross_attention_dim: int | None,
    upcast_attention: bool = False,
    dropout_cattn: float = 0.0,
    include_fc: bool = True,
    use_combined_linear: bool = False,
    use_flash_attention: bool = False,
    use_proj_attn: bool | None = None,
) -> nn.Module:
    """Build the middle stage that ``with_conditioning`` asks for."""
    if with_conditioning:
        return CrossAttnMidBlock(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            temb_channels=temb_channels,
            norm_num_groups=norm_num_groups,
            norm_eps=norm_eps,
            num_head_channels=num_head_channels,
            transformer_num_layers=transformer_num_layers,
            cross_attention_dim=cross_attention_dim,
            upcast_attention=upcast_attention,
            dropout_cattn=dropout_cattn,
            include_fc=include_fc,
            use_combined_linear=use_combined_linear,
            use_flash_attention=use_flash_attention,
            **projection_argument(use_proj_attn),
        )
    return AttnMidBlock(
        spatial_dims=spatial_dims,
        in_channels=in_channels,
        temb_channels=temb_channels,
        norm_num_groups=norm_num_groups,
        norm_eps=norm_eps,
        num_head_channels=num_head_channels,
        include_fc=include_fc,
        use_combined_linear=use_combined_linear,
        use_flash_attention=use_flash_attention,
        **upcast_argument(upcast_attention),
        **projection_argument(use_proj_attn),
    )


def get_up_block(
    spatial_dims: int,
    in_channels: int,
    prev_output_channel: int,
    out_channels: int,
    temb_channels: int,
    num_res_blocks: int,
    norm_num_groups: int,
    norm_eps: float,
    add_upsample: bool,
    resblock_updown: bool,
    with_attn: bool,
    with_cross_attn: bool,
    num_head_channels: int,
    transformer_num_layers: int,
    cross_attention_dim: int | None,
    upcast_attention: bool = False,
    dropout_cattn: float = 0.0,
    include_fc: bool = True,
    use_combined_linear: bool = False,
    use_flash_attention: bool = False,
    use_proj_attn: bool | None = None,
) -> nn.Module:
    """Build the stage of the upward path that ``with_attn`` and ``with_cross_attn`` ask for."""
    if with_attn:
        return AttnUpBlock(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            prev_output_channel=prev_output_channel,
            out_channels=out_channels,
            temb_channels=temb_channels,
            num_res_blocks=num_res_blocks,
            norm_num_groups=norm_num_groups,
            norm_eps=norm_eps,
            add_upsample=add_upsample,
            resblock_updown=resblock_updown,
            num_head_channels=num_head_channels,
            include_fc=include_fc,
            use_combined_linear=use_combined_linear,
            use_flash_attention=use_flash_attention,
            **upcast_argument(upcast_attention),
            **projection_argument(use_proj_attn),
        )
    if with_cross_attn:
        return CrossAttnUpBlock(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            prev_output_channel=prev_output_channel,
            out_channels=out_channels,
            temb_channels=temb_channels,
            num_res_blocks=num_res_blocks,
            norm_num_groups=norm_num_groups,
            norm_eps=norm_eps,
            add_upsample=add_upsample,
            resblock_updown=resblock_updown,
            num_head_channels=num_head_channels,
            transformer_num_layers=transformer_num_layers,
            cross_attention_dim=cross_attention_dim,
            upcast_attention=upcast_attention,
            dropout_cattn=dropout_cattn,
            include_fc=include_fc,
            use_combined_linear=use_combined_linear,
            use_flash_attention=use_flash_attention,
            **projection_argument(use_proj_attn),
        )
    return UpBlock(
        spatial_dims=spatial_dims,
        in_channels=in_channels,
        prev_output_channel=prev_output_channel,
        out_channels=out_channels,
        temb_channels=temb_channels,
        num_res_blocks=num_res_blocks,
        norm_num_groups=norm_num_groups,
        norm_eps=norm_eps,
        add_upsample=add_upsample,
        resblock_updown=resblock_updown,
    )


class DiffusionModelUNet(DiffusionUNetBackbone):
    """
    U-Net that predicts the noise of an image at a time step, conditioned on request by a context, a class or a
    ControlNet (Rombach et al., https://arxiv.org/abs/2112.10752).

    Args:
        spatial_dims: number of spatial axes: 1, 2 or 3.
        in_channels: number of the image's channels.
        out_channels: number of the output's channels.
        num_res_blocks: number of residual blocks, one number for all levels or one for each. Defaults to 2.
        channels: number of channels of each level, from the full size to the smallest; multiples of
            ``norm_num_groups``. Defaults to (32, 64, 64, 64).
        attention_levels: whether a level has attention. Defaults to (False, False, True, True).
        norm_num_groups: into how many groups the norms divide the channels. Defaults to 32.
        norm_eps: what the norms add to the variance. Defaults to 1e-6.
        resblock_updown: whether residual blocks change the size of the image, or else plain samplers. Defaults to
            False.
        num_head_channels: width of one attention head, one number for all levels or one for each. Defaults to 8.
        with_conditioning: whether attention is that of transformers, which attend to a context. Defaults to False.
        transformer_num_layers: number of layers of each transformer. Defaults to 1.
        cross_attention_dim: width of the context, required ``with_conditioning``.
        num_class_embeds: number of classes that condition the network, or None.
        upcast_attention: whether attention is computed in float32. Defaults to False.
        dropout_cattn: fraction of the transformers' attention weights and outputs dropped in training. Defaults to 0.0.
        include_fc: whether self attention has an output projection, where ``use_proj_attn`` is None. Defaults to True.
        use_combined_linear: whether self attention computes q, k and v with one linear. Defaults to False.
        use_flash_attention: accepted; the fused kernel is used either way. Defaults to False.
        use_proj_attn: whether self and cross attention have an output projection. None (the default) leaves the choice
            to ``include_fc`` for self attention and means True for cross attention.
        transformer_norm_eps: what the norms in front of the transformers add to the variance; ``norm_eps`` unless
            given. Stable Diffusion has 1e-6 there, and 1e-5 elsewhere.

    Raises:
        ValueError: if the arguments contradict each other.
        TypeError: if ``use_proj_attn`` is neither a bool nor None.

    Example::

        net = DiffusionModelUNet(spatial_dims=2, in_channels=1, out_channels=1)
        noise = net(torch.randn(4, 1, 64, 64), timesteps=torch.randint(0, 1000, (4,)))
    """

    works_on_slabs = True

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
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
        dropout_cattn: float = 0.0,
        include_fc: bool = True,
        use_combined_linear: bool = False,
        use_flash_attention: bool = False,
        use_proj_attn: bool | None = None,
        transformer_norm_eps: float | None = None,
    ) -> None:
        plan = NetworkPlan(
            "DiffusionModelUNet",
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
            dropout_cattn=dropout_cattn,
        )
        super().__init__(plan, Convolution)
        builders = get_down_block, get_mid_block, get_up_block
        self._add_stages(plan, out_channels, 4 * channels[0], builders, Convolution)
        if transformer_norm_eps is not None:
            for module in self.modules():
                if isinstance(module, SpatialTransformer):
                    module.norm.eps = transformer_norm_eps

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        context: Optional[torch.Tensor] = None,
        class_labels: Optional[torch.Tensor] = None,
        down_block_additional_residuals: Optional[list[torch.Tensor]] = None,
        mid_block_additional_residual: Optional[torch.Tensor] = None,
        context_mask: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """
        Args:
            x: (B, in_channels, sizes).
            timesteps: (B,).
            context: tokens for cross attention, (B, K, cross_attention_dim).
            class_labels: numbers of classes, (B,).
            down_block_additional_residuals: a ControlNet's residuals for the downward path, a list or tuple.
            mid_block_additional_residual: its residual for the middle.
            context_mask: nonzero where a context token may be attended to, (B, K) or another shape that
                :class:`~monai.networks.blocks.CrossAttentionBlock` takes. None, the default, lets all be attended to.

        Returns:
            (B, out_channels, sizes)

        Raises:
            ValueError: if labels or the context are missing, a context comes unasked, or there are too few residuals.
        """
        time = get_timestep_embedding(timesteps, self.block_out_channels[0])
        emb = self._embed_time_and_class(x, time, class_labels)
        h, skips = self._go_down(self.conv_in(x), emb, context, context_mask)
        if down_block_additional_residuals is not None:
            add_residuals(skips, list(down_block_additional_residuals))
        h = self._middle(h, emb, context, context_mask)
        if mid_block_additional_residual is not None:
            h = h + mid_block_additional_residual
        out: torch.Tensor = self.out(self._go_up(h, skips, emb, context, context_mask))
        return out


class DiffusionModelEncoder(DiffusionBackbone):
    """
    Classifier of noisy images: the downward path of :class:`DiffusionModelUNet`, and two linears (Wolleb et al.,
    https://arxiv.org/abs/2203.04306).

    Args:
        out_channels: number of the logits.
        input_shape: size of the image's axes. Defaults to (64, 64).

    The other arguments are those of :class:`DiffusionModelUNet`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        input_shape: Sequence[int] = (64, 64),
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
        include_fc: bool = True,
        use_combined_linear: bool = False,
        use_flash_attention: bool = False,
        use_proj_attn: bool | None = None,
    ) -> None:
        # the release's default has an entry for each of four levels
        res_blocks = num_res_blocks
        if not isinstance(num_res_blocks, int):
            res_blocks = num_res_blocks[: len(channels)]
        plan = NetworkPlan(
            "DiffusionModelEncoder",
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            num_res_blocks=res_blocks,
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
        self.out_channels = out_channels
        self.num_res_blocks = plan.res_blocks if isinstance(num_res_blocks, int) else num_res_blocks
        levels = range(len(channels))
        # the last level is halved too, unlike that of the U-Net
        self.down_blocks = nn.ModuleList([plan.down_block(get_down_block, i, 4 * channels[0], True) for i in levels])
        positions = math.prod(math.ceil(size / 2 ** len(channels)) for size in input_shape)
        self.out = nn.Sequential(
            nn.Linear(positions * channels[-1], 512), nn.ReLU(), nn.Dropout(0.1), nn.Linear(512, out_channels)
        )

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        context: Optional[torch.Tensor] = None,
        class_labels: Optional[torch.Tensor] = None,
        context_mask: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """
        Args:
            x: (B, in_channels, size of every axis).
            timesteps: (B,).
            context: tokens for cross attention, (B, K, cross_attention_dim).
            class_labels: numbers of classes, (B,).
            context_mask: nonzero where a context token may be attended to, (B, K) or another shape that
                :class:`~monai.networks.blocks.CrossAttentionBlock` takes. None, the default, lets all be attended to.

        Returns:
            (B, out_channels)

        Raises:
            ValueError: if labels or the context are missing, or a context comes unasked.
        """
        time = get_timestep_embedding(timesteps, self.block_out_channels[0])
        emb = self._embed_time_and_class(x, time, class_labels)
        h, _ = self._go_down(self.conv_in(x), emb, context, context_mask)
        logits: torch.Tensor = self.out(h.flatten(1))
        return logits
