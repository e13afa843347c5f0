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

import torch.nn as nn

from monai.networks.blocks.diffusion.stages import DownStage, MidStage, StageOptions, UpStage

__all__ = [
    "AttnDownBlock",
    "AttnMidBlock",
    "AttnUpBlock",
    "CrossAttnDownBlock",
    "CrossAttnMidBlock",
    "CrossAttnUpBlock",
    "DownBlock",
    "UpBlock",
    "get_down_block",
    "get_mid_block",
    "get_up_block",
]


class DownBlock(DownStage):
    """
    Stage of the downward path without attention.

    Args:
        spatial_dims: number of spatial axes.
        in_channels: number of the input's channels.
        out_channels: number of the output's channels.
        temb_channels: width of the time embedding.
        num_res_blocks: number of residual blocks. Defaults to 1.
        norm_num_groups: into how many groups the norms divide the channels. Defaults to 32.
        norm_eps: what the norms add to the variance. Defaults to 1e-6.
        add_downsample: whether a downsampler follows. Defaults to True.
        resblock_updown: whether it is a residual block, or else a strided convolution. Defaults to False.
        downsample_padding: zeros put on both ends of each axis before the strided convolution. Defaults to 1.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        temb_channels: int,
        num_res_blocks: int = 1,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        add_downsample: bool = True,
        resblock_updown: bool = False,
        downsample_padding: int = 1,
    ) -> None:
        options = StageOptions.from_arguments(locals())
        self.build(options, in_channels, out_channels, num_res_blocks, add_downsample, downsample_padding)


class AttnDownBlock(DownStage):
    """
    Stage of the downward path with self attention.

    Args:
        num_head_channels: width of one attention head. Defaults to 1.
        include_fc: whether attention has an output projection, where ``use_proj_attn`` is None. Defaults to True.
        use_combined_linear: whether one linear computes q, k and v. Defaults to False.
        use_flash_attention: accepted; the fused kernel is used either way. Defaults to False.
        upcast_attention: whether attention is computed in float32. Defaults to False.
        use_proj_attn: whether attention has an output projection; None (the default) follows ``include_fc``.

    The other arguments are those of :class:`DownBlock`.
    """

    placement = "self"

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        temb_channels: int,
        num_res_blocks: int = 1,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        add_downsample: bool = True,
        resblock_updown: bool = False,
        downsample_padding: int = 1,
        num_head_channels: int = 1,
        include_fc: bool = True,
        use_combined_linear: bool = False,
        use_flash_attention: bool = False,
        upcast_attention: bool = False,
        use_proj_attn: bool | None = None,
    ) -> None:
        options = StageOptions.from_arguments(locals())
        self.build(options, in_channels, out_channels, num_res_blocks, add_downsample, downsample_padding)


class CrossAttnDownBlock(DownStage):
    """
    Stage of the downward path with transformers, which attend to a context.

    Args:
        transformer_num_layers: number of layers of each transformer. Defaults to 1.
        cross_attention_dim: width of the context; that of the features unless given.
        dropout_cattn: fraction of attention weights and of outputs dropped in training. Defaults to 0.0.
        use_proj_attn: whether self and cross attention have an output projection. None (the default) leaves the choice
            to ``include_fc`` for self attention and means True for cross attention.

    The other arguments are those of :class:`AttnDownBlock`.
    """

    placement = "cross"

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        temb_channels: int,
        num_res_blocks: int = 1,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        add_downsample: bool = True,
        resblock_updown: bool = False,
        downsample_padding: int = 1,
        num_head_channels: int = 1,
        transformer_num_layers: int = 1,
        cross_attention_dim: int | None = None,
        upcast_attention: bool = False,
        dropout_cattn: float = 0.0,
        include_fc: bool = True,
        use_combined_linear: bool = False,
        use_flash_attention: bool = False,
        use_proj_attn: bool | None = None,
    ) -> None:
        options = StageOptions.from_arguments(locals())
        self.build(options, in_channels, out_channels, num_res_blocks, add_downsample, downsample_padding)


class AttnMidBlock(MidStage):
    """Middle stage with self attention. The arguments are those of :class:`AttnDownBlock`."""

    placement = "self"

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        temb_channels: int,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        num_head_channels: int = 1,
        include_fc: bool = True,
        use_combined_linear: bool = False,
        use_flash_attention: bool = False,
        upcast_attention: bool = False,
        use_proj_attn: bool | None = None,
    ) -> None:
        self.build(StageOptions.from_arguments(locals()), in_channels)


class CrossAttnMidBlock(MidStage):
    """Middle stage with a transformer. The arguments are those of :class:`CrossAttnDownBlock`."""

    placement = "cross"

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        temb_channels: int,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        num_head_channels: int = 1,
        transformer_num_layers: int = 1,
        cross_attention_dim: int | None = None,
        upcast_attention: bool = False,
        dropout_cattn: float = 0.0,
        include_fc: bool = True,
        use_combined_linear: bool = False,
        use_flash_attention: bool = False,
        use_proj_attn: bool | None = None,
    ) -> None:
        self.build(StageOptions.from_arguments(locals()), in_channels)


class UpBlock(UpStage):
    """
    Stage of the upward path without attention.

    Args:
        in_channels: number of channels of the last features from the downward path; the others have ``out_channels``.
        prev_output_channel: number of channels of the features from below.
        add_upsample: whether an upsampler follows. Defaults to True.
        resblock_updown: whether it is a residual block, or else a repetition and a convolution. Defaults to False.

    The other arguments are those of :class:`DownBlock`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        prev_output_channel: int,
        out_channels: int,
        temb_channels: int,
        num_res_blocks: int = 1,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        add_upsample: bool = True,
        resblock_updown: bool = False,
    ) -> None:
        options = StageOptions.from_arguments(locals())
        self.build(options, in_channels, prev_output_channel, out_channels, num_res_blocks, add_upsample)


class AttnUpBlock(UpStage):
    """
    Stage of the upward path with self attention. The arguments are those of :class:`UpBlock` and
    :class:`AttnDownBlock`.
    """

    placement = "self"

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        prev_output_channel: int,
        out_channels: int,
        temb_channels: int,
        num_res_blocks: int = 1,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        add_upsample: bool = True,
        resblock_updown: bool = False,
        num_head_channels: int = 1,
        include_fc: bool = True,
        use_combined_linear: bool = False,
        use_flash_attention: bool = False,
        upcast_attention: bool = False,
        use_proj_attn: bool | None = None,
    ) -> None:
        options = StageOptions.from_arguments(locals())
        self.build(options, in_channels, prev_output_channel, out_channels, num_res_blocks, add_upsample)


class CrossAttnUpBlock(UpStage):
    """
    Stage of the upward path with transformers. The arguments are those of :class:`UpBlock` and
    :class:`CrossAttnDownBlock`.
    """

    placement = "cross"

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        prev_output_channel: int,
        out_channels: int,
        temb_channels: int,
        num_res_blocks: int = 1,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        add_upsample: bool = True,
        resblock_updown: bool = False,
        num_head_channels: int = 1,
        transformer_num_layers: int = 1,
        cross_attention_dim: int | None = None,
        upcast_attention: bool = False,
        dropout_cattn: float = 0.0,
        include_fc: bool = True,
        use_combined_linear: bool = False,
        use_flash_attention: bool = False,
        use_proj_attn: bool | None = None,
    ) -> None:
        options = StageOptions.from_arguments(locals())
        self.build(options, in_channels, prev_output_channel, out_channels, num_res_blocks, add_upsample)


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
    options = StageOptions.from_arguments(locals())
    kind = AttnDownBlock if with_attn else CrossAttnDownBlock if with_cross_attn else DownBlock
    return kind.from_options(options, in_channels, out_channels, num_res_blocks, add_downsample)


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
    kind = CrossAttnMidBlock if with_conditioning else AttnMidBlock
    return kind.from_options(StageOptions.from_arguments(locals()), in_channels)


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
    options = StageOptions.from_arguments(locals())
    kind = AttnUpBlock if with_attn else CrossAttnUpBlock if with_cross_attn else UpBlock
    return kind.from_options(options, in_channels, prev_output_channel, out_channels, num_res_blocks, add_upsample)
