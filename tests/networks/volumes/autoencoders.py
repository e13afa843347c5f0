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

"""Autoencoders and inputs for the tests of volumes in parts, all of them small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn

from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.networks.nets import VQVAE, AutoencoderKL
from monai.networks.nets.spade_autoencoderkl import SPADEAutoencoderKL

__all__ = ["AUTOENCODERS", "images", "latents", "made"]

LATENT_CHANNELS = 3


def _kl(spatial_dims: int, **changes: Any) -> dict[str, Any]:
    options = {
        "spatial_dims": spatial_dims,
        "in_channels": 1,
        "out_channels": 1,
        "num_res_blocks": (1, 2, 1),
        "attention_levels": (False, False, True),
        "latent_channels": LATENT_CHANNELS,
        "norm_num_groups": 4,
    }
    return {**options, **changes}


CHANNELS = (8, 8, 16)
EVEN = ((2, 4, 1, 1),) * 2, ((2, 4, 1, 1, 0),) * 2
UNEVEN = ((2, 3, 1, 1), (3, 5, 1, 2)), ((3, 5, 1, 2, 2), (2, 3, 1, 1, 1))

AUTOENCODERS: dict[str, Callable[[int], nn.Module]] = {
    "kl": lambda dims: AutoencoderKL(channels=CHANNELS, **_kl(dims)),
    "kl_transposed": lambda dims: AutoencoderKL(channels=CHANNELS, use_convtranspose=True, **_kl(dims)),
    "kl_plain": lambda dims: AutoencoderKL(
        channels=CHANNELS,
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
        **_kl(dims, attention_levels=(False,) * 3),
    ),
    "spade": lambda dims: SPADEAutoencoderKL(
        label_nc=2, channels=CHANNELS, spade_intermediate_channels=8, **_kl(dims, num_res_blocks=1)
    ),
    "maisi": lambda dims: AutoencoderKlMaisi(num_channels=CHANNELS, num_splits=2, **_kl(dims)),
    "maisi_transposed": lambda dims: AutoencoderKlMaisi(
        num_channels=CHANNELS, num_splits=3, use_convtranspose=True, **_kl(dims)
    ),
    "vqvae": lambda dims: VQVAE(dims, 1, 1, (8, 8), 1, (8, 8), *EVEN, embedding_dim=LATENT_CHANNELS),
    "vqvae_uneven": lambda dims: VQVAE(
        dims, 1, 1, (8, 8), 2, (8, 4), *UNEVEN, embedding_dim=LATENT_CHANNELS, output_act="tanh"
    ),
}


def made(name: str, spatial_dims: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    """An autoencoder with weights that are not those of its initialization, for inference."""
    torch.manual_seed(0)
    network = AUTOENCODERS[name](spatial_dims).to(dtype)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def images(name: str, sizes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """Two images, and what else the decoder of the network gets."""
    torch.manual_seed(1)
    image = torch.randn(2, 1, *sizes, dtype=dtype)
    return image, *_segmentation(name, sizes, dtype)


def latents(
    name: str, network: Any, sizes: tuple[int, ...], dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, ...]:
    """The latents of two images of ``sizes``, and what else the decoder gets."""
    image, *others = images(name, sizes, dtype)
    with torch.no_grad():
        encoded = network.encode(image)
    return encoded[0] if isinstance(encoded, tuple) else encoded, *others


def _segmentation(name: str, sizes: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    if name != "spade":
        return ()
    return (torch.randint(0, 2, (2, 2, *(2 * size - 3 for size in sizes))).to(dtype),)
