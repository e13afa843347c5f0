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

"""Where a network's parameters lie that depend on sizes: positions, patches and the other layers with channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn

from monai.networks.blocks.patchembedding import PatchEmbeddingBlock
from monai.networks.nets.masked_autoencoder_vit import MaskedAutoEncoderViT

__all__ = ["Place", "places"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LINEAR = "patch_embeddings.1.weight"


@dataclass(frozen=True)
class Place:
    """
    What a parameter is.

    Args:
        role: "position", "patch", "convolution", "transposed", "linear", or "" for any other.
        module: the module that holds it.
        name: its name there.
        own: the parameter.
        block: the patch embedding that it belongs to, for positions and patches.
        prefix: of that block's keys.
        kind: type of position embeddings.
        temperature: of sinusoidal ones.
    """

    role: str
    module: nn.Module
    name: str
    own: torch.Tensor
    block: Any = None
    prefix: str = ""
    kind: str = ""
    temperature: float = 10000.0

    @property
    def grid(self) -> list[int]:
        """Number of patches along each axis, of positions and patches."""
        return list(self.block.grid_size)

    @property
    def patch_size(self) -> list[int]:
        """Size of a patch along each axis, of positions and patches."""
        return list(self.block.patch_size)

    @property
    def channel_axis(self) -> int:
        """The axis of the channels that go out."""
        return 1 if self.role == "transposed" and self.name == "weight" else 0

    @property
    def patch_key(self) -> str:
        """Key of the weight that projects the patches of :attr:`block`."""
        return self.prefix + ("patch_embeddings.weight" if self.block.proj_type == "conv" else LINEAR)


def places(net: nn.Module) -> dict[str, Place]:
    """What each parameter of a network is, by its key, in the order of the state dict."""
    state = dict(net.state_dict(keep_vars=True))
    found = {}
    for path, module in net.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for name, _ in module.named_parameters(recurse=False):
            if prefix + name in state:
                found[prefix + name] = _place(module, name, state[prefix + name])
        if isinstance(module, PatchEmbeddingBlock):
            found.update(_of_patches(module, prefix, state))
        if isinstance(module, MaskedAutoEncoderViT):
            key = prefix + "decoder_pos_embedding"
            kind, block = module.decoder_pos_embed_type, module.patch_embedding
            path = f"{prefix}patch_embedding."
            found[key] = Place("position", module, "decoder_pos_embedding", state[key], block, path, kind)
    patches = {place.patch_key: place for place in found.values() if place.role == "position"}
    for key, place in patches.items():
        if key in found:
            old = found[key]
            found[key] = Place("patch", old.module, old.name, old.own, place.block, place.prefix)
    return {key: found[key] for key in state if key in found}


def _place(module: nn.Module, name: str, own: torch.Tensor) -> Place:
    role = ""
    if isinstance(module, CONVOLUTIONS):
        role = "convolution"
    elif isinstance(module, TRANSPOSED):
        role = "transposed"
    elif isinstance(module, nn.Linear):
        role = "linear"
    return Place(role if name in ("weight", "bias") else "", module, name, own)


def _of_patches(block: PatchEmbeddingBlock, prefix: str, state: dict[str, Any]) -> dict[str, Place]:
    key = prefix + "position_embeddings"
    if key not in state:
        return {}
    details = {"kind": block.pos_embed_type, "temperature": block.temperature}
    return {key: Place("position", block, "position_embeddings", state[key], block, prefix, **details)}  # type: ignore
