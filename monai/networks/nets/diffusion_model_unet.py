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

import math
from collections.abc import Sequence
from typing import Optional

import torch
import torch.nn as nn

# what the release keeps in this module stays importable from it
from monai.networks.blocks.diffusion.layers import (  # noqa: F401
    DiffusionUnetDownsample,
    DiffusionUNetResnetBlock,
    DiffusionUNetTransformerBlock,
    SpatialTransformer,
    WrappedUpsample,
    get_timestep_embedding,
    zero_module,
)
from monai.networks.blocks.diffusion.network import DiffusionBackbone, DiffusionUNetBackbone, NetworkPlan
from monai.networks.blocks.diffusion.unet_blocks import (  # noqa: F401
    AttnDownBlock,
    AttnMidBlock,
    AttnUpBlock,
    CrossAttnDownBlock,
    CrossAttnMidBlock,
    CrossAttnUpBlock,
    DownBlock,
    UpBlock,
    get_down_block,
    get_mid_block,
    get_up_block,
)

__all__ = ["DiffusionModelEncoder", "DiffusionModelUNet"]


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

    Raises:
        ValueError: if the arguments contradict each other.
        TypeError: if ``use_proj_attn`` is neither a bool nor None.

    Example::

        net = DiffusionModelUNet(spatial_dims=2, in_channels=1, out_channels=1)
        noise = net(torch.randn(4, 1, 64, 64), timesteps=torch.randint(0, 1000, (4,)))
    """

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
    ) -> None:
        plan = NetworkPlan.from_arguments("DiffusionModelUNet", locals())
        super().__init__(plan)
        self.add_stages(plan, out_channels, self.time_embed_dim)

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        context: Optional[torch.Tensor] = None,
        class_labels: Optional[torch.Tensor] = None,
        down_block_additional_residuals: Optional[list[torch.Tensor]] = None,
        mid_block_additional_residual: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """
        Args:
            x: (B, in_channels, sizes).
            timesteps: (B,).
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
        return self.denoise(x, emb, context, down_block_additional_residuals, mid_block_additional_residual)


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
        arguments = dict(locals())
        if not isinstance(num_res_blocks, int):  # the release's default has an entry for each of four levels
            arguments["num_res_blocks"] = num_res_blocks[: len(channels)]
        plan = NetworkPlan.from_arguments("DiffusionModelEncoder", arguments)
        super().__init__(plan)
        self.out_channels = out_channels
        # the last level is halved too, unlike that of the U-Net
        levels = range(len(channels))
        down = [plan.down_stage(level, self.time_embed_dim, add_downsample=True) for level in levels]
        self.down_blocks = nn.ModuleList(down)
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
    ) -> torch.Tensor:
        """
        Args:
            x: (B, in_channels, size of every axis).
            timesteps: (B,).
            context: tokens for cross attention, (B, K, cross_attention_dim).
            class_labels: numbers of classes, (B,).

        Returns:
            (B, out_channels)

        Raises:
            ValueError: if labels are missing or a context comes unasked.
        """
        emb = self.embed(x, timesteps, class_labels)
        h, _ = self.encode(self.conv_in(x), emb, context)
        return self.out(h.flatten(1))
