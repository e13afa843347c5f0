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

"""Lets a network work on slabs of a volume, each on a device of its own: what is exchanged, and where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn as nn
from torch.distributed.device_mesh import DeviceMesh

from monai.networks.blocks.attention.block import AttentionBlock
from monai.networks.blocks.attention.token_grid import TokenGrid
from monai.networks.blocks.autoencoder import GaussianLatent
from monai.networks.blocks.patchembedding import PatchEmbeddingBlock
from monai.networks.blocks.reach import (
    BATCH_NORMS,
    CONVOLUTIONS,
    INSTANCE_NORMS,
    TRANSPOSED_CONVOLUTIONS,
    Reach,
    computes_as,
    computes_as_declared,
    reach_of,
)
from monai.networks.blocks.spade_norm import SPADE
from monai.networks.layers.vector_quantizer import EMAQuantizer, VectorQuantizer
from monai.networks.nets.unetr import UNETR
from monai.networks.state_dict.torch_private import has_hooks_that_see_values
from monai.networks.volumes.split_changes import Guard, remember
from monai.networks.volumes.split_layers import (
    Split,
    SplitCodebook,
    SplitFrozenNorm,
    SplitLatent,
    SplitLayer,
    SplitPerplexity,
    SplitSpade,
    split_module,
)
from monai.networks.volumes.split_norms import SplitDeclaredNorm, SplitGroupNorm, SplitInstanceNorm
from monai.networks.volumes.split_rules import (
    SPECIAL,
    changes_size,
    is_local,
    is_part,
    refusal_of_attention,
    refusal_of_norm,
    remedy,
)
from monai.networks.volumes.split_tokens import (
    SplitAttention,
    SplitPatchEmbedding,
    SplitTokenHolder,
    SplitTokensToImage,
    TokenPlace,
)
from monai.networks.volumes.volume_split import NO_GRAPH, VolumeSplit

__all__ = ["split_volume"]

SHOWN = 5  # how many refusals an error tells
KINDS: Mapping[type[nn.Module], type[Split]] = {
    GaussianLatent: SplitLatent,
    SPADE: SplitSpade,
    EMAQuantizer: SplitCodebook,
    VectorQuantizer: SplitPerplexity,
    UNETR: SplitTokensToImage,
}
"""What the modules of ``SPECIAL`` become."""


def split_volume(net: nn.Module, mesh: DeviceMesh, axis: int = 0) -> VolumeSplit:
    """
    Let a network work on slabs of a volume, one on each rank of a mesh, as it does on the whole volume in one process.

    The outputs and all gradients are those of one process, to rounding: every layer gets the slices of other slabs that
    it reaches, norms take the statistics of all slabs, and tokens attend to those of all ranks. Gradients are those of
    the sum of all ranks' losses. Parameters, their names and the state dict stay as they are. Call it before wrapping
    the network in DDP, FSDP or ``torch.compile``.

    Args:
        net: the network, changed in place. All ranks have the same weights.
        mesh: the ranks that share a volume: a mesh of one axis, such as ``mesh["space"]``.
        axis: the spatial axis along which volumes are cut, from 0. Defaults to 0.

    Returns:
        what cuts volumes and puts them together

    Raises:
        ValueError: if there is no such axis, the mesh has several, or a module cannot work on slabs; then nothing is
            changed.

    Example::

        mesh = init_device_mesh("cuda", (2, 4), mesh_dim_names=("data", "space"))  # torchrun
        volume = split_volume(net, mesh["space"])
        out = volume.gather(net(volume.scatter(x), timesteps))  # or keep the slab
    """
    if isinstance(net, torch.jit.ScriptModule):
        raise ValueError(NO_GRAPH)
    plan = _Plan(net, axis)
    plan.check()
    split = VolumeSplit(mesh, axis, plan.spatial_dims, plan.stride)
    if split.size > 1:
        plan.carry_out(split)
        _guard(net, split)
    return split


def _guard(net: nn.Module, split: VolumeSplit) -> None:
    """Let the ranks agree when the network is called, or one of its halves: not before every layer of them."""
    guard = Guard(net, split)
    split.check = guard.look  # of a half that was replaced as a whole, no hook tells
    remember(net)
    for module in (net, *(child for child in net.children() if not isinstance(child, Split))):
        guard.register(module)


@dataclass
class _Change:
    """What a module becomes, and what else it has to know."""

    module: nn.Module
    name: str
    kind: type[Split]
    attributes: dict[str, Any] = field(default_factory=dict)


class _Plan:
    """
    What a split network's modules become, and which of them cannot be split. Changes nothing until it is carried out.

    Args:
        net: the network.
        axis: the spatial axis along which volumes are cut.

    Raises:
        ValueError: if there is no such axis.
    """

    def __init__(self, net: nn.Module, axis: int) -> None:
        self.net, self.axis = net, axis
        self.spatial_dims = _spatial_dims(net)
        if not 0 <= axis < self.spatial_dims:
            raise ValueError(f"axis={axis} should be one of the {self.spatial_dims} spatial axes, from 0.")
        self.stride = 1
        self.changes: list[_Change] = []
        self.refusals: list[str] = []
        self._seen: set[int] = set()
        self._beside = _beside_the_path(net)
        self._visit(net, "", None)
        self._place_tokens()

    def check(self) -> None:
        """
        Raises:
            ValueError: if a module cannot work on slabs.
        """
        if not self.refusals:
            return
        more = len(self.refusals) - SHOWN
        shown = self.refusals[:SHOWN] + ([f"and {more} more"] if more > 0 else [])
        raise ValueError(f"{type(self.net).__name__} cannot be split along axis {self.axis}:\n" + "\n".join(shown))

    def carry_out(self, split: VolumeSplit) -> None:
        """Change the modules."""
        places: dict[int, TokenPlace] = {}
        for change in self.changes:
            attributes = dict(change.attributes)
            source = attributes.pop("tokens_of", None)
            if source is not None:
                place = places.setdefault(id(source), TokenPlace(split, attributes.pop("class_tokens")))
                attributes["token_place"] = place
            split_module(change.module, change.kind, split, change.name, **attributes)

    def _refuse(self, module: nn.Module, name: str, why: str) -> None:
        self.refusals.append(f"{name or 'the network itself'} ({type(module).__name__}) {why}.")

    def _visit(self, module: nn.Module, name: str, parent: nn.Module | None) -> None:
        """Plan for a module and those inside of it."""
        if id(module) in self._seen:
            return
        self._seen.add(id(module))
        if isinstance(module, Split):
            self._refuse(module, name, "is split already: split a copy that was made before")
        elif has_hooks_that_see_values(module):
            self._refuse(module, name, "has hooks, which would see slabs of the volume: register them after the split")
        elif "forward" in vars(module):
            self._refuse(module, name, "has another forward than its class, which is not known to work on slabs")
        elif not self._visit_norm(module, name) and not self._visit_tokens(module, name):
            self._visit_layer(module, name, parent)

    def _visit_norm(self, module: nn.Module, name: str) -> bool:
        """Plan for a norm over the volume; False if it is none."""
        kind: type[Split]
        if isinstance(module, nn.GroupNorm) and computes_as_declared(module, "apply_statistics"):
            kind = SplitDeclaredNorm
        elif computes_as(module, (nn.GroupNorm,)):
            kind = SplitGroupNorm
        elif computes_as(module, INSTANCE_NORMS):
            kind = SplitInstanceNorm
        elif computes_as(module, BATCH_NORMS) and not isinstance(module, nn.SyncBatchNorm):
            kind = SplitFrozenNorm
        else:
            return False
        why = refusal_of_norm(module)
        if why is None:
            self.changes.append(_Change(module, name, kind))
        else:
            self._refuse(module, name, why)
        return True

    def _visit_tokens(self, module: nn.Module, name: str) -> bool:
        """Plan for what makes tokens or lets them attend; False if it does neither. Places follow at the end."""
        if isinstance(module, AttentionBlock):
            why = refusal_of_attention(module)
            if why is not None:
                self._refuse(module, name, why)
            else:
                self.changes.append(_Change(module, name, SplitAttention))
        elif computes_as(module, (PatchEmbeddingBlock,)):
            embedding: Any = module
            reach = Reach(down=embedding.patch_size[self.axis])
            self._add_stride(module, reach)
            self.changes.append(_Change(module, name, SplitPatchEmbedding, {"split_reach": reach}))
        else:
            return False
        return True

    def _visit_layer(self, module: nn.Module, name: str, parent: nn.Module | None) -> None:
        reach = reach_of(module, self.axis)
        if reach is not None:
            if changes_size(reach) or not reach.is_local:
                self._add_stride(module, reach)
                self.changes.append(_Change(module, name, SplitLayer, {"split_reach": reach}))
            return
        if is_local(module, parent):
            return
        if not is_part(module):
            self._refuse(module, name, remedy(module, self.axis))
            return
        for base in SPECIAL:
            if isinstance(module, base):
                self.changes.append(_Change(module, name, KINDS[base]))
        for child_name, child in module.named_children():
            self._visit(child, f"{name}.{child_name}" if name else child_name, module)

    def _add_stride(self, module: nn.Module, reach: Reach) -> None:
        if id(module) not in self._beside:
            self.stride *= reach.down

    def _place_tokens(self) -> None:
        """Let blocks of attention know the module that makes their tokens."""
        places = self._token_sources()
        for change in list(self.changes):
            if change.kind is not SplitAttention:
                continue
            found = places.get(id(change.module))
            if found is None:
                why = "attends to tokens of which no module says in token_grids() where they lie"
                self._refuse(change.module, change.name, why)
                continue
            source, grid = found
            change.attributes.update(tokens_of=source, class_tokens=grid.class_tokens)

    def _token_sources(self) -> dict[int, tuple[nn.Module, TokenGrid]]:
        """For each block of attention the module that makes its tokens, with what is said of them."""
        sources: dict[int, tuple[nn.Module, TokenGrid]] = {}
        for name, module in self.net.named_modules():
            if not hasattr(module, "token_grids"):
                continue
            for path, grid in module.token_grids().items():
                source = self._source_of(module, name, grid)
                if source is None:
                    continue
                for block in (module.get_submodule(path) if path else module).modules():
                    if isinstance(block, AttentionBlock):
                        sources[id(block)] = (source, grid)
        return sources

    def _source_of(self, module: nn.Module, name: str, grid: TokenGrid) -> nn.Module | None:
        """The module that makes the tokens of a grid, which is told to say where they lie."""
        if grid.holder is not None:
            change = _Change(grid.holder, name, SplitTokenHolder)
            self.changes.append(change)
            change.attributes.update(tokens_of=grid.holder, class_tokens=grid.class_tokens)
            return grid.holder
        for change in self.changes:
            if change.kind is SplitPatchEmbedding and change.module in list(module.modules()):
                change.attributes.update(tokens_of=change.module, class_tokens=grid.class_tokens)
                return change.module
        return None


def _spatial_dims(net: nn.Module) -> int:
    """
    How many spatial axes a network's volumes have.

    Raises:
        ValueError: if it has neither convolutions nor patches.
    """
    for module in net.modules():
        if isinstance(module, PatchEmbeddingBlock):
            return len(module.patch_size)
        for kinds in (CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS):
            for dims, kind in enumerate(kinds, 1):
                if isinstance(module, kind):
                    return dims
    raise ValueError(f"{type(net).__name__} has neither a convolution nor patches: it works on no volume.")


def _beside_the_path(net: nn.Module) -> set[int]:
    """Modules that are not on the way of a network's input, but on that of another one."""
    return {id(inner) for module in net.modules() for child in _beside(module) for inner in child.modules()}


def _beside(module: nn.Module) -> Iterator[nn.Module]:
    for name in getattr(module, "beside_the_path", ()):
        yield module.get_submodule(name)
