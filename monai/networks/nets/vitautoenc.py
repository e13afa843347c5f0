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

"""The vision transformer that gives an image back."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn as nn

from monai.networks.blocks.attention.options import block_arguments
from monai.networks.blocks.attention.token_grid import TokenGrid, patch_grid
from monai.networks.blocks.patchembedding import PatchEmbeddingBlock
from monai.networks.blocks.transformerblock import TransformerBlock
from monai.networks.layers import Conv
from monai.networks.state_dict.hooks import OldCheckpoints
from monai.utils import ensure_tuple_rep, is_sqrt

__all__ = ["ViTAutoEnc"]


class ViTAutoEnc(OldCheckpoints):
    """
    Vision transformer (see :class:`ViT`) whose tokens two transposed convolutions turn back into an image of the
    input's size.

    Args:
        in_channels: number of the image's channels.
        img_size: size of the image, one number for all axes or one for each; a multiple of the patch size.
        patch_size: size of a patch, likewise; square numbers, as each convolution enlarges by their root.
        out_channels: number of the result's channels. Defaults to 1.
        deconv_chns: number of channels between the two transposed convolutions. Defaults to 16.
        hidden_size: width of the tokens. Defaults to 768.
        mlp_dim: width of the feed-forward networks' hidden layer. Defaults to 3072.
        num_layers: how many transformer blocks there are. Defaults to 12.
        num_heads: number of heads of each attention. Defaults to 12.
        proj_type: how patches are projected, "conv" or "perceptron". Defaults to "conv".
        dropout_rate: fraction of tokens' elements and of attention weights dropped in training. Defaults to 0.0.
        spatial_dims: number of spatial axes. Defaults to 3.
        qkv_bias: whether the linears of q, k and v have a bias. Defaults to False.
        save_attn: whether each block keeps its last attention matrix in ``attn.att_mat``. Defaults to False.
        use_combined_linear: whether one linear computes q, k and v. Defaults to True.
        use_flash_attention: accepted and checked; the fused kernel is used either way. Defaults to False.
        use_proj_attn: whether attention ends in an output projection; None (the default) means True.
        norm_eps: what the layer norms add to the variance. Defaults to 1e-5; DINOv2's and timm's networks have 1e-6.

    Raises:
        ValueError: if a patch size is not a square number or does not divide the image's, ``dropout_rate`` is outside
            of [0, 1], ``hidden_size`` is not divisible by ``num_heads``, or ``use_flash_attention`` comes with
            ``save_attn``.
        TypeError: if ``use_proj_attn`` is neither a bool nor None.
    """

    layout_role = "vit autoencoder"

    # how the release always builds attention: it does not take these options
    built_by_release = {"": {"use_combined_linear": True, "include_fc": True}}

    def __init__(
        self,
        in_channels: int,
        img_size: Sequence[int] | int,
        patch_size: Sequence[int] | int,
        out_channels: int = 1,
        deconv_chns: int = 16,
        hidden_size: int = 768,
        mlp_dim: int = 3072,
        num_layers: int = 12,
        num_heads: int = 12,
        proj_type: str = "conv",
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
        if not is_sqrt(patch_size):
            raise ValueError(f"patch_size should be made of square numbers, got {patch_size}.")
        self.img_size = ensure_tuple_rep(img_size, spatial_dims)
        self.patch_size = ensure_tuple_rep(patch_size, spatial_dims)
        self.spatial_dims = spatial_dims
        if any(size % patch for size, patch in zip(self.img_size, self.patch_size)):
            raise ValueError(f"img_size {self.img_size} should be divisible by patch_size {self.patch_size}.")

        self.patch_embedding = PatchEmbeddingBlock(
            in_channels=in_channels,
            img_size=img_size,
            patch_size=patch_size,
            hidden_size=hidden_size,
            num_heads=num_heads,
            proj_type=proj_type,
            dropout_rate=dropout_rate,
            spatial_dims=spatial_dims,
        )
        options = block_arguments(use_combined_linear, use_flash_attention, use_proj_attn, norm_eps)
        self.blocks = nn.ModuleList(
            [
                TransformerBlock(hidden_size, mlp_dim, num_heads, dropout_rate, qkv_bias, save_attn, **options)
                for _ in range(num_layers)
            ]
        )
        self.norm = nn.LayerNorm(hidden_size, eps=norm_eps)
        # named for 3-D in every dimension, as in all checkpoints
        transposed = Conv[Conv.CONVTRANS, spatial_dims]
        stride = tuple(math.isqrt(patch) for patch in self.patch_size)
        self.conv3d_transpose = transposed(hidden_size, deconv_chns, kernel_size=stride, stride=stride)
        self.conv3d_transpose_1 = transposed(deconv_chns, out_channels, kernel_size=stride, stride=stride)

    def token_grids(self) -> dict[str, TokenGrid]:
        """See :class:`TokenGrid`."""
        return {"blocks": patch_grid(self.patch_embedding, 0)}

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """
        Args:
            x: image, (B, in_channels, size of every axis).

        Returns:
            image (B, out_channels, size of every axis), and the tokens (B, number of patches, hidden_size) after each
            block.

        Raises:
            ValueError: if the image has another number of patches than there are position embeddings.
        """
        grid: list[int] = []
        for size, patch in zip(x.shape[2:], list(self.patch_size)):
            grid.append(size // patch)
        x = self.patch_embedding(x)
        hidden_states: list[torch.Tensor] = []
        for block in self.blocks:
            x = block(x)
            hidden_states.append(x)
        x = self.norm(x).transpose(1, 2)
        x = x.reshape([x.shape[0], x.shape[1]] + grid)
        return self.conv3d_transpose_1(self.conv3d_transpose(x)), hidden_states
