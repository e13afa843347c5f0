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

"""The U-shaped network whose encoder is a vision transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from monai.networks.blocks.attention.options import block_arguments
from monai.networks.blocks.dynunet_block import UnetOutBlock
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
from monai.networks.nets.vit import ViT
from monai.networks.state_dict.hooks import OldCheckpoints
from monai.utils import ensure_tuple_rep

__all__ = ["UNETR"]


class UNETR(OldCheckpoints):
    """
    U-shaped segmentation network whose encoder is a :class:`ViT` of twelve blocks on patches of 16
    (Hatamizadeh et al., https://arxiv.org/abs/2103.10504).

    Args:
        in_channels: number of the image's channels.
        out_channels: number of channels of the result.
        img_size: size of the image, one number for all axes or one for each; multiples of 16.
        feature_size: number of channels at full resolution. Defaults to 16.
        hidden_size: width of the tokens. Defaults to 768.
        mlp_dim: width of the feed-forward networks' hidden layer. Defaults to 3072.
        num_heads: number of heads of each attention. Defaults to 12.
        proj_type: how patches are projected, "conv" or "perceptron". Defaults to "conv".
        norm_name: type, or type and arguments, of the convolutional blocks' normalization. Defaults to "instance".
        conv_block: whether a convolutional block follows each upsampling of the tokens. Defaults to True.
        res_block: whether the convolutional blocks are residual. Defaults to True.
        dropout_rate: fraction of tokens' elements and of attention weights dropped in training. Defaults to 0.0.
        spatial_dims: number of spatial axes. Defaults to 3.
        qkv_bias: whether the linears of q, k and v have a bias. Defaults to False.
        save_attn: whether each block keeps its last attention matrix in ``attn.att_mat``. Defaults to False.
        use_combined_linear: whether one linear computes q, k and v. Defaults to True.
        use_flash_attention: accepted and checked; the fused kernel is used either way. Defaults to False.
        use_proj_attn: whether attention ends in an output projection; None (the default) means True.
        norm_eps: what the layer norms add to the variance. Defaults to 1e-5; DINOv2's and timm's networks have 1e-6.

    Raises:
        ValueError: if ``dropout_rate`` is outside of [0, 1], ``hidden_size`` is not divisible by ``num_heads``,
            patches do not fit the image, or ``use_flash_attention`` comes with ``save_attn``.
        TypeError: if ``use_proj_attn`` is neither a bool nor None.

    Example::

        # two classes on slices of one channel
        net = UNETR(in_channels=1, out_channels=2, img_size=(96, 64), spatial_dims=2)
        logits = net(torch.randn(4, 1, 96, 64))
    """

    works_on_slabs = True
    layout_role = "unetr"

    # how the release always builds attention: it does not take these options
    built_by_release = {"": {"use_combined_linear": True, "include_fc": True}}

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        img_size: Sequence[int] | int,
        feature_size: int = 16,
        hidden_size: int = 768,
        mlp_dim: int = 3072,
        num_heads: int = 12,
        proj_type: str = "conv",
        norm_name: tuple | str = "instance",
        conv_block: bool = True,
        res_block: bool = True,
        dropout_rate: float = 0.0,
        spatial_dims: int = 3,
        qkv_bias: bool = False,
        save_attn: bool = False,
        use_combined_linear: bool = True,
        use_flash_attention: bool = False,
        use_proj_attn: bool | None = None,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.num_layers = 12
        img_size = ensure_tuple_rep(img_size, spatial_dims)
        self.patch_size = ensure_tuple_rep(16, spatial_dims)
        self.feat_size = tuple(size // patch for size, patch in zip(img_size, self.patch_size))
        self.hidden_size = hidden_size
        self.classification = False
        self.vit = ViT(
            in_channels=in_channels,
            img_size=img_size,
            patch_size=self.patch_size,
            hidden_size=hidden_size,
            mlp_dim=mlp_dim,
            num_layers=self.num_layers,
            num_heads=num_heads,
            proj_type=proj_type,
            classification=self.classification,
            dropout_rate=dropout_rate,
            spatial_dims=spatial_dims,
            qkv_bias=qkv_bias,
            save_attn=save_attn,
            **block_arguments(use_combined_linear, use_flash_attention, use_proj_attn, norm_eps),
        )
        self.proj_axes = (0, spatial_dims + 1, *range(1, spatial_dims + 1))
        self.proj_view_shape = [*self.feat_size, hidden_size]

        conv: dict[str, Any] = {"spatial_dims": spatial_dims, "norm_name": norm_name, "res_block": res_block}
        conv["kernel_size"] = 3

        def skip(out_size: int, num_layer: int) -> UnetrPrUpBlock:
            """Tokens' grid to 2 ** (num_layer + 1) times its size."""
            return UnetrPrUpBlock(
                in_channels=hidden_size,
                out_channels=out_size,
                num_layer=num_layer,
                stride=1,
                upsample_kernel_size=2,
                conv_block=conv_block,
                **conv,
            )

        def up(in_size: int, out_size: int) -> UnetrUpBlock:
            return UnetrUpBlock(in_channels=in_size, out_channels=out_size, upsample_kernel_size=2, **conv)

        self.encoder1 = UnetrBasicBlock(in_channels=in_channels, out_channels=feature_size, stride=1, **conv)
        self.encoder2 = skip(2 * feature_size, num_layer=2)
        self.encoder3 = skip(4 * feature_size, num_layer=1)
        self.encoder4 = skip(8 * feature_size, num_layer=0)
        self.decoder5 = up(hidden_size, 8 * feature_size)
        self.decoder4 = up(8 * feature_size, 4 * feature_size)
        self.decoder3 = up(4 * feature_size, 2 * feature_size)
        self.decoder2 = up(2 * feature_size, feature_size)
        self.out = UnetOutBlock(spatial_dims=spatial_dims, in_channels=feature_size, out_channels=out_channels)

    def set_input_size(self, img_size: Sequence[int] | int) -> None:
        """
        Make the network one for images of another size, for good; see :meth:`ViT.set_input_size`.

        Args:
            img_size: size of the image, one number for all axes or one for each; multiples of 16.

        Raises:
            ValueError: if patches do not fit the image, or the positions are not those of the network's grid.
        """
        self.vit.set_input_size(img_size)
        self.feat_size = tuple(self.vit.patch_embedding.grid_size)
        self.proj_view_shape = [*self.feat_size, self.hidden_size]

    def proj_feat(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (B, number of patches, hidden_size) to a grid (B, hidden_size, patches along every axis)."""
        return x.view([x.shape[0]] + self.proj_view_shape).permute(self.proj_axes).contiguous()

    def forward(self, x_in: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x_in: image, (B, in_channels, size of every axis).

        Returns:
            (B, out_channels, size of every axis)

        Raises:
            ValueError: if the image has another grid of patches than ``img_size``.
        """
        tokens, hidden_states = self.vit(x_in)
        x = self.decoder5(self.proj_feat(tokens), self.encoder4(self.proj_feat(hidden_states[9])))
        x = self.decoder4(x, self.encoder3(self.proj_feat(hidden_states[6])))
        x = self.decoder3(x, self.encoder2(self.proj_feat(hidden_states[3])))
        out: torch.Tensor = self.out(self.decoder2(x, self.encoder1(x_in)))
        return out
