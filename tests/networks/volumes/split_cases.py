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

"""Networks that are split over ranks and compared with one process: how they are built and called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn as nn

from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.apps.generation.maisi.networks.controlnet_maisi import ControlNetMaisi
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from monai.networks.nets import (
    UNETR,
    VQVAE,
    AutoencoderKL,
    ControlNet,
    DiffusionModelUNet,
    SPADEAutoencoderKL,
    SPADEDiffusionModelUNet,
    ViT,
)

__all__ = ["CASES", "Case", "randomized"]

DTYPE = torch.float64


def numbers(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


def randomized(net: nn.Module) -> nn.Module:
    """The network in float64, with weights of which none is zero."""
    generator = torch.Generator().manual_seed(0)
    net = net.to(DTYPE)
    with torch.no_grad():
        for parameter in net.parameters():
            spread = 0.1 if parameter.dim() < 2 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=DTYPE) * spread)
            if parameter.dim() == 1:
                parameter.add_(0.5)
    return net


def at_time(x: torch.Tensor) -> torch.Tensor:
    return torch.full((x.shape[0],), 7.0, dtype=x.dtype)


@dataclass
class Case:
    """
    A network, and a call of it.

    Args:
        build: makes it.
        call: calls it on slabs, in the order of ``shapes``, and returns its outputs.
        shapes: of the whole volumes.
        latent: whether these are latents.
        zooms: of each volume, see ``VolumeSplit.scatter``.
        tokens: whether the output is tokens of a slab, not an image.
        train: whether the network is in training.
    """

    build: Callable[[], nn.Module]
    call: Callable[..., Any]
    shapes: list[tuple[int, ...]]
    latent: bool = False
    zooms: list[int] = field(default_factory=lambda: [1] * 2)
    tokens: bool = False
    train: bool = False
    axis: int = 0

    def inputs(self) -> list[torch.Tensor]:
        return [numbers(*shape, seed=number) for number, shape in enumerate(self.shapes)]


KL = {
    "channels": (4, 8),
    "num_res_blocks": 1,
    "attention_levels": (False, True),
    "norm_num_groups": 2,
    "latent_channels": 2,
}
MAISI = {
    "in_channels": 1,
    "out_channels": 1,
    "num_res_blocks": (1, 1),
    "num_channels": (4, 8),
    "attention_levels": (False, True),
    "latent_channels": 2,
    "norm_num_groups": 2,
    "with_encoder_nonlocal_attn": True,
    "with_decoder_nonlocal_attn": True,
}
UNET = {
    "in_channels": 1,
    "out_channels": 1,
    "attention_levels": (False, True),
    "num_res_blocks": 1,
    "num_head_channels": 4,
    "norm_num_groups": 4,
}
CONTROL = {name: value for name, value in UNET.items() if name != "out_channels"}
VITS = {"in_channels": 1, "hidden_size": 12, "mlp_dim": 16, "num_heads": 2}


def maisi(spatial_dims: int = 3, num_splits: int = 1, **options: Any) -> nn.Module:
    return AutoencoderKlMaisi(spatial_dims, **{**MAISI, **options}, num_splits=num_splits)


def kl(spatial_dims: int = 2, **options: Any) -> nn.Module:
    return AutoencoderKL(spatial_dims, **{**KL, **options})


def spade(spatial_dims: int = 2) -> nn.Module:
    return SPADEAutoencoderKL(spatial_dims, label_nc=3, **KL, spade_intermediate_channels=4)


def vqvae(spatial_dims: int = 2, **options: Any) -> nn.Module:
    sizes: dict[str, Any] = {"channels": (4, 6), "num_res_channels": (4, 6), "num_res_layers": 1}
    steps: dict[str, Any] = {
        "downsample_parameters": ((2, 4, 1, 1),) * 2,
        "upsample_parameters": ((2, 4, 1, 1, 0),) * 2,
    }
    return VQVAE(spatial_dims, 1, 1, **{**sizes, **steps, "num_embeddings": 8, "embedding_dim": 3, **options})


def unet(spatial_dims: int = 2, **options: Any) -> nn.Module:
    return DiffusionModelUNet(spatial_dims, **{**UNET, "channels": (4, 8), **options})


def unet_maisi(spatial_dims: int = 3, **options: Any) -> nn.Module:
    extra = {"include_spacing_input": True, "include_top_region_index_input": True}
    return DiffusionModelUNetMaisi(spatial_dims, **{**UNET, "num_channels": (4, 8), **extra, **options})


class Controlled(nn.Module):
    """A U-Net with the residuals of its ControlNet."""

    works_on_slabs = True
    beside_the_path = ("control",)

    def __init__(self, unet: nn.Module, control: nn.Module) -> None:
        super().__init__()
        self.unet, self.control = unet, control

    def forward(self, x: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        down, middle = self.control(x, at_time(x), image, 0.7)
        out: torch.Tensor = self.unet(
            x, at_time(x), down_block_additional_residuals=down, mid_block_additional_residual=middle
        )
        return out


def controlled() -> nn.Module:
    control = ControlNet(2, **CONTROL, channels=(4, 8), conditioning_embedding_num_channels=(4, 4, 4))
    return Controlled(unet(), control)


def controlled_maisi() -> nn.Module:
    control = ControlNetMaisi(2, **CONTROL, num_channels=(4, 8), conditioning_embedding_num_channels=(4, 4))
    return Controlled(DiffusionModelUNetMaisi(2, **UNET, num_channels=(4, 8)), control)


def vit(**options: Any) -> nn.Module:
    return ViT(**{**VITS, "img_size": (32, 24), "patch_size": 4, "num_layers": 2, "spatial_dims": 2, **options})


def unetr(**options: Any) -> nn.Module:
    return UNETR(**VITS, out_channels=2, img_size=(64, 80), feature_size=4, spatial_dims=2, **options)


def context(x: torch.Tensor) -> torch.Tensor:
    return torch.linspace(-1, 1, 15, dtype=x.dtype).view(1, 3, 5).expand(x.shape[0], -1, -1)


def call(net: nn.Module, x: torch.Tensor) -> Any:
    return net(x)


def encode(net: Any, x: torch.Tensor) -> Any:
    return net.encode(x)


def decode(net: Any, z: torch.Tensor) -> Any:
    return net.decode(z)


def reconstruct(net: Any, x: torch.Tensor) -> Any:
    return net.reconstruct(x)


def denoise(net: nn.Module, x: torch.Tensor) -> Any:
    return net(x, at_time(x))


def denoise_with_context(net: nn.Module, x: torch.Tensor) -> Any:
    mask = torch.tensor([[1, 0, 1]]).expand(x.shape[0], -1)
    return net(x, at_time(x), context=context(x), context_mask=mask)


def denoise_maisi(net: nn.Module, x: torch.Tensor) -> Any:
    spacing, region = x.new_ones(x.shape[0], 3), torch.eye(4, dtype=x.dtype)[:1].expand(x.shape[0], -1)
    return net(x, at_time(x), spacing_tensor=spacing, top_region_index_tensor=region)


def tokens(net: nn.Module, x: torch.Tensor) -> Any:
    return net(x)[0]


IMAGE, LATENT = (1, 1, 16, 8, 6), (1, 2, 8, 4, 3)
CASES = {
    "maisi_encode": Case(maisi, encode, [IMAGE]),
    "maisi_encode_axis_1": Case(maisi, encode, [(1, 1, 6, 16, 8)], axis=1),
    "maisi_encode_splits": Case(lambda: maisi(num_splits=3), encode, [IMAGE]),
    "maisi_decode": Case(maisi, decode, [LATENT], latent=True),
    "maisi_decode_uneven": Case(maisi, decode, [(2, 2, 7, 4, 3)], latent=True),
    "maisi_decode_axis_2": Case(maisi, decode, [(1, 2, 3, 4, 8)], latent=True, axis=2),
    "maisi_decode_recomputed": Case(
        lambda: maisi(num_splits=2, use_checkpointing=True), decode, [LATENT], latent=True, train=True
    ),
    "maisi_decode_transposed": Case(lambda: maisi(use_convtranspose=True), decode, [LATENT], latent=True),
    "maisi_odd": Case(lambda: maisi(2), reconstruct, [(1, 1, 21, 8)]),
    "kl_reconstruct": Case(kl, reconstruct, [(2, 1, 16, 12)]),
    "kl_transposed_axis_1": Case(lambda: kl(use_convtranspose=True), reconstruct, [(1, 1, 12, 22)], axis=1),
    "kl_3d": Case(lambda: kl(3), reconstruct, [IMAGE]),
    "spade_reconstruct": Case(
        spade, lambda net, x, seg: net.reconstruct(x, seg), [(1, 1, 16, 12), (1, 3, 16, 12)], axis=1, zooms=[1, 1]
    ),
    "vqvae": Case(vqvae, call, [(2, 1, 32, 8)]),
    "vqvae_training": Case(lambda: vqvae(ddp_sync=False), call, [(1, 1, 36, 8)], train=True),
    "unet": Case(unet, denoise, [(2, 1, 16, 6)]),
    "unet_axis_1_uneven": Case(unet, denoise, [(1, 1, 6, 18)], axis=1),
    "unet_1d": Case(lambda: unet(1), denoise, [(1, 1, 16)]),
    "unet_updown": Case(lambda: unet(resblock_updown=True), denoise, [(1, 1, 16, 6)]),
    "unet_context": Case(
        lambda: unet(with_conditioning=True, cross_attention_dim=5), denoise_with_context, [(2, 1, 16, 6)]
    ),
    "unet_no_context": Case(
        lambda: unet(with_conditioning=True, cross_attention_dim=8), denoise, [(1, 1, 6, 16)], axis=1
    ),
    "unet_spade": Case(
        lambda: SPADEDiffusionModelUNet(2, label_nc=3, **UNET, channels=(4, 8), spade_intermediate_channels=4),
        lambda net, x, seg: net(x, at_time(x), seg),
        [(1, 1, 6, 18), (1, 3, 6, 18)],
        axis=1,
    ),
    "unet_maisi": Case(unet_maisi, denoise_maisi, [(1, 1, 16, 4, 4)]),
    "controlnet": Case(controlled, lambda net, x, image: net(x, image), [(1, 1, 16, 6), (1, 1, 64, 24)], zooms=[1, 4]),
    "controlnet_maisi": Case(
        controlled_maisi, lambda net, x, image: net(x, image), [(1, 1, 6, 18), (1, 1, 12, 36)], zooms=[1, 2], axis=1
    ),
    "vit": Case(vit, tokens, [(2, 1, 32, 24)], tokens=True),
    "vit_axis_1": Case(vit, tokens, [(1, 1, 32, 24)], tokens=True, axis=1),
    "vit_another_size": Case(lambda: vit(dynamic_size=True), tokens, [(2, 1, 24, 32)], tokens=True),
    "vit_perceptron": Case(
        lambda: vit(proj_type="perceptron", pos_embed_type="sincos"), tokens, [(1, 1, 32, 24)], tokens=True
    ),
    "vit_classes": Case(
        lambda: vit(classification=True), lambda net, x: net(x)[1][-1][:, :1], [(1, 1, 32, 24)], axis=1
    ),
    "unetr": Case(unetr, call, [(1, 1, 64, 80)]),
    "unetr_axis_1": Case(lambda: unetr(norm_name="batch"), call, [(1, 1, 64, 80)], axis=1),
}
