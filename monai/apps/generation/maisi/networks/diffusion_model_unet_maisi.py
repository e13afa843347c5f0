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

from monai.networks.blocks.diffusion.layers import embedding_mlp
from monai.networks.blocks.diffusion.network import DiffusionUNetBackbone, NetworkPlan
from monai.networks.nets.diffusion_model_unet import (  # noqa: F401
    get_down_block,
    get_mid_block,
    get_timestep_embedding,
    get_up_block,
    zero_module,
)
from monai.utils.type_conversion import convert_to_tensor

__all__ = ["DiffusionModelUNetMaisi"]


class DiffusionModelUNetMaisi(DiffusionUNetBackbone):
    """
    MAISI's :class:`~monai.networks.nets.diffusion_model_unet.DiffusionModelUNet` (https://arxiv.org/abs/2409.11169),
    conditioned on request by the body region and the voxels' spacing as well.

    Args:
        num_channels: ``channels`` of ``DiffusionModelUNet``.
        include_fc: whether self attention has an output projection, where ``use_proj_attn`` is None. Defaults to False.
        include_top_region_index_input: whether the network is told the top body region. Defaults to False.
        include_bottom_region_index_input: whether the network is told the bottom body region. Defaults to False.
        include_spacing_input: whether the network is told the voxels' spacing. Defaults to False.

    The other arguments, and the errors, are those of ``DiffusionModelUNet``.
    """

    # constants, so that TorchScript does not compile embeddings that the network has not
    __constants__ = ["include_top_region_index_input", "include_bottom_region_index_input", "include_spacing_input"]

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        num_res_blocks: Sequence[int] | int = (2, 2, 2, 2),
        num_channels: Sequence[int] = (32, 64, 64, 64),
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
        include_fc: bool = False,
        use_combined_linear: bool = False,
        use_flash_attention: bool = False,
        dropout_cattn: float = 0.0,
        include_top_region_index_input: bool = False,
        include_bottom_region_index_input: bool = False,
        include_spacing_input: bool = False,
        use_proj_attn: bool | None = None,
    ) -> None:
        plan = NetworkPlan.from_arguments("DiffusionModelUNetMaisi", locals())
        super().__init__(plan)
        self.include_top_region_index_input = include_top_region_index_input
        self.include_bottom_region_index_input = include_bottom_region_index_input
        self.include_spacing_input = include_spacing_input
        width = self.time_embed_dim
        if include_top_region_index_input:
            self.top_region_index_layer = embedding_mlp(4, width)
        if include_bottom_region_index_input:
            self.bottom_region_index_layer = embedding_mlp(4, width)
        if include_spacing_input:
            self.spacing_layer = embedding_mlp(3, width)
        extra = (include_top_region_index_input, include_bottom_region_index_input, include_spacing_input)
        self.add_stages(plan, out_channels, width * (1 + sum(map(bool, extra))))

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        context: Optional[torch.Tensor] = None,
        class_labels: Optional[torch.Tensor] = None,
        down_block_additional_residuals: Optional[list[torch.Tensor]] = None,
        mid_block_additional_residual: Optional[torch.Tensor] = None,
        top_region_index_tensor: Optional[torch.Tensor] = None,
        bottom_region_index_tensor: Optional[torch.Tensor] = None,
        spacing_tensor: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """
        Args:
            x: (B, in_channels, sizes).
            timesteps: (B,).
            context: tokens for cross attention, (B, K, cross_attention_dim).
            class_labels: numbers of classes, (B,).
            down_block_additional_residuals: a ControlNet's residuals for the downward path, a list or tuple.
            mid_block_additional_residual: its residual for the middle.
            top_region_index_tensor: one-hot top body region, (B, 4).
            bottom_region_index_tensor: one-hot bottom body region, (B, 4).
            spacing_tensor: spacing of the voxels, (B, 3).

        Returns:
            (B, out_channels, sizes)

        Raises:
            ValueError: if labels, a region or the spacing are missing, a context comes unasked, or the number of
                residuals does not fit.
        """
        emb = self.embed(x, timesteps, class_labels)
        parts: list[torch.Tensor] = [emb]
        if self.include_top_region_index_input:
            parts.append(self.top_region_index_layer(_given(top_region_index_tensor, "top_region_index_tensor", x)))
        if self.include_bottom_region_index_input:
            bottom = _given(bottom_region_index_tensor, "bottom_region_index_tensor", x)
            parts.append(self.bottom_region_index_layer(bottom))
        if self.include_spacing_input:
            parts.append(self.spacing_layer(_given(spacing_tensor, "spacing_tensor", x)))
        emb = torch.cat(parts, dim=1)
        out = self.denoise(x, emb, context, down_block_additional_residuals, mid_block_additional_residual)
        if torch.jit.is_scripting():
            return out
        return convert_to_tensor(out)  # a MetaTensor's meta data describe the input, not the noise in it


def _given(value: Optional[torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    """An input of the network in the type of its image; one that is missing raises a ValueError."""
    if value is None:
        raise ValueError(f"{name} should be given: the network was built to be told it.")
    return value.to(x.dtype)
