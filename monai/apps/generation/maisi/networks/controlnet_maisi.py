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

from monai.networks.blocks.diffusion.network import NetworkPlan
from monai.networks.nets.controlnet import ControlNet
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding  # noqa: F401

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
    """

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
        plan = NetworkPlan.from_arguments("ControlNetMaisi", locals())
        self.build(plan, conditioning_embedding_in_channels, conditioning_embedding_num_channels, use_checkpointing)
