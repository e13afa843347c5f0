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

"""Small networks of MONAI, and what they are given: to be saved and to come back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn as nn

import monai.networks.nets as nets
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.apps.generation.maisi.networks.controlnet_maisi import ControlNetMaisi
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi

__all__ = ["NETWORKS", "Row", "outputs"]


@dataclass(frozen=True)
class Row:
    """
    A network, and inputs of its ``forward`` by their shapes; an int is a tensor with one time step for each image.

    Args:
        build: gives the network.
        shapes: of the positional inputs.
        named: shapes of the others by name.
    """

    build: Callable[[], nn.Module]
    shapes: tuple[Any, ...] = ((1, 1, 32, 32),)
    named: Mapping[str, Any] = field(default_factory=dict)


def outputs(net: nn.Module, row: Row) -> list[torch.Tensor]:
    """The tensors that a network gives for seeded inputs, in evaluation mode."""
    torch.manual_seed(0)
    args, named = [_input(shape) for shape in row.shapes], {n: _input(shape) for n, shape in row.named.items()}
    with torch.no_grad():
        return _tensors(net.eval()(*args, **named))


def _input(shape: Any) -> Any:
    if isinstance(shape, int):
        return torch.full((shape,), 7)
    if isinstance(shape, list):
        return [_input(each) for each in shape]
    return torch.randint(0, 8, shape[1:]) if shape[0] is int else torch.rand(shape)


def _tensors(value: Any) -> list[torch.Tensor]:
    if torch.is_tensor(value):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in items for tensor in _tensors(item)]


VIT = {"hidden_size": 24, "mlp_dim": 32, "num_heads": 2}
KL = {"channels": (8, 8), "num_res_blocks": 1, "attention_levels": (False, True), "norm_num_groups": 4}
UNET = {"channels": (8, 8), "attention_levels": (False, True), "num_res_blocks": 1, "norm_num_groups": 4}
CONTEXT = {"with_conditioning": True, "cross_attention_dim": 6, "num_head_channels": 4}
VQ = {
    "downsample_parameters": ((2, 4, 1, 1), (2, 4, 1, 1)),
    "upsample_parameters": ((2, 4, 1, 1, 0), (2, 4, 1, 1, 0)),
    "channels": (8, 8),
    "num_res_channels": 8,
    "num_res_layers": 1,
    "num_embeddings": 8,
    "embedding_dim": 4,
}

NETWORKS: dict[str, Row] = {
    "ViT": Row(lambda: nets.ViT(1, (32, 32), 16, num_layers=1, spatial_dims=2, classification=True, **VIT)),
    "ViT, sincos": Row(lambda: nets.ViT(1, 32, 16, num_layers=1, spatial_dims=2, pos_embed_type="sincos", **VIT)),
    "ViTAutoEnc": Row(lambda: nets.ViTAutoEnc(1, 32, 16, num_layers=1, spatial_dims=2, **VIT)),
    "UNETR": Row(lambda: nets.UNETR(1, 2, 32, 4, hidden_size=24, mlp_dim=32, num_heads=2, spatial_dims=2)),
    "MaskedAutoEncoderViT": Row(
        lambda: nets.MaskedAutoEncoderViT(
            1,
            32,
            16,
            num_layers=1,
            spatial_dims=2,
            decoder_hidden_size=24,
            decoder_mlp_dim=32,
            decoder_num_layers=1,
            decoder_num_heads=2,
            **VIT,
        )
    ),
    "DecoderOnlyTransformer": Row(
        lambda: nets.DecoderOnlyTransformer(8, 16, 24, 1, 2, with_cross_attention=True),
        ((int, 2, 5),),
        {"context": (2, 3, 24)},
    ),
    "AutoencoderKL": Row(lambda: nets.AutoencoderKL(2, latent_channels=2, **KL)),
    "SPADEAutoencoderKL": Row(
        lambda: nets.SPADEAutoencoderKL(2, 3, latent_channels=2, **KL), ((1, 1, 32, 32), (1, 3, 32, 32))
    ),
    "VQVAE": Row(lambda: nets.VQVAE(2, 1, 1, **VQ)),
    "DiffusionModelUNet": Row(
        lambda: nets.DiffusionModelUNet(2, 1, 1, **UNET, **CONTEXT),
        ((2, 1, 16, 16), 2),
        {"context": (2, 3, 6)},
    ),
    "DiffusionModelEncoder": Row(
        lambda: nets.DiffusionModelEncoder(2, 1, 3, **UNET, num_head_channels=4), ((2, 1, 64, 64), 2)
    ),
    "ControlNet": Row(
        lambda: nets.ControlNet(
            2,
            1,
            conditioning_embedding_num_channels=(8,),
            num_head_channels=4,
            conditioning_embedding_in_channels=1,
            **UNET,
        ),
        ((2, 1, 16, 16), 2, (2, 1, 16, 16)),
    ),
    "SPADEDiffusionModelUNet": Row(
        lambda: nets.SPADEDiffusionModelUNet(2, 1, 1, 3, num_head_channels=4, **UNET),
        ((2, 1, 16, 16), 2),
        {"seg": (2, 3, 16, 16)},
    ),
    "AutoencoderKlMaisi": Row(
        lambda: AutoencoderKlMaisi(
            3, 1, 1, (1, 1), (8, 8), (False, True), norm_num_groups=4, latent_channels=2, num_splits=2
        ),
        ((1, 1, 16, 16, 16),),
    ),
    "DiffusionModelUNetMaisi": Row(
        lambda: DiffusionModelUNetMaisi(
            3,
            1,
            1,
            num_channels=(8, 8),
            attention_levels=(False, True),
            num_res_blocks=1,
            norm_num_groups=4,
            num_head_channels=4,
            include_spacing_input=True,
        ),
        ((2, 1, 8, 8, 8), 2),
        {"spacing_tensor": (2, 3)},
    ),
    "ControlNetMaisi": Row(
        lambda: ControlNetMaisi(
            3,
            1,
            num_channels=(8, 8),
            attention_levels=(False, True),
            num_res_blocks=1,
            norm_num_groups=4,
            num_head_channels=4,
            conditioning_embedding_num_channels=(8,),
            conditioning_embedding_in_channels=1,
        ),
        ((2, 1, 8, 8, 8), 2, (2, 1, 8, 8, 8)),
    ),
    "UNet": Row(lambda: nets.UNet(2, 1, 2, (4, 8), [2], num_res_units=1, act=("LeakyReLU", {"negative_slope": 0.3}))),
    "SwinUNETR": Row(
        lambda: nets.SwinUNETR(1, 2, feature_size=12, spatial_dims=2, use_v2=True, depths=(1, 1, 1, 1)),
        ((1, 1, 64, 64),),
    ),
    "AHNet": Row(lambda: nets.AHNet(spatial_dims=2, upsample_mode="bilinear"), ((1, 1, 128, 128),)),
    "AttentionUnet": Row(lambda: nets.AttentionUnet(2, 1, 2, (4, 8), (2,))),
    "AutoEncoder": Row(lambda: nets.AutoEncoder(2, 1, 1, (4, 8), (2, 2), inter_channels=(4,))),
    "VarAutoEncoder": Row(lambda: nets.VarAutoEncoder(2, (1, 32, 32), 1, 4, (4, 8), (2, 2), use_sigmoid=False)),
    "BasicUNet": Row(lambda: nets.BasicUNet(2, features=(4, 4, 8, 8, 8, 4))),
    "BasicUNetPlusPlus": Row(lambda: nets.BasicUNetPlusPlus(2, features=(4, 4, 8, 8, 8, 4))),
    "Classifier": Row(lambda: nets.Classifier((1, 32, 32), 3, (4, 8), (2, 2), last_act="SOFTMAX")),
    "Critic": Row(lambda: nets.Critic((1, 32, 32), (4, 8), (2, 2))),
    "Discriminator": Row(lambda: nets.Discriminator((1, 32, 32), (4, 8), (2, 2))),
    "Regressor": Row(lambda: nets.Regressor((1, 32, 32), (2, 2), (4, 8), (2, 2))),
    "Generator": Row(lambda: nets.Generator(6, (4, 8, 8), (4, 1), (2, 2)), ((1, 6),)),
    "DenseNet": Row(lambda: nets.DenseNet(2, 1, 2, init_features=4, growth_rate=2, block_config=(1, 1))),
    "DenseNet121": Row(lambda: nets.DenseNet121(2, 1, 2)),
    "DynUNet": Row(
        lambda: nets.DynUNet(2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], [4, 8, 8], deep_supervision=True, res_block=True)
    ),
    "EfficientNetBN": Row(lambda: nets.EfficientNetBN("efficientnet-b0", pretrained=False), ((1, 3, 32, 32),)),
    "FlexibleUNet": Row(
        lambda: nets.FlexibleUNet(1, 2, "efficientnet-b0", decoder_channels=(16, 8, 8, 4, 4), spatial_dims=2)
    ),
    "FullyConnectedNet": Row(lambda: nets.FullyConnectedNet(6, 2, (4,), 0.1), ((2, 6),)),
    "VarFullyConnectedNet": Row(lambda: nets.VarFullyConnectedNet(6, 6, 3, (4,), (4,)), ((2, 6),)),
    "HighResNet": Row(
        lambda: nets.HighResNet(
            2,
            layer_params=(
                {"name": "conv_0", "n_features": 4, "kernel_size": 3},
                {"name": "res_1", "n_features": 4, "kernels": (3, 3), "repeat": 1},
                {"name": "conv_1", "n_features": 8, "kernel_size": 1},
                {"name": "conv_2", "kernel_size": 1},
            ),
        )
    ),
    "HoVerNet": Row(lambda: nets.HoVerNet("fast", out_classes=3), ((1, 3, 256, 256),)),
    "MedNeXt": Row(
        lambda: nets.MedNeXt(
            2,
            4,
            1,
            2,
            2,
            blocks_down=(1, 1, 1, 1),
            blocks_bottleneck=1,
            blocks_up=(1, 1, 1, 1),
            decoder_expansion_ratio=2,
        )
    ),
    "MultiScalePatchDiscriminator": Row(
        lambda: nets.MultiScalePatchDiscriminator(2, 1, spatial_dims=2, channels=4, in_channels=1)
    ),
    "PatchDiscriminator": Row(lambda: nets.PatchDiscriminator(2, 4, 1, num_layers_d=1)),
    "NetAdapter": Row(
        lambda: nets.NetAdapter(nets.resnet10(spatial_dims=2, n_input_channels=1), 3, dim=2, pool=None, use_conv=True)
    ),
    "RegUNet": Row(lambda: nets.RegUNet(2, 1, 4, 2)),
    "GlobalNet": Row(lambda: nets.GlobalNet((32, 32), 2, 1, 4, 2)),
    "LocalNet": Row(lambda: nets.LocalNet(2, 1, 4, (0, 1))),
    "ResNet, by its function": Row(
        lambda: nets.resnet10(spatial_dims=2, n_input_channels=1, num_classes=3, act=("relu", {"inplace": True}))
    ),
    "SegResNet": Row(lambda: nets.SegResNet(2, 8, blocks_down=(1, 1), blocks_up=(1,))),
    "SegResNetVAE": Row(
        lambda: nets.SegResNetVAE((32, 32), spatial_dims=2, init_filters=8, blocks_down=(1, 1), blocks_up=(1,))
    ),
    "SegResNetDS": Row(lambda: nets.SegResNetDS(2, 8, blocks_down=(1, 1), resolution=(1.0, 1.5))),
    "SENet": Row(lambda: nets.SEResNet50(spatial_dims=2, in_channels=1, num_classes=2)),
    "SPADENet": Row(
        lambda: nets.SPADENet(2, 1, 1, 3, [16, 16], [4, 8], z_dim=4, is_vae=False), ((1, 3, 16, 16), (1, 1, 16, 16))
    ),
    "VISTA3D": Row(
        lambda: nets.vista3d132(encoder_embed_dim=8, in_channels=1),
        ((1, 1, 32, 32, 32),),
        {"class_vector": (int, 1, 1)},
    ),
    "VNet": Row(lambda: nets.VNet(2, dropout_dim=2)),
    "VoxelMorphUNet": Row(lambda: nets.VoxelMorphUNet(2, 2, 4, (4, 4), (4, 4)), ((1, 2, 32, 32),)),
    "Quicknat": Row(lambda: nets.Quicknat(num_classes=3, num_filters=8)),
    "DiNTS": Row(
        lambda: nets.DiNTS(
            nets.TopologyInstance(
                channel_mul=0.1, num_blocks=4, num_depths=2, use_downsample=True, spatial_dims=2, device="cpu"
            ),
            1,
            2,
            spatial_dims=2,
        ),
        ((1, 1, 64, 64),),
    ),
    "NaViT": Row(lambda: nets.NaViT(32, 16, 3, 24, 32, 1, 2, spatial_dims=2, in_channels=1), ([[(1, 32, 32)]],)),
}
