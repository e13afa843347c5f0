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


"""A small VQVAE and transformer, which the fork and the release build and sample from alike."""

from __future__ import annotations

import torch
import torch.nn as nn

from monai.inferers import VQVAETransformerInferer
from monai.networks.nets import VQVAE, DecoderOnlyTransformer
from monai.utils.ordering import Ordering

__all__ = ["ENTRIES", "Sampler"]

ENTRIES = 12
SIDE = 4


class Sampler(nn.Module):
    """
    Images of 8 pixels a side, latents of 4.

    Args:
        spatial_dims: number of spatial axes.
        with_cross_attention: whether the transformer attends to a context.
        max_seq_len: number of tokens that the transformer takes.
    """

    def __init__(self, spatial_dims: int, with_cross_attention: bool, max_seq_len: int) -> None:
        super().__init__()
        self.size = (SIDE,) * spatial_dims
        self.vqvae = VQVAE(
            spatial_dims=spatial_dims,
            in_channels=1,
            out_channels=1,
            channels=(8,),
            num_res_layers=1,
            num_res_channels=(8,),
            num_embeddings=ENTRIES,
            embedding_dim=8,
            downsample_parameters=((2, 4, 1, 1),),
            upsample_parameters=((2, 4, 1, 1, 0),),
        )
        self.transformer = DecoderOnlyTransformer(
            ENTRIES + 1, max_seq_len, 24, 2, 4, with_cross_attention=with_cross_attention
        )
        self.ordering = Ordering("raster_scan", spatial_dims, (1, *self.size))

    def sample(self, context: torch.Tensor | None, **kwargs) -> torch.Tensor:
        """Images of two sequences."""
        start = torch.full((2, 1), ENTRIES)
        return VQVAETransformerInferer().sample(
            self.size, start, self.vqvae, self.transformer, self.ordering, conditioning=context, **kwargs
        )

    def likelihood(self, images: torch.Tensor, context: torch.Tensor | None, **kwargs) -> torch.Tensor:
        """Log-likelihoods of the images' entries."""
        return VQVAETransformerInferer().get_likelihood(
            images, self.vqvae, self.transformer, self.ordering, context, **kwargs
        )

    def predict(self, images: torch.Tensor, context: torch.Tensor | None) -> tuple:
        """Logits, targets and size, as in training."""
        return VQVAETransformerInferer()(
            images, self.vqvae, self.transformer, self.ordering, context, return_latent=True
        )
