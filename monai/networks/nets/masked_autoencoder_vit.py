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

"""The masked autoencoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Optional

import torch
import torch.nn as nn

from monai.networks.blocks.attention.options import block_arguments
from monai.networks.blocks.attention.token_grid import TokenGrid, patch_grid
from monai.networks.blocks.patchembedding import PatchEmbeddingBlock
from monai.networks.blocks.pos_embed_utils import build_sincos_position_embedding
from monai.networks.blocks.transformerblock import TransformerBlock
from monai.networks.layers import trunc_normal_
from monai.networks.state_dict.hooks import OldCheckpoints
from monai.utils import ensure_tuple_rep
from monai.utils.module import look_up_option

SUPPORTED_POS_EMBEDDING_TYPES = {"none", "learnable", "sincos"}

__all__ = ["MaskedAutoEncoderViT"]


class MaskedAutoEncoderViT(OldCheckpoints):
    """
    Masked autoencoder: a random part of the patches passes a transformer, from which a smaller one predicts all of them
    (He et al., https://arxiv.org/abs/2111.06377).

    Args:
        in_channels: number of the image's channels.
        img_size: size of the image, one number for all axes or one for each; a multiple of the patch size.
        patch_size: size of a patch, likewise.
        hidden_size: width of the encoder's tokens. Defaults to 768.
        mlp_dim: width of the encoder's feed-forward networks. Defaults to 512.
        num_layers: number of the encoder's transformer blocks. Defaults to 12.
        num_heads: number of the encoder's attention heads. Defaults to 12.
        masking_ratio: fraction of the patches that the encoder does not see, inside of (0, 1). Defaults to 0.75.
        decoder_hidden_size: width of the decoder's tokens. Defaults to 384.
        decoder_mlp_dim: width of the decoder's feed-forward networks. Defaults to 512.
        decoder_num_layers: number of the decoder's transformer blocks. Defaults to 4.
        decoder_num_heads: number of the decoder's attention heads. Defaults to 12.
        proj_type: how patches are projected, "conv" or "perceptron". Defaults to "conv".
        pos_embed_type: the encoder's position embedding, see :class:`PatchEmbeddingBlock`. Defaults to "sincos".
        decoder_pos_embed_type: the decoder's, "sincos" (fixed), "learnable", or "none", which is learnable too but
            starts at zero. Defaults to "sincos".
        dropout_rate: fraction of tokens' elements and of attention weights dropped in training. Defaults to 0.0.
        spatial_dims: number of spatial axes. Defaults to 3.
        qkv_bias: whether the linears of q, k and v have a bias. Defaults to False.
        save_attn: whether each block keeps its last attention matrix in ``attn.att_mat``. Defaults to False.
        use_combined_linear: whether one linear computes q, k and v. Defaults to True.
        use_flash_attention: accepted and checked; the fused kernel is used either way. Defaults to False.
        use_proj_attn: whether attention ends in an output projection; None (the default) means True.
        norm_eps: what the layer norms add to the variance. Defaults to 1e-5; DINOv2's and timm's networks have 1e-6.

    Raises:
        ValueError: if ``dropout_rate`` or ``masking_ratio`` is out of range, a width is not divisible by its number of
            heads, ``patch_size`` does not divide ``img_size``, a type is not one of those above, or
            ``use_flash_attention`` comes with ``save_attn``.
        TypeError: if ``use_proj_attn`` is neither a bool nor None.

    Example::

        net = MaskedAutoEncoderViT(in_channels=1, img_size=(96, 96, 48), patch_size=16, masking_ratio=0.6)
        patches, mask = net(torch.randn(2, 1, 96, 96, 48))
    """

    # how the release always builds attention: it does not take these options
    built_by_release = {"": {"use_combined_linear": True, "include_fc": True}}

    def __init__(
        self,
        in_channels: int,
        img_size: Sequence[int] | int,
        patch_size: Sequence[int] | int,
        hidden_size: int = 768,
        mlp_dim: int = 512,
        num_layers: int = 12,
        num_heads: int = 12,
        masking_ratio: float = 0.75,
        decoder_hidden_size: int = 384,
        decoder_mlp_dim: int = 512,
        decoder_num_layers: int = 4,
        decoder_num_heads: int = 12,
        proj_type: str = "conv",
        pos_embed_type: str = "sincos",
        decoder_pos_embed_type: str = "sincos",
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
        self.img_size = ensure_tuple_rep(img_size, spatial_dims)
        self.patch_size = ensure_tuple_rep(patch_size, spatial_dims)
        self.spatial_dims = spatial_dims
        self.decoder_hidden_size = decoder_hidden_size
        self.masking_ratio = masking_ratio
        self.decoder_pos_embed_type: str = look_up_option(decoder_pos_embed_type, SUPPORTED_POS_EMBEDDING_TYPES)
        if any(size % patch for size, patch in zip(self.img_size, self.patch_size)):
            raise ValueError(f"img_size {self.img_size} should be divisible by patch_size {self.patch_size}.")
        if not 0 < masking_ratio < 1:
            raise ValueError(f"masking_ratio should be inside of (0, 1), got {masking_ratio}.")
        if decoder_hidden_size % decoder_num_heads != 0:
            raise ValueError(
                f"decoder_hidden_size {decoder_hidden_size} should be divisible by decoder_num_heads "
                f"{decoder_num_heads}."
            )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, hidden_size))
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
        )
        options = block_arguments(use_combined_linear, use_flash_attention, use_proj_attn, norm_eps)
        blocks = [
            TransformerBlock(hidden_size, mlp_dim, num_heads, dropout_rate, qkv_bias, save_attn, **options)
            for _ in range(num_layers)
        ]
        self.blocks = nn.Sequential(*blocks, nn.LayerNorm(hidden_size, eps=norm_eps))

        self.decoder_embed = nn.Linear(hidden_size, decoder_hidden_size)
        self.mask_tokens = nn.Parameter(torch.zeros(1, 1, decoder_hidden_size))
        # reserves its place among the parameters: optimizers number them
        self.decoder_pos_embedding = nn.Parameter(torch.zeros(1, self.patch_embedding.n_patches, decoder_hidden_size))
        decoder_blocks = [
            TransformerBlock(
                decoder_hidden_size, decoder_mlp_dim, decoder_num_heads, dropout_rate, qkv_bias, save_attn, **options
            )
            for _ in range(decoder_num_layers)
        ]
        self.decoder_blocks = nn.Sequential(*decoder_blocks, nn.LayerNorm(decoder_hidden_size, eps=norm_eps))
        self.decoder_pred = nn.Linear(decoder_hidden_size, in_channels * math.prod(self.patch_size))

        self._init_weights()

    def token_grids(self) -> dict[str, TokenGrid]:
        """See :class:`TokenGrid`."""
        # the encoder sees some patches, in an order drawn at random
        return {"blocks": TokenGrid(class_tokens=1), "decoder_blocks": patch_grid(self.patch_embedding, 1)}

    def _init_weights(self) -> None:
        if self.decoder_pos_embed_type == "sincos":
            grid = [size // patch for size, patch in zip(self.img_size, self.patch_size)]
            self.decoder_pos_embedding = build_sincos_position_embedding(
                grid, self.decoder_hidden_size, self.spatial_dims
            )
        elif self.decoder_pos_embed_type == "learnable":
            trunc_normal_(self.decoder_pos_embedding, std=0.02)
        for token in (self.mask_tokens, self.cls_token):
            trunc_normal_(token, std=0.02)

    def _masking(
        self, x: torch.Tensor, masking_ratio: Optional[float] = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Draw the tokens that stay.

        Returns:
            the tokens that stay (B, K, C), their places (B, K), and the mask (B, N): 0 where a token stays, else 1.
        """
        ratio = self.masking_ratio if masking_ratio is None else masking_ratio
        batch, num_tokens = x.shape[0], x.shape[1]
        num_kept = int((1 - ratio) * num_tokens)
        if not (0 <= ratio < 1) or num_kept == 0:
            raise ValueError(
                f"masking_ratio should be in [0, 1) and leave at least one of the {num_tokens} patches, got {ratio}."
            )
        # on the CPU, so that a seed gives the same mask on every device
        kept = torch.multinomial(torch.ones(batch, num_tokens), num_kept, replacement=False).to(x.device)
        mask = torch.ones(batch, num_tokens, dtype=torch.int, device=x.device).scatter(1, kept, 0)
        return x.gather(1, _over_channels(kept, x)), kept, mask

    def forward(self, x: torch.Tensor, masking_ratio: Optional[float] = None) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            x: image, (B, in_channels, size of every axis).
            masking_ratio: replaces the network's for this call; 0 shows the encoder every patch.

        Returns:
            the predicted patches (B, N, volume of a patch x in_channels) and the mask (B, N), int: 1 where the encoder
            did not see the patch.

        Raises:
            ValueError: if the image has another number of patches than there are position embeddings, or the ratio
                leaves no patch.
        """
        x, kept, mask = self._masking(self.patch_embedding(x), masking_ratio=masking_ratio)
        x = self.blocks(torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1))

        # under autocast a linear answers in a lower precision than its parameters'
        x = self.decoder_embed(x).to(self.mask_tokens.dtype)
        cls_token, x = x[:, :1], x[:, 1:]
        kept = _over_channels(kept.to(x.device), x)
        tokens = self.mask_tokens.expand(x.shape[0], mask.shape[1], -1).scatter(1, kept, x)
        x = torch.cat([cls_token, tokens + self.decoder_pos_embedding], dim=1)
        return self.decoder_pred(self.decoder_blocks(x))[:, 1:], mask


def _over_channels(index: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Places of tokens, (B, K), repeated for each channel of the tokens ``x``: (B, K, C)."""
    return index.unsqueeze(-1).expand(-1, -1, x.shape[-1])
