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

"""The vision transformer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn as nn

from monai.networks.blocks.attention.options import block_arguments
from monai.networks.blocks.attention.token_grid import TokenGrid, patch_grid
from monai.networks.blocks.patchembedding import PatchEmbeddingBlock
from monai.networks.blocks.transformerblock import TransformerBlock
from monai.networks.state_dict.hooks import OldCheckpoints

__all__ = ["ViT"]


class ViT(OldCheckpoints):
    """
    Vision transformer: patches of an image become tokens, which attend to one another
    (Dosovitskiy et al., https://arxiv.org/abs/2010.11929).

    Args:
        in_channels: number of the image's channels.
        img_size: size of the image, one number for all axes or one for each. Other sizes need other position
            embeddings: call :meth:`set_input_size`, take ``dynamic_size``, or set
            ``patch_embedding.position_embeddings``, of shape (1, number of patches, hidden_size).
        patch_size: size of a patch, likewise.
        hidden_size: width of the tokens. Defaults to 768.
        mlp_dim: width of the feed-forward networks' hidden layer. Defaults to 3072.
        num_layers: how many transformer blocks there are. Defaults to 12.
        num_heads: number of heads of each attention. Defaults to 12.
        proj_type: how patches are projected, "conv" or "perceptron". Defaults to "conv".
        pos_embed_type: "learnable", "sincos", "fourier" or "none", see :class:`PatchEmbeddingBlock`.
        classification: whether a class token is put first and a head turns it into logits. Defaults to False.
        num_classes: number of logits. Defaults to 2.
        dropout_rate: fraction of tokens' elements and of attention weights dropped in training. Defaults to 0.0.
        spatial_dims: number of spatial axes. Defaults to 3.
        post_activation: "Tanh" ends the head in a hyperbolic tangent, anything else leaves it out.
        qkv_bias: whether the linears of q, k and v have a bias. Defaults to False.
        save_attn: whether each block keeps its last attention matrix in ``attn.att_mat``. Defaults to False.
        use_combined_linear: whether one linear computes q, k and v. Defaults to True.
        use_flash_attention: accepted and checked; the fused kernel is used either way. Defaults to False.
        use_proj_attn: whether attention ends in an output projection; None (the default) means True.
        norm_eps: what the layer norms add to the variance. Defaults to 1e-5; DINOv2's and timm's networks have 1e-6.
        dynamic_size: whether images of other sizes than ``img_size`` are taken, too, with resampled position
            embeddings, see :class:`PatchEmbeddingBlock`. Defaults to False: another size is refused.

    Raises:
        ValueError: if ``dropout_rate`` is outside of [0, 1], ``hidden_size`` is not divisible by ``num_heads``,
            patches do not fit the image, or ``use_flash_attention`` comes with ``save_attn``.
        TypeError: if ``use_proj_attn`` is neither a bool nor None.

    Example::

        # logits of three classes for volumes of 96 x 96 x 48
        net = ViT(in_channels=1, img_size=(96, 96, 48), patch_size=16, classification=True, num_classes=3)
        logits, hidden_states = net(torch.randn(2, 1, 96, 96, 48))
    """

    works_on_slabs = True

    # how the release always builds attention: it does not take these options
    built_by_release = {"": {"use_combined_linear": True, "include_fc": True}}

    def __init__(
        self,
        in_channels: int,
        img_size: Sequence[int] | int,
        patch_size: Sequence[int] | int,
        hidden_size: int = 768,
        mlp_dim: int = 3072,
        num_layers: int = 12,
        num_heads: int = 12,
        proj_type: str = "conv",
        pos_embed_type: str = "learnable",
        classification: bool = False,
        num_classes: int = 2,
        dropout_rate: float = 0.0,
        spatial_dims: int = 3,
        post_activation="Tanh",
        qkv_bias: bool = False,
        save_attn: bool = False,
        use_combined_linear: bool = True,
        use_flash_attention: bool = False,
        use_proj_attn: bool | None = None,
        norm_eps: float = 1e-5,
        dynamic_size: bool = False,
    ) -> None:
        super().__init__()
        self.classification = classification
        self.patch_embedding = PatchEmbeddingBlock(
            in_channels=in_channels,
            img_size=img_size,
            patch_size=patch_size,
            hidden_size=hidden_size,
            num_heads=num_heads,
            proj_type=proj_type,
            pos_embed_type=pos_embed_type,
            dropout_rate=dropout_rate,
            spatial_dims=spatial_dims,
            dynamic_size=dynamic_size,
        )
        options = block_arguments(use_combined_linear, use_flash_attention, use_proj_attn, norm_eps)
        self.blocks = nn.ModuleList(
            [
                TransformerBlock(hidden_size, mlp_dim, num_heads, dropout_rate, qkv_bias, save_attn, **options)
                for _ in range(num_layers)
            ]
        )
        self.norm = nn.LayerNorm(hidden_size, eps=norm_eps)
        if self.classification:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, hidden_size))
            head = nn.Linear(hidden_size, num_classes)
            self.classification_head = nn.Sequential(head, nn.Tanh()) if post_activation == "Tanh" else head

    def set_input_size(self, img_size: Sequence[int] | int, patch_size: Sequence[int] | int | None = None) -> None:
        """
        Make the network one for images of another size, and for patches of another size, for good; see
        :meth:`PatchEmbeddingBlock.set_input_size`. A network around this one has to follow, as UNETR's method does.

        Args:
            img_size: size of the image, one number for all axes or one for each.
            patch_size: size of a patch, likewise; None keeps it.

        Raises:
            ValueError: if patches do not fit the image, or the positions are not those of the network's grid.
            TypeError: if the patches are projected by a layer that is not known here.
        """
        self.patch_embedding.set_input_size(img_size, patch_size)

    def token_grids(self) -> dict[str, TokenGrid]:
        """See :class:`TokenGrid`."""
        return {"blocks": patch_grid(self.patch_embedding, int(self.classification))}

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """
        Args:
            x: image, (B, in_channels, size of every axis).

        Returns:
            the normalized tokens (B, N, hidden_size), or logits (B, num_classes) where there is a head; and the tokens
            after each block. N is the number of patches, plus one where there is a class token.

        Raises:
            ValueError: if the image has another number of patches than there are position embeddings.
        """
        x = self.patch_embedding(x)
        if hasattr(self, "cls_token"):
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        hidden_states: list[torch.Tensor] = []
        for block in self.blocks:
            x = block(x)
            hidden_states.append(x)
        x = self.norm(x)
        if hasattr(self, "classification_head"):
            x = self.classification_head(x[:, 0])
        return x, hidden_states
