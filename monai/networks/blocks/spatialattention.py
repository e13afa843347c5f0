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

"""Self attention between the positions of an image."""

from __future__ import annotations

import torch
import torch.nn as nn

from monai.networks.blocks.attention.options import projection_argument
from monai.networks.blocks.attention.token_grid import TokenGrid
from monai.networks.blocks.selfattention import SABlock
from monai.networks.blocks.volume_steps import VolumeSteps
from monai.networks.state_dict.hooks import SafeLoading

__all__ = ["SpatialAttentionBlock"]


class SpatialAttentionBlock(SafeLoading):
    """
    Self attention between all positions of an image, after a group norm and inside a residual connection (Ho et al.,
    https://arxiv.org/abs/2006.11239, appendix B).

    Args:
        spatial_dims: how many axes the image has: 1, 2 or 3.
        num_channels: C, the width of the input and output.
        num_head_channels: width of one attention head; None means a single head.
        norm_num_groups: into how many groups the norm divides the channels, 32 unless given.
        norm_eps: what the norm adds to the variance, 1e-6 unless given.
        attention_dtype: type in which q, k and v meet; the result is cast back.
        include_fc: whether an output projection follows, where ``use_proj_attn`` is None. Defaults to True.
        use_combined_linear: whether one linear computes q, k and v. Defaults to False.
        use_flash_attention: accepted; the fused kernel is used either way. Defaults to False.
        use_proj_attn: whether an output projection follows; None (the default) follows ``include_fc``.

    Raises:
        ValueError: if ``num_channels`` is not divisible by ``num_head_channels`` or ``norm_num_groups``.
        TypeError: if ``use_proj_attn`` is neither a bool nor None.
    """

    works_on_slabs = True
    layout_role = "spatial attention"

    def __init__(
        self,
        spatial_dims: int,
        num_channels: int,
        num_head_channels: int | None = None,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        attention_dtype: torch.dtype | None = None,
        include_fc: bool = True,
        use_combined_linear: bool = False,
        use_flash_attention: bool = False,
        use_proj_attn: bool | None = None,
    ) -> None:
        super().__init__()
        head_width = num_channels if num_head_channels is None else num_head_channels
        if head_width < 1 or num_channels % head_width != 0:
            raise ValueError(f"num_channels {num_channels} should be divisible by num_head_channels {head_width}.")
        self.spatial_dims = spatial_dims
        self.norm = nn.GroupNorm(norm_num_groups, num_channels, eps=norm_eps)
        self.attn = SABlock(
            hidden_size=num_channels,
            num_heads=num_channels // head_width,
            qkv_bias=True,
            attention_dtype=attention_dtype,
            include_fc=include_fc,
            use_combined_linear=use_combined_linear,
            use_flash_attention=use_flash_attention,
            **projection_argument(use_proj_attn),
        )

    def token_grids(self) -> dict[str, TokenGrid]:
        """See :class:`TokenGrid`."""
        return {"": TokenGrid(holder=self)}

    def volume_steps(self, steps: VolumeSteps, volume: int) -> int:
        """See :class:`VolumeSteps`."""
        return steps.attend(volume, self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x: (B, C, spatial dimensions).

        Returns:
            the same shape.
        """
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        # in this order the sum has the strides of the tokens, as in the release: convolutions and noise follow them
        out: torch.Tensor = self.attn(tokens).transpose(1, 2).reshape(x.shape) + x
        return out
