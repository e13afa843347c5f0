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

from monai.networks.blocks.diffusion.layers import (  # noqa: F401
    DiffusionUnetDownsample,
    DiffusionUNetResnetBlock,
    ResidualBlock,
    SpatialTransformer,
    WrappedUpsample,
    get_timestep_embedding,
    zero_module,
)
from monai.networks.blocks.diffusion.network import DiffusionUNetBackbone, NetworkPlan
from monai.networks.blocks.diffusion.stages import StageOptions, UpStage
from monai.networks.blocks.diffusion.unet_blocks import get_down_block, get_mid_block  # noqa: F401
from monai.networks.blocks.spade_norm import SPADE

__all__ = ["SPADEDiffusionModelUNet"]


class SPADEDiffResBlock(ResidualBlock):
    """
    Residual block that is told the time and whose norms are modulated by a segmentation (Park et al.,
    https://arxiv.org/abs/1903.07291).

    Args:
        label_nc: number of the segmentation's channels.
        spade_intermediate_channels: width of the norms' hidden layer. Defaults to 128.

    The other arguments are those of :class:`DiffusionUNetResnetBlock`.
    """

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

        super().__init__(spatial_dims, in_channels, temb_channels, out_channels, up, down, make_norm)

    def forward(self, x: torch.Tensor, emb: torch.Tensor, seg: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x: (B, in_channels, sizes).
            emb: time embedding, (B, temb_channels).
            seg: segmentation, (B, label_nc, sizes of any resolution).

        Returns:
            (B, out_channels, sizes, doubled or halved on request)
        """
        h = self.conv1(self.resample(self.nonlinearity(self.norm1(x, seg))))
        h = self.norm2(self.add_time(h, emb), seg)
        return self.skip_connection(self.resample(x)) + self.conv2(self.nonlinearity(h))


class SPADEUpStage(UpStage):
    """Stage of the upward path whose residual blocks see a segmentation."""

    def make_resnet(self, options: StageOptions, in_channels: int, out_channels: int) -> nn.Module:
        """Build one residual block."""
        return SPADEDiffResBlock(
            options.spatial_dims,
            in_channels,
            options.temb_channels,
            options.label_nc,
            out_channels,
            norm_num_groups=options.norm_num_groups,
            norm_eps=options.norm_eps,
            spade_intermediate_channels=options.spade_intermediate_channels,
        )

    def forward(  # type: ignore[override]
        self,
        hidden_states: torch.Tensor,
        res_hidden_states_list: list[torch.Tensor],
        temb: torch.Tensor,
        seg: torch.Tensor,
        context: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """
        Args:
            seg: segmentation, (B, label_nc, sizes of any resolution).

        The other arguments, and the result, are those of :class:`UpStage`.
        """
        last = len(res_hidden_states_list) - 1
        for number, (resnet, attention) in enumerate(zip(self.resnets, self.attentions)):
            hidden_states = torch.cat([hidden_states, res_hidden_states_list[last - number]], dim=1)
            hidden_states = resnet(hidden_states, temb, seg)
            if self.conditioned:
                hidden_states = attention(hidden_states, context)
            else:
                hidden_states = attention(hidden_states).contiguous()
        if self.upsampler is not None:
            hidden_states = self.upsampler(hidden_states, temb)
        return hidden_states


class SPADEUpBlock(SPADEUpStage):
    """
    Stage of the upward path without attention.

    Args:
        label_nc: number of the segmentation's channels.
        spade_intermediate_channels: width of the norms' hidden layer. Defaults to 128.

    The other arguments are those of :class:`~monai.networks.nets.diffusion_model_unet.UpBlock`.
    """

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
        options = StageOptions.from_arguments(locals())
        self.build(options, in_channels, prev_output_channel, out_channels, num_res_blocks, add_upsample)


class SPADEAttnUpBlock(SPADEUpStage):
    """
    Stage of the upward path with self attention. The arguments are those of :class:`SPADEUpBlock` and
    :class:`~monai.networks.nets.diffusion_model_unet.AttnUpBlock`.
    """

    placement = "self"

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
        options = StageOptions.from_arguments(locals())
        self.build(options, in_channels, prev_output_channel, out_channels, num_res_blocks, add_upsample)


class SPADECrossAttnUpBlock(SPADEUpStage):
    """
    Stage of the upward path with transformers. The arguments are those of :class:`SPADEUpBlock` and
    :class:`~monai.networks.nets.diffusion_model_unet.CrossAttnUpBlock`.
    """

    placement = "cross"

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
        options = StageOptions.from_arguments(locals())
        self.build(options, in_channels, prev_output_channel, out_channels, num_res_blocks, add_upsample)


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
    """Build the stage of the upward path that ``with_attn`` and ``with_cross_attn`` ask for."""
    options = StageOptions.from_arguments(locals())
    kind = SPADEAttnUpBlock if with_attn else SPADECrossAttnUpBlock if with_cross_attn else SPADEUpBlock
    return kind.from_options(options, in_channels, prev_output_channel, out_channels, num_res_blocks, add_upsample)


class SPADEDiffusionModelUNet(DiffusionUNetBackbone):
    """
    A :class:`~monai.networks.nets.diffusion_model_unet.DiffusionModelUNet` whose upward path is modulated by a
    segmentation (Park et al., https://arxiv.org/abs/1903.07291).

    Args:
        label_nc: number of the segmentation's channels.
        spade_intermediate_channels: width of the modulated norms' hidden layer. Defaults to 128.

    The other arguments, and the errors, are those of ``DiffusionModelUNet``.
    """

    # the release's upward path has output projections whether or not the others do: a checkpoint tells apart
    projection_groups = ("up_blocks",)

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
        plan = NetworkPlan.from_arguments("SPADEDiffusionModelUNet", locals())
        super().__init__(plan)
        self.label_nc = label_nc
        up_kinds = (SPADEUpBlock, SPADEAttnUpBlock, SPADECrossAttnUpBlock)
        self.add_stages(plan, out_channels, self.time_embed_dim, up_kinds)

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        seg: torch.Tensor,
        context: Optional[torch.Tensor] = None,
        class_labels: Optional[torch.Tensor] = None,
        down_block_additional_residuals: Optional[list[torch.Tensor]] = None,
        mid_block_additional_residual: Optional[torch.Tensor] = None,
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

        Returns:
            (B, out_channels, sizes)

        Raises:
            ValueError: if labels are missing, a context comes unasked, or the number of residuals does not fit.
        """
        emb = self.embed(x, timesteps, class_labels)
        h, skips = self.encode(self.conv_in(x), emb, context)
        skips = self.add_control(skips, down_block_additional_residuals)
        h = self.middle(h, emb, context, mid_block_additional_residual)
        for block in self.up_blocks:
            taken = len(skips) - len(block.resnets)  # type: ignore[arg-type]
            h = block(h, skips[taken:], emb, seg, context)
            skips = skips[:taken]
        return self.out(h)
