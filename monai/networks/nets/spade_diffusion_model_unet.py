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

"""The diffusion U-Net whose upward path is modulated by a segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Optional

import torch
import torch.nn as nn

# the release has these names in this module; a class that a user puts in the place of one of them is built instead
from monai.networks.blocks import Convolution, SpatialAttentionBlock  # noqa: F401
from monai.networks.blocks.attention.options import projection_argument, upcast_argument
from monai.networks.blocks.diffusion.layers import ResidualBlock
from monai.networks.blocks.diffusion.names import Names
from monai.networks.blocks.diffusion.network import DiffusionUNetBackbone, NetworkPlan, add_residuals
from monai.networks.blocks.diffusion.parts import CrossAttention, Residuals, SelfAttention, alternating, up_widths
from monai.networks.blocks.spade_norm import SPADE
from monai.networks.nets.diffusion_model_unet import (  # noqa: F401
    DiffusionUnetDownsample,
    DiffusionUNetResnetBlock,
    SpatialTransformer,
    WrappedUpsample,
    get_down_block,
    get_mid_block,
    get_timestep_embedding,
    zero_module,
)
from monai.utils import ensure_tuple_rep  # noqa: F401

__all__ = ["SPADEDiffusionModelUNet"]

NAMES = Names(globals())


class SPADEDiffResBlock(ResidualBlock):
    """
    Residual block that takes a time embedding, and whose norms are modulated by a segmentation (Park et al.,
    https://arxiv.org/abs/1903.07291).

    Args:
        label_nc: number of the segmentation's channels.
        spade_intermediate_channels: width of the norms' hidden layer. Defaults to 128.

    The other arguments are those of :class:`DiffusionUNetResnetBlock`.
    """

    works_on_slabs = True
    layout_role = "spade residual block"

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        temb_channels: int,
        label_nc: int,
        out_channels: int | None = None,
        up: bool = False,
        down: bool = False,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        spade_intermediate_channels: int = 128,
    ) -> None:
        def make_norm(channels: int) -> nn.Module:
            return SPADE(
                label_nc,
                channels,
                kernel_size=3,
                spatial_dims=spatial_dims,
                hidden_channels=spade_intermediate_channels,
                norm="GROUP",
                norm_params={"num_groups": norm_num_groups, "eps": norm_eps, "affine": True},
            )

        super().__init__(spatial_dims, in_channels, temb_channels, out_channels, up, down, make_norm, NAMES)

    def forward(self, x: torch.Tensor, emb: torch.Tensor, seg: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x: (B, in_channels, sizes).
            emb: time embedding, (B, temb_channels).
            seg: segmentation, (B, label_nc, sizes of any resolution).

        Returns:
            (B, out_channels, sizes, doubled or halved on request)
        """
        h = self.nonlinearity(self.norm1(x, seg))
        x, h = self._resample(x, h)
        h = self.conv1(h)
        h = h + self._time_shift(emb)
        h = self.norm2(h, seg)
        h = self.nonlinearity(h)
        h = self.conv2(h)
        out: torch.Tensor = self.skip_connection(x) + h
        return out


class SPADEUpBlock(nn.Module):
    """
    Stage of the upward path without attention, whose residual blocks see a segmentation.

    Args:
        label_nc: number of the segmentation's channels.
        spade_intermediate_channels: width of the norms' hidden layer. Defaults to 128.

    The other arguments are those of :class:`~monai.networks.nets.diffusion_model_unet.UpBlock`.
    """

    works_on_slabs = True

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        prev_output_channel: int,
        out_channels: int,
        temb_channels: int,
        label_nc: int,
        num_res_blocks: int = 1,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        add_upsample: bool = True,
        resblock_updown: bool = False,
        spade_intermediate_channels: int = 128,
    ) -> None:
        super().__init__()
        self.resblock_updown = resblock_updown
        parts = Residuals(spatial_dims, temb_channels, norm_num_groups, norm_eps, resblock_updown, NAMES)
        resnet = partial(_labeled_resnet, parts, label_nc, spade_intermediate_channels)
        widths = up_widths(in_channels, prev_output_channel, out_channels, num_res_blocks)
        self.resnets = nn.ModuleList([resnet(width, out_channels) for width in widths])
        self.upsampler = parts.upsampler(out_channels) if add_upsample else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        res_hidden_states_list: list[torch.Tensor],
        temb: torch.Tensor,
        seg: torch.Tensor,
        context: Optional[torch.Tensor] = None,
        context_mask: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """
        Args:
            hidden_states: (B, prev_output_channel, sizes).
            res_hidden_states_list: features of the downward path; each residual block takes the last one left.
            temb: time embedding, (B, temb_channels).
            seg: segmentation, (B, label_nc, sizes of any resolution).
            context: not used.
            context_mask: not used.

        Returns:
            (B, out_channels, sizes, doubled by an upsampler)
        """
        for resnet in self.resnets:
            hidden_states = torch.cat([hidden_states, res_hidden_states_list[-1]], dim=1)
            res_hidden_states_list = res_hidden_states_list[:-1]
            hidden_states = resnet(hidden_states, temb, seg)
        if self.upsampler is not None:
            hidden_states = self.upsampler(hidden_states, temb)
        return hidden_states


class SPADEAttnUpBlock(nn.Module):
    """
    Stage of the upward path with self attention. The arguments are those of :class:`SPADEUpBlock` and
    :class:`~monai.networks.nets.diffusion_model_unet.AttnUpBlock`; those of ``forward`` are those of
    :class:`SPADEUpBlock`.
    """

    works_on_slabs = True

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        prev_output_channel: int,
        out_channels: int,
        temb_channels: int,
        label_nc: int,
        num_res_blocks: int = 1,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        add_upsample: bool = True,
        resblock_updown: bool = False,
        num_head_channels: int = 1,
        spade_intermediate_channels: int = 128,
        include_fc: bool = True,
        use_combined_linear: bool = False,
        use_flash_attention: bool = False,
        upcast_attention: bool = False,
        use_proj_attn: bool | None = None,
    ) -> None:
        super().__init__()
        self.resblock_updown = resblock_updown
        parts = Residuals(spatial_dims, temb_channels, norm_num_groups, norm_eps, resblock_updown, NAMES)
        resnet = partial(_labeled_resnet, parts, label_nc, spade_intermediate_channels)
        attention = SelfAttention(
            parts,
            num_head_channels=num_head_channels,
            include_fc=include_fc,
            use_combined_linear=use_combined_linear,
            use_flash_attention=use_flash_attention,
            upcast_attention=upcast_attention,
            use_proj_attn=use_proj_attn,
        )
        widths = up_widths(in_channels, prev_output_channel, out_channels, num_res_blocks)
        self.resnets, self.attentions = alternating(widths, out_channels, resnet, attention.build)
        self.upsampler = parts.upsampler(out_channels) if add_upsample else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        res_hidden_states_list: list[torch.Tensor],
        temb: torch.Tensor,
        seg: torch.Tensor,
        context: Optional[torch.Tensor] = None,
        context_mask: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """(B, out_channels, sizes, doubled by an upsampler), see :meth:`SPADEUpBlock.forward`."""
        for block, attention in zip(self.resnets, self.attentions):
            hidden_states = torch.cat([hidden_states, res_hidden_states_list[-1]], dim=1)
            res_hidden_states_list = res_hidden_states_list[:-1]
            hidden_states = block(hidden_states, temb, seg)
            hidden_states = attention(hidden_states).contiguous()
        if self.upsampler is not None:
            hidden_states = self.upsampler(hidden_states, temb)
        return hidden_states


class SPADECrossAttnUpBlock(nn.Module):
    """
    Stage of the upward path with transformers. The arguments are those of :class:`SPADEUpBlock` and
    :class:`~monai.networks.nets.diffusion_model_unet.CrossAttnUpBlock`.
    """

    works_on_slabs = True

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        prev_output_channel: int,
        out_channels: int,
        temb_channels: int,
        label_nc: int,
        num_res_blocks: int = 1,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        add_upsample: bool = True,
        resblock_updown: bool = False,
        num_head_channels: int = 1,
        transformer_num_layers: int = 1,
        cross_attention_dim: int | None = None,
        upcast_attention: bool = False,
        spade_intermediate_channels: int = 128,
        include_fc: bool = True,
        use_combined_linear: bool = False,
        use_flash_attention: bool = False,
        use_proj_attn: bool | None = None,
    ) -> None:
        super().__init__()
        self.resblock_updown = resblock_updown
        parts = Residuals(spatial_dims, temb_channels, norm_num_groups, norm_eps, resblock_updown, NAMES)
        resnet = partial(_labeled_resnet, parts, label_nc, spade_intermediate_channels)
        attention = CrossAttention(
            parts,
            num_head_channels=num_head_channels,
            transformer_num_layers=transformer_num_layers,
            cross_attention_dim=cross_attention_dim,
            upcast_attention=upcast_attention,
            include_fc=include_fc,
            use_combined_linear=use_combined_linear,
            use_flash_attention=use_flash_attention,
            use_proj_attn=use_proj_attn,
        )
        widths = up_widths(in_channels, prev_output_channel, out_channels, num_res_blocks)
        resnets, attentions = alternating(widths, out_channels, resnet, attention.build)
        self.attentions = attentions
        self.resnets = resnets
        self.upsampler = parts.upsampler(out_channels) if add_upsample else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        res_hidden_states_list: list[torch.Tensor],
        temb: torch.Tensor,
        seg: Optional[torch.Tensor] = None,
        context: Optional[torch.Tensor] = None,
        context_mask: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """
        Args:
            hidden_states: (B, prev_output_channel, sizes).
            res_hidden_states_list: features of the downward path; each residual block takes the last one left.
            temb: time embedding, (B, temb_channels).
            seg: segmentation, (B, label_nc, sizes of any resolution).
            context: tokens for cross attention, (B, K, cross_attention_dim).
            context_mask: nonzero where a context token may be attended to, (B, K); None lets all be attended to.

        Returns:
            (B, out_channels, sizes, doubled by an upsampler)

        Raises:
            ValueError: if there is no segmentation.
        """
        if seg is None:
            raise ValueError("seg should be given: the norms of this stage are modulated by a segmentation.")
        for block, attention in zip(self.resnets, self.attentions):
            hidden_states = torch.cat([hidden_states, res_hidden_states_list[-1]], dim=1)
            res_hidden_states_list = res_hidden_states_list[:-1]
            hidden_states = block(hidden_states, temb, seg)
            if context_mask is None:
                hidden_states = attention(hidden_states, context=context).contiguous()
            else:
                hidden_states = attention(hidden_states, context=context, context_mask=context_mask).contiguous()
        if self.upsampler is not None:
            hidden_states = self.upsampler(hidden_states, temb)
        return hidden_states


def _labeled_resnet(
    parts: Residuals, label_nc: int, hidden_channels: int, in_channels: int, out_channels: int
) -> nn.Module:
    """Build a residual block that sees a segmentation."""
    return SPADEDiffResBlock(
        spatial_dims=parts.spatial_dims,
        in_channels=in_channels,
        out_channels=out_channels,
        temb_channels=parts.temb_channels,
        label_nc=label_nc,
        norm_num_groups=parts.norm_num_groups,
        norm_eps=parts.norm_eps,
        spade_intermediate_channels=hidden_channels,
    )


def get_spade_up_block(
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
    label_nc: int,
    cross_attention_dim: int | None,
    upcast_attention: bool = False,
    spade_intermediate_channels: int = 128,
    include_fc: bool = True,
    use_combined_linear: bool = False,
    use_flash_attention: bool = False,
    use_proj_attn: bool | None = None,
) -> nn.Module:
    """
    Build the stage of the upward path that ``with_attn`` and ``with_cross_attn`` ask for.

    As in the release, transformers are built with an output projection and separate linears of q, k and v, whatever
    ``include_fc`` and ``use_combined_linear`` say: its checkpoints hold them. ``use_proj_attn`` has its say in both.
    """
    if with_attn:
        return SPADEAttnUpBlock(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            prev_output_channel=prev_output_channel,
            out_channels=out_channels,
            temb_channels=temb_channels,
            label_nc=label_nc,
            num_res_blocks=num_res_blocks,
            norm_num_groups=norm_num_groups,
            norm_eps=norm_eps,
            add_upsample=add_upsample,
            resblock_updown=resblock_updown,
            num_head_channels=num_head_channels,
            spade_intermediate_channels=spade_intermediate_channels,
            include_fc=include_fc,
            use_combined_linear=use_combined_linear,
            use_flash_attention=use_flash_attention,
            **upcast_argument(upcast_attention),
            **projection_argument(use_proj_attn),
        )
    if with_cross_attn:
        return SPADECrossAttnUpBlock(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            prev_output_channel=prev_output_channel,
            out_channels=out_channels,
            temb_channels=temb_channels,
            label_nc=label_nc,
            num_res_blocks=num_res_blocks,
            norm_num_groups=norm_num_groups,
            norm_eps=norm_eps,
            add_upsample=add_upsample,
            resblock_updown=resblock_updown,
            num_head_channels=num_head_channels,
            transformer_num_layers=transformer_num_layers,
            cross_attention_dim=cross_attention_dim,
            upcast_attention=upcast_attention,
            spade_intermediate_channels=spade_intermediate_channels,
            use_flash_attention=use_flash_attention,
            **projection_argument(use_proj_attn),
        )
    return SPADEUpBlock(
        spatial_dims=spatial_dims,
        in_channels=in_channels,
        prev_output_channel=prev_output_channel,
        out_channels=out_channels,
        temb_channels=temb_channels,
        label_nc=label_nc,
        num_res_blocks=num_res_blocks,
        norm_num_groups=norm_num_groups,
        norm_eps=norm_eps,
        add_upsample=add_upsample,
        resblock_updown=resblock_updown,
        spade_intermediate_channels=spade_intermediate_channels,
    )


class SPADEDiffusionModelUNet(DiffusionUNetBackbone):
    """
    A :class:`~monai.networks.nets.diffusion_model_unet.DiffusionModelUNet` whose upward path is modulated by a
    segmentation (Park et al., https://arxiv.org/abs/1903.07291).

    Args:
        label_nc: number of the segmentation's channels.
        spade_intermediate_channels: width of the modulated norms' hidden layer. Defaults to 128.
        include_fc: whether self attention of the downward path and the middle has an output projection, where
            ``use_proj_attn`` is None. In the upward path it has one then, as in the release, whose checkpoints hold it.
            Defaults to True.
        use_combined_linear: whether one linear computes q, k and v in the downward path and the middle. In the upward
            path there are three, as in the release. Defaults to False.
        use_proj_attn: whether all attention, that of the upward path included, has an output projection. None (the
            default) leaves the choice to ``include_fc``.

    The other arguments, and the errors, are those of ``DiffusionModelUNet``.
    """

    works_on_slabs = True

    # the upward path has output projections whether or not the others do: a checkpoint is asked for each of them
    projection_groups = ("up_blocks",)
    # which the release builds without the attention options of the network
    built_by_release = {"up_blocks": {"use_combined_linear": False, "include_fc": True}}

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        label_nc: int,
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
        spade_intermediate_channels: int = 128,
        include_fc: bool = True,
        use_combined_linear: bool = False,
        use_flash_attention: bool = False,
        use_proj_attn: bool | None = None,
    ) -> None:
        plan = NetworkPlan(
            "SPADEDiffusionModelUNet",
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
        self.label_nc = label_nc
        build_up = partial(_build_up_block, label_nc, spade_intermediate_channels)
        self._add_stages(plan, out_channels, 4 * channels[0], (get_down_block, get_mid_block, build_up), Convolution)

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        seg: torch.Tensor,
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
            seg: segmentation, one channel a label, (B, label_nc, sizes of any resolution).
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
        out: torch.Tensor = self.out(self._go_up_labeled(h, skips, seg, emb, context, context_mask))
        return out

    def _go_up_labeled(
        self,
        h: torch.Tensor,
        skips: list[torch.Tensor],
        seg: torch.Tensor,
        emb: torch.Tensor,
        context: Optional[torch.Tensor],
        context_mask: Optional[torch.Tensor],
    ) -> torch.Tensor:
        """Go the upward path, as :meth:`DiffusionUNetBackbone._go_up` does, with the segmentation ``seg``."""
        for block in self.up_blocks:
            taken = [skips.pop() for _ in range(len(block.resnets))][::-1]  # type: ignore[arg-type]
            if context_mask is None:
                h = block(hidden_states=h, res_hidden_states_list=taken, seg=seg, temb=emb, context=context)
            else:
                h = block(
                    hidden_states=h,
                    res_hidden_states_list=taken,
                    seg=seg,
                    temb=emb,
                    context=context,
                    context_mask=context_mask,
                )
        return h


def _build_up_block(label_nc: int, hidden_channels: int, **arguments: Any) -> nn.Module:
    """Build a stage of the upward path from the arguments that the release passes."""
    # there the options of the other paths do not reach it, and its checkpoints hold what is built without them
    del arguments["include_fc"], arguments["use_combined_linear"]
    return get_spade_up_block(label_nc=label_nc, spade_intermediate_channels=hidden_channels, **arguments)
