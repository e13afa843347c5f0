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


"""All networks. The modules stand in alphabetical order: some take the networks of earlier ones from here."""

# ruff: noqa: F401

from __future__ import annotations

from monai.networks.nets.ahnet import AHNet, AHnet, Ahnet
from monai.networks.nets.attentionunet import AttentionUnet
from monai.networks.nets.autoencoder import AutoEncoder
from monai.networks.nets.autoencoderkl import AutoencoderKL
from monai.networks.nets.basic_unet import BasicUNet, BasicUnet, Basicunet, basicunet
from monai.networks.nets.basic_unetplusplus import (
    BasicUNetPlusPlus,
    BasicUnetPlusPlus,
    BasicunetPlusPlus,
    basicunetplusplus,
)
from monai.networks.nets.classifier import Classifier, Critic, Discriminator
from monai.networks.nets.controlnet import ControlNet
from monai.networks.nets.daf3d import DAF3D
from monai.networks.nets.densenet import (
    DenseNet,
    Densenet,
    DenseNet121,
    Densenet121,
    DenseNet169,
    Densenet169,
    DenseNet201,
    Densenet201,
    DenseNet264,
    Densenet264,
    densenet121,
    densenet169,
    densenet201,
    densenet264,
)
from monai.networks.nets.diffusion_model_unet import DiffusionModelEncoder, DiffusionModelUNet
from monai.networks.nets.dints import DiNTS, TopologyConstruction, TopologyInstance, TopologySearch
from monai.networks.nets.dynunet import DynUNet, DynUnet, Dynunet
from monai.networks.nets.efficientnet import (
    BlockArgs,
    EfficientNet,
    EfficientNetBN,
    EfficientNetBNFeatures,
    EfficientNetEncoder,
    drop_connect,
    get_efficientnet_image_size,
)
from monai.networks.nets.flexible_unet import FLEXUNET_BACKBONE, FlexibleUNet, FlexUNet, FlexUNetEncoderRegister
from monai.networks.nets.fullyconnectednet import FullyConnectedNet, VarFullyConnectedNet
from monai.networks.nets.generator import Generator
from monai.networks.nets.highresnet import HighResBlock, HighResNet
from monai.networks.nets.hovernet import HoVerNet, HoVernet, HoverNet, Hovernet
from monai.networks.nets.hyena_nd_unetr import HyenaNDUNETR
from monai.networks.nets.masked_autoencoder_vit import MaskedAutoEncoderViT
from monai.networks.nets.mednext import (
    MedNeXt,
    MedNext,
    MedNeXtB,
    MedNextB,
    MedNextBase,
    MedNeXtL,
    MedNextL,
    MedNeXtLarge,
    MedNextLarge,
    MedNeXtM,
    MedNextM,
    MedNeXtMedium,
    MedNextMedium,
    MedNeXtS,
    MedNextS,
    MedNeXtSmall,
    MedNextSmall,
)
from monai.networks.nets.milmodel import MILModel
from monai.networks.nets.navit import NaViT
from monai.networks.nets.netadapter import NetAdapter
from monai.networks.nets.patchgan_discriminator import MultiScalePatchDiscriminator, PatchDiscriminator
from monai.networks.nets.quicknat import Quicknat
from monai.networks.nets.regressor import Regressor
from monai.networks.nets.regunet import GlobalNet, LocalNet, RegUNet
from monai.networks.nets.resnet import (
    ResNet,
    ResNetBlock,
    ResNetBottleneck,
    ResNetEncoder,
    ResNetFeatures,
    get_medicalnet_pretrained_resnet_args,
    get_pretrained_resnet_medicalnet,
    resnet10,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    resnet200,
)
from monai.networks.nets.segresnet import SegResNet, SegResNetVAE
from monai.networks.nets.segresnet_ds import SegResNetDS, SegResNetDS2
from monai.networks.nets.senet import (
    SENet,
    SEnet,
    Senet,
    SENet154,
    SEnet154,
    Senet154,
    SEResNet50,
    SEresnet50,
    Seresnet50,
    SEResNet101,
    SEresnet101,
    Seresnet101,
    SEResNet152,
    SEresnet152,
    Seresnet152,
    SEResNeXt50,
    SEResNext50,
    SEresnext50,
    Seresnext50,
    SEResNeXt101,
    SEResNext101,
    SEresnext101,
    Seresnext101,
    senet154,
    seresnet50,
    seresnet101,
    seresnet152,
    seresnext50,
    seresnext101,
)
from monai.networks.nets.spade_autoencoderkl import SPADEAutoencoderKL
from monai.networks.nets.spade_diffusion_model_unet import SPADEDiffusionModelUNet
from monai.networks.nets.spade_network import SPADENet
from monai.networks.nets.swin_unetr import PatchMerging, PatchMergingV2, SwinUNETR
from monai.networks.nets.torchvision_fc import TorchVisionFCModel
from monai.networks.nets.transchex import (
    BertAttention,
    BertMixedLayer,
    BertOutput,
    BertPreTrainedModel,
    MultiModal,
    Pooler,
    Transchex,
)
from monai.networks.nets.transformer import DecoderOnlyTransformer
from monai.networks.nets.unet import UNet, Unet
from monai.networks.nets.unetr import UNETR
from monai.networks.nets.varautoencoder import VarAutoEncoder
from monai.networks.nets.vista3d import VISTA3D, vista3d132
from monai.networks.nets.vit import ViT
from monai.networks.nets.vitautoenc import ViTAutoEnc
from monai.networks.nets.vnet import VNet
from monai.networks.nets.voxelmorph import VoxelMorph, VoxelMorphUNet
from monai.networks.nets.vqvae import VQVAE
