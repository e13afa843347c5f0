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

"""MAISI's ControlNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import torch
from torch.utils.checkpoint import checkpoint

from monai.networks.nets.controlnet import ControlNet
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding

__all__ = ["ControlNetMaisi"]


class ControlNetMaisi(ControlNet):
    """
    MAISI's :class:`~monai.networks.nets.controlnet.ControlNet` (https://arxiv.org/abs/2409.11169): without an output
    projection unless asked for, and able to save memory.

    Args:
        num_channels: the base class's ``channels``.
        use_checkpointing: whether training computes the embedding of the controlling image twice, instead of keeping
            it for the gradients. Defaults to True.
        include_fc: whether self attention has an output projection, where ``use_proj_attn`` is None. Defaults to False.

    The other arguments, and the errors, are those of the base class.

    The steps of ``forward`` are methods that a subclass may override; a ``context_mask`` is handed to them only where
    there is one.
    """

    works_on_slabs = True

    # a constant, so that TorchScript and exporters do not meet the checkpointing of a network that does without
    __constants__ = ["use_checkpointing"]

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
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
        conditioning_embedding_in_channels: int = 1,
        conditioning_embedding_num_channels: Sequence[int] = (16, 32, 96, 256),
        use_checkpointing: bool = True,
        include_fc: bool = False,
        use_combined_linear: bool = False,
        use_flash_attention: bool = False,
        use_proj_attn: bool | None = None,
    ) -> None:
        super().__init__(
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
            conditioning_embedding_in_channels=conditioning_embedding_in_channels,
            conditioning_embedding_num_channels=conditioning_embedding_num_channels,
            include_fc=include_fc,
            use_combined_linear=use_combined_linear,
            use_flash_attention=use_flash_attention,
            use_proj_attn=use_proj_attn,
        )
        self.use_checkpointing = use_checkpointing

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
        """See :meth:`ControlNet.forward <monai.networks.nets.controlnet.ControlNet.forward>`."""
        emb = self._prepare_time_and_class_embedding(x, timesteps, class_labels)
        h = self._apply_initial_convolution(x)
        h = h + self._embed_condition(controlnet_cond)
        if context_mask is None:
            skips, h = self._apply_down_blocks(emb, context, h)
            h = self._apply_mid_block(emb, context, h)
        else:
            skips, h = self._apply_down_blocks(emb, context, h, context_mask)
            h = self._apply_mid_block(emb, context, h, context_mask)
        residuals, residual = self._apply_controlnet_blocks(h, skips)
        return [each * conditioning_scale for each in residuals], residual * conditioning_scale

    def _embed_condition(self, condition: torch.Tensor) -> torch.Tensor:
        """Bring the image that controls to the features' size; with checkpointing, gradients compute it once more."""
        if self.use_checkpointing:
            if not torch.jit.is_scripting():
                if torch.is_grad_enabled() and not torch.compiler.is_exporting():
                    again: torch.Tensor = checkpoint(self.controlnet_cond_embedding, condition, use_reentrant=False)
                    return again
        embedding: torch.Tensor = self.controlnet_cond_embedding(condition)
        return embedding

    def _prepare_time_and_class_embedding(
        self, x: torch.Tensor, timesteps: torch.Tensor, class_labels: Optional[torch.Tensor]
    ) -> torch.Tensor:
        """Embed time and class: (B, 4 * channels of the first level)."""
        time = get_timestep_embedding(timesteps, self.block_out_channels[0])
        return self._embed_time_and_class(x, time, class_labels)

    def _apply_initial_convolution(self, x: torch.Tensor) -> torch.Tensor:
        """The features of the noisy image at full size."""
        h: torch.Tensor = self.conv_in(x)
        return h

    def _apply_down_blocks(
        self,
        emb: torch.Tensor,
        context: Optional[torch.Tensor],
        h: torch.Tensor,
        context_mask: Optional[torch.Tensor] = None,
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The features after every step of the downward path, and the last ones."""
        h, skips = self._go_down(h, emb, context, context_mask)
        return skips, h

    def _apply_mid_block(
        self,
        emb: torch.Tensor,
        context: Optional[torch.Tensor],
        h: torch.Tensor,
        context_mask: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """The features of the middle."""
        return self._middle(h, emb, context, context_mask)

    def _apply_controlnet_blocks(
        self, h: torch.Tensor, down_block_res_samples: list[torch.Tensor]
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The residuals for the downward path, and the one for the middle, before they are scaled."""
        return self._residuals(h, down_block_res_samples)
