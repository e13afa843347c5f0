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

"""MAISI's diffusion U-Net."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import torch
import torch.nn as nn

from monai.networks.blocks import Convolution
from monai.networks.blocks.diffusion.layers import embedding_mlp
from monai.networks.blocks.diffusion.network import DiffusionUNetBackbone, NetworkPlan, add_residuals
from monai.networks.construction import record_construction
from monai.networks.nets.diffusion_model_unet import (  # noqa: F401
    get_down_block,
    get_mid_block,
    get_timestep_embedding,
    get_up_block,
    zero_module,
)
from monai.utils import ensure_tuple_rep  # noqa: F401
from monai.utils.type_conversion import convert_to_tensor

__all__ = ["DiffusionModelUNetMaisi"]


@record_construction
class DiffusionModelUNetMaisi(DiffusionUNetBackbone):
    """
    MAISI's :class:`~monai.networks.nets.diffusion_model_unet.DiffusionModelUNet` (https://arxiv.org/abs/2409.11169),
    conditioned on request by the body region and the voxels' spacing as well.

    Args:
        num_channels: ``channels`` of ``DiffusionModelUNet``.
        include_fc: whether self attention has an output projection, where ``use_proj_attn`` is None. Defaults to False.
        include_top_region_index_input: whether the network takes the top body region as input. Defaults to False.
        include_bottom_region_index_input: whether it takes the bottom body region as input. Defaults to False.
        include_spacing_input: whether the network takes the spacing of the voxels as an input. Defaults to False.
        control_reaches_mid_block: whether the middle block receives the features of the downward path with the last of
            a ControlNet's residuals added, as in MONAI 1.4 to 1.6.1, where MAISI's ControlNets were trained. False
            hands it the features alone, as ``DiffusionModelUNet`` does. Defaults to True.

    The other arguments, and the errors, are those of ``DiffusionModelUNet``.

    The steps of ``forward`` are methods that a subclass may override; a ``context_mask`` is handed to them only where
    there is one.
    """

    works_on_slabs = True

    # constants, so that TorchScript does not compile embeddings that the network has not; the last one is found in the
    # class by networks that MONAI 1.6 has pickled
    __constants__ = [
        "include_top_region_index_input",
        "include_bottom_region_index_input",
        "include_spacing_input",
        "control_reaches_mid_block",
    ]
    control_reaches_mid_block = True

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
        control_reaches_mid_block: bool = True,
    ) -> None:
        plan = NetworkPlan(
            "DiffusionModelUNetMaisi",
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            num_res_blocks=num_res_blocks,
            channels=num_channels,
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
        super().__init__(plan, Convolution, self._create_embedding_module)
        self.include_top_region_index_input = include_top_region_index_input
        self.include_bottom_region_index_input = include_bottom_region_index_input
        self.include_spacing_input = include_spacing_input
        self.control_reaches_mid_block = control_reaches_mid_block
        width = 4 * num_channels[0]
        if include_top_region_index_input:
            self.top_region_index_layer = self._create_embedding_module(4, width)
        if include_bottom_region_index_input:
            self.bottom_region_index_layer = self._create_embedding_module(4, width)
        if include_spacing_input:
            self.spacing_layer = self._create_embedding_module(3, width)
        extra = (include_top_region_index_input, include_bottom_region_index_input, include_spacing_input)
        builders = get_down_block, get_mid_block, get_up_block
        self._add_stages(plan, out_channels, width * (1 + sum(map(bool, extra))), builders, Convolution)

    def _create_embedding_module(self, input_dim: int, embed_dim: int) -> nn.Module:
        """Build the layers that embed the time, a body region or the spacing."""
        return embedding_mlp(input_dim, embed_dim)

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
            top_region_index_tensor: one-hot top body region, (B, 4).
            bottom_region_index_tensor: one-hot bottom body region, (B, 4).
            spacing_tensor: spacing of the voxels, (B, 3).
            context_mask: nonzero where a context token may be attended to, (B, K) or another shape that
                :class:`~monai.networks.blocks.CrossAttentionBlock` takes. None, the default, lets all be attended to.

        Returns:
            (B, out_channels, sizes)

        Raises:
            ValueError: if labels, the context, a region or the spacing are missing, a context comes unasked, or there
                are too few residuals.
        """
        emb = self._get_time_and_class_embedding(x, timesteps, class_labels)
        top, bottom = _in_type_of(x, top_region_index_tensor), _in_type_of(x, bottom_region_index_tensor)
        emb = self._get_input_embeddings(emb, top, bottom, _in_type_of(x, spacing_tensor))
        h = self.conv_in(x)
        if context_mask is None:
            h, skips = self._apply_down_blocks(h, emb, context, down_block_additional_residuals)
            h = self.middle_block(h, emb, context)
        else:
            h, skips = self._apply_down_blocks(h, emb, context, down_block_additional_residuals, context_mask)
            h = self.middle_block(h, emb, context, context_mask=context_mask)
        if mid_block_additional_residual is not None:
            h = (h + mid_block_additional_residual).to(h.dtype)
        if context_mask is None:
            h = self._apply_up_blocks(h, emb, context, skips)
        else:
            h = self._apply_up_blocks(h, emb, context, skips, context_mask)
        out: torch.Tensor = self.out(h)
        if not torch.jit.is_scripting():
            out = convert_to_tensor(out)  # a MetaTensor's meta data describe the input, not the noise in it
        return out

    def _get_time_and_class_embedding(
        self, x: torch.Tensor, timesteps: torch.Tensor, class_labels: Optional[torch.Tensor]
    ) -> torch.Tensor:
        """Embed time and class: (B, 4 * channels of the first level)."""
        time = get_timestep_embedding(timesteps, self.block_out_channels[0])
        return self._embed_time_and_class(x, time, class_labels)

    def _get_input_embeddings(
        self,
        emb: torch.Tensor,
        top_index: Optional[torch.Tensor],
        bottom_index: Optional[torch.Tensor],
        spacing: Optional[torch.Tensor],
    ) -> torch.Tensor:
        """
        Append the embeddings of the network's other inputs.

        Args:
            emb: embedding of time and class, (B, 4 * channels of the first level).
            top_index: one-hot top body region, (B, 4).
            bottom_index: one-hot bottom body region, (B, 4).
            spacing: spacing of the voxels, (B, 3).

        Returns:
            all of them side by side

        Raises:
            ValueError: if one is missing.
        """
        if self.include_top_region_index_input:
            top = self.top_region_index_layer(_required(top_index, "top_region_index_tensor"))
            emb = torch.cat((emb, top), dim=1)
        if self.include_bottom_region_index_input:
            bottom = self.bottom_region_index_layer(_required(bottom_index, "bottom_region_index_tensor"))
            emb = torch.cat((emb, bottom), dim=1)
        if self.include_spacing_input:
            emb = torch.cat((emb, self.spacing_layer(_required(spacing, "spacing_tensor"))), dim=1)
        return emb

    def _apply_down_blocks(
        self,
        h: torch.Tensor,
        emb: torch.Tensor,
        context: Optional[torch.Tensor],
        down_block_additional_residuals: Optional[list[torch.Tensor]],
        context_mask: Optional[torch.Tensor] = None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """
        Go the downward path.

        Returns:
            what the middle block receives; and the features for the upward path, with a ControlNet's residuals added.
        """
        h, skips = self._go_down(h, emb, context, context_mask)
        if down_block_additional_residuals is not None:
            last = skips[-1]
            add_residuals(skips, list(down_block_additional_residuals), keep_dtype=True)
            # the release adds in place, so that its middle block sees the sum where both are one tensor
            if self.control_reaches_mid_block and h is last:
                h = skips[-1]
        return h, skips

    def _apply_up_blocks(
        self,
        h: torch.Tensor,
        emb: torch.Tensor,
        context: Optional[torch.Tensor],
        down_block_res_samples: list[torch.Tensor],
        context_mask: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """Go the upward path, with the features of the downward path: those of the first level, at full size."""
        return self._go_up(h, list(down_block_res_samples), emb, context, context_mask)


def _in_type_of(x: torch.Tensor, value: Optional[torch.Tensor]) -> Optional[torch.Tensor]:
    """A floating point input of the network in the type of its image."""
    if value is None or not value.is_floating_point():
        return value
    return value.to(x.dtype)


def _required(value: Optional[torch.Tensor], name: str) -> torch.Tensor:
    """An input of the network that has to be there."""
    if value is None:
        raise ValueError(f"{name} should be given: the network was built to take it.")
    return value
