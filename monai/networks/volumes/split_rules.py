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

"""
Which modules can work on slabs, and what they become: whatever is not known here, or says it of itself, is refused.

A layer says how far it looks in ``spatial_reach(axis)``. A module of several layers, which does nothing between them
but what every position or token needs of itself alone, says so by ``works_on_slabs = True`` in its class. A subclass
that computes in another way has to say it anew.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch.nn as nn

from monai.networks.blocks.acti_norm import ADN
from monai.networks.blocks.activation import GEGLU, MemoryEfficientSwish, Mish, Swish
from monai.networks.blocks.attention.block import AttentionBlock, runs_own_forward
from monai.networks.blocks.attention.relative_positions import DecomposedRelativePosEmbedding
from monai.networks.blocks.autoencoder import GaussianLatent
from monai.networks.blocks.convolutions import Convolution
from monai.networks.blocks.crossattention import CrossAttentionBlock
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetOutBlock, UnetResBlock
from monai.networks.blocks.mlp import MLPBlock
from monai.networks.blocks.patchembedding import PatchEmbeddingBlock
from monai.networks.blocks.reach import (
    BATCH_NORMS,
    CONVOLUTIONS,
    INSTANCE_NORMS,
    Reach,
    computes_as,
    computes_as_declared,
    reach_of,
    replaced_method,
)
from monai.networks.blocks.selfattention import SABlock
from monai.networks.blocks.spade_norm import SPADE
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
from monai.networks.blocks.upsample import UpSample
from monai.networks.layers.vector_quantizer import EMAQuantizer, VectorQuantizer
from monai.networks.nets.unetr import UNETR

__all__ = [
    "SPATIAL",
    "SPECIAL",
    "declares_slabs",
    "has_to_be_split",
    "holds_weights_alone",
    "is_local",
    "is_part",
    "is_wrapper",
    "refusal_of_attention",
    "refusal_of_norm",
    "remedy",
]

ONLY_CHILDREN = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# the release's own, which cannot say it themselves
PARTS = (
    ADN,
    Convolution,
    MLPBlock,
    SPADE,
    UnetBasicBlock,
    UnetOutBlock,
    UnetResBlock,
    UnetrBasicBlock,
    UnetrPrUpBlock,
    UnetrUpBlock,
    UpSample,
)
OF_IMAGES = (ADN, Convolution, SPADE, UnetBasicBlock, UnetOutBlock, UnetResBlock, UpSample)
OF_A_POSITION = (Swish, MemoryEfficientSwish, Mish)
OF_A_TOKEN = (nn.Linear, nn.LayerNorm, nn.Embedding, GEGLU)
CHANNEL_DROPOUTS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout)
OF_THE_VOLUME = (nn.GroupNorm, *BATCH_NORMS, *INSTANCE_NORMS, AttentionBlock, PatchEmbeddingBlock)
# what calls others, or keeps more than its layers do, and becomes another module where the volume is cut
SPECIAL: tuple[type[nn.Module], ...] = (EMAQuantizer, GaussianLatent, SPADE, UNETR, VectorQuantizer)
WRAPPERS = (  # where classes come from that call the module in them, and add nothing that looks beyond a position
    "peft.tuners.lora",
    "torch._dynamo.eval_frame",
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper",
    "torch.distributed.fsdp",
    "torch.nn.parallel.distributed",
)
SPATIAL = (*CONVOLUTIONS, nn.GroupNorm, *BATCH_NORMS, *INSTANCE_NORMS)


def declares_slabs(module: nn.Module) -> bool:
    """Whether a class says that it works on slabs, and no subclass and nobody else has changed what it says it of."""
    for cls in type(module).__mro__:
        if "works_on_slabs" in vars(cls):
            says = bool(vars(cls)["works_on_slabs"])
            return says and _changes_nothing(type(module), cls) and _replaced(module) is None
    return False


def _replaced(module: nn.Module) -> str | None:
    """A method that was put in the place of the one that its class was written with."""
    if not hasattr(module, "works_on_slabs"):
        return replaced_method(module)
    bases = [base for base in type(module).__mro__ if issubclass(base, nn.Module) and base is not nn.Module]
    functions = (name for base in bases for name, value in vars(base).items() if isinstance(value, FunctionType))
    return replaced_method(module, ("forward", *functions))


def _changes_nothing(cls: type, base: type) -> bool:
    """Whether the classes between a class and one of its bases replace none of that base's methods."""
    between = cls.__mro__[: cls.__mro__.index(base)]
    names = {name for each in between for name, value in vars(each).items() if callable(value)}
    return not any(not name.startswith("__") and hasattr(base, name) for name in names)


def is_part(module: nn.Module) -> bool:
    """Whether a module works on slabs if its children do."""
    if computes_as(module, ONLY_CHILDREN) or computes_as(module, PARTS):
        return True
    return declares_slabs(module)


def is_local(module: nn.Module, parent: nn.Module | None) -> bool:
    """Whether a module computes every position, or every token, by itself."""
    if computes_as(module, (*OF_A_POSITION, nn.SyncBatchNorm)):
        return True
    if isinstance(module, CHANNEL_DROPOUTS) and module.p == 0.0:
        return True
    return computes_as(module, OF_A_TOKEN) and not _works_on_images(parent)


def _works_on_images(parent: nn.Module | None) -> bool:
    """Whether the children of a module get images, whose last axis is not that of a token's channels."""
    if isinstance(parent, OF_IMAGES):
        return True
    return isinstance(parent, nn.Sequential) and any(isinstance(child, SPATIAL) for child in parent.modules())


def is_wrapper(module: nn.Module) -> bool:
    """Whether a module calls the one in it: checkpointing, sharding, compilation, or an adapter of low rank."""
    return f"{type(module).__module__}.".startswith(tuple(f"{each}." for each in WRAPPERS))


def holds_weights_alone(module: nn.Module) -> bool:
    """Whether a module is a list or a dictionary of parameters, and computes nothing."""
    return isinstance(module, (nn.ParameterDict, nn.ParameterList))


def has_to_be_split(module: nn.Module, axis: int) -> bool:
    """Whether a module works on slabs only once split_volume() has made it another one."""
    if isinstance(module, (*OF_THE_VOLUME, *SPECIAL)):
        return True
    reach = reach_of(module, axis)
    return reach is not None and (changes_size(reach) or not reach.is_local)


def changes_size(reach: Reach) -> bool:
    """Whether a layer's slabs have other lengths than its input's."""
    return (reach.down, reach.up, reach.offset) != (1, 1, 0)


def refusal_of_norm(module: Any) -> str | None:
    """Why a norm cannot work on slabs, with the remedy; None if it can."""
    if isinstance(module, BATCH_NORMS) and (module.training or not module.track_running_stats):
        return (
            "would take the statistics of one rank's slab: call nn.SyncBatchNorm.convert_sync_batchnorm(net) first, or "
            "net.eval()"
        )
    if isinstance(module, INSTANCE_NORMS) and module.track_running_stats:
        return "keeps running statistics, which no rank could follow: build it with track_running_stats=False"
    return None


def refusal_of_attention(block: Any) -> str | None:
    """Why a block of attention cannot work on slabs, with the remedy; None if it can."""
    kind: Any = type(block)
    projects = kind.project in (SABlock.project, CrossAttentionBlock.project)
    if not runs_own_forward(block) or not projects or kind.attend is not AttentionBlock.attend:
        return "attends in a way of its own: use SABlock or CrossAttentionBlock as they are"
    if block.save_attn:
        return "would keep the rows of one rank of the attention matrix: build it with save_attn=False"
    positions = block.rel_positional_embedding
    if positions is not None and type(positions) is not DecomposedRelativePosEmbedding:
        return f"has positions of the class {type(positions).__name__}, which know no slabs: use 'decomposed'"
    return None


def remedy(module: nn.Module, axis: int) -> str:
    """What to do about a module that is not known to work on slabs."""
    replaced = _replaced(module)
    if replaced is not None:
        return (
            f"has another method {replaced} than its class was written with, which is not known to work on slabs: put "
            "that one back, or declare what the new one does in a subclass"
        )
    if isinstance(module, CONVOLUTIONS) and module.padding_mode != "zeros":
        return f"pads by padding_mode='{module.padding_mode}', which needs the ends of the volume: use 'zeros'"
    if isinstance(module, CHANNEL_DROPOUTS):
        return "drops whole channels, other ones on every rank: use nn.Dropout, or build it with p=0"
    if isinstance(module, OF_A_TOKEN):
        return (
            "works along the last axis of an image, which may be the one that is cut: use a convolution or group norm"
        )
    if computes_as_declared(module, "spatial_reach") and reach_of(module, axis) is None:
        return "says in spatial_reach that it does not know how far it looks"
    return (
        "is not known to work on a part of a volume: a layer of your own declares spatial_reach(axis), which returns a "
        "Reach, and a module that only calls layers works_on_slabs = True"
    )
