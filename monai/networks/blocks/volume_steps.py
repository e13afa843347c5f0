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
A network as steps between which whole volumes rest: what a computation part by part needs to know of it.

A step reads parts of a volume with the neighbors that its layers reach, and writes parts of the next one. Norms over a
whole volume begin a step, since they need statistics of what the step before wrote. A module of several layers says
its steps in a method ``volume_steps(steps, volume)``, beside its ``forward``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Union

import torch
import torch.nn as nn

from monai.networks.blocks.reach import (
    BATCH_NORMS,
    INSTANCE_NORMS,
    Reach,
    computes_as,
    computes_as_declared,
    reach_of,
    replaced_method,
)
from monai.networks.blocks.spade_norm import SPADE
from monai.networks.state_dict.torch_private import has_hooks_that_see_values, is_plain

__all__ = [
    "Attend",
    "Branch",
    "Layer",
    "Modulate",
    "Normalize",
    "Operation",
    "Pointwise",
    "Resize",
    "Step",
    "VolumeSteps",
    "overwrites",
]

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@dataclass(frozen=True)
class Pointwise:
    """A function of every position alone, with an argument ``inplace`` or without."""

    function: Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Layer:
    """A layer that looks at most as far as ``reaches`` says, axis by axis; ``call`` computes it."""

    call: Callable[[torch.Tensor], torch.Tensor]
    reaches: tuple[Reach, ...]
    name: str


@dataclass(frozen=True)
class Normalize:
    """A norm by statistics of the whole volume, in ``groups`` of channels; 0 for every channel by itself."""

    module: nn.Module
    groups: int


@dataclass(frozen=True)
class Resize:
    """Nearest-neighbor interpolation to the size of the volume number ``like``."""

    like: int


@dataclass(frozen=True)
class Attend:
    """A block in which all positions attend to one another."""

    module: nn.Module


@dataclass(frozen=True)
class Branch:
    """Another volume at the same positions, after operations that look at every position alone."""

    source: int
    operations: tuple[Operation, ...]


@dataclass(frozen=True)
class Modulate:
    """x * (1 + scale) + shift, by two other volumes."""

    scale: Branch
    shift: Branch


Operation = Union[Pointwise, Layer, Normalize, Modulate, Resize, Attend]


@dataclass(frozen=True)
class Step:
    """
    From one volume to the next.

    Args:
        source: number of the volume that it reads.
        operations: what it computes, one after another.
        plus: what is added to it, or None.
        then: what is computed of the sum.
    """

    source: int
    operations: tuple[Operation, ...]
    plus: Branch | None = None
    then: tuple[Pointwise, ...] = ()

    @property
    def branches(self) -> list[Branch]:
        """The other volumes that it reads at the places of its result."""
        modulations = [operation for operation in self.operations if isinstance(operation, Modulate)]
        found = [branch for each in modulations for branch in (each.scale, each.shift)]
        return [self.plus, *found] if self.plus else found


class VolumeSteps:
    """
    The steps of a network. The first volumes are its inputs, volume 0 the one that it works on; every step makes one
    more.

    Args:
        network: the network, by whose modules' names errors are told.
        spatial_dims: number of the volume's spatial axes.
        inputs: number of inputs. Defaults to 1.
        checks_mode: whether layers are refused that differ from the whole in training mode. Defaults to True.
    """

    def __init__(self, network: nn.Module, spatial_dims: int, inputs: int = 1, checks_mode: bool = True) -> None:
        self.checks_mode = checks_mode
        self.spatial_dims = spatial_dims
        self.inputs = inputs
        self.steps: list[Step] = []
        self._overwritten: set[int] = set()
        self._names = {id(module): name for name, module in network.named_modules()}

    def add(
        self,
        source: int,
        *layers: nn.Module | Operation | Callable[..., torch.Tensor],
        plus: Branch | None = None,
        then: Callable[..., torch.Tensor] | None = None,
        together: bool = False,
    ) -> int:
        """
        Add layers that follow one another.

        Args:
            source: number of the volume that the first one gets.
            layers: modules, operations, and functions of every position alone.
            plus: what is added to the result, see :meth:`branch`.
            then: a function of every position alone, applied to the sum.
            together: whether nothing rests between the layers, although each looks around. Defaults to False.

        Returns:
            number of the volume that they make

        Raises:
            TypeError: if a layer is neither known to be local nor says its reach or its steps.
        """
        pending: list[Operation] = []
        for layer in self._flat(layers):
            if isinstance(layer, nn.Module) and self._says_steps(layer):
                source = layer.volume_steps(self, self._close(source, pending))  # type: ignore[operator]
                continue
            operation = self._operation(layer)
            if not together and _rests_before(operation, pending):
                source = self._close(source, pending)
            pending.append(operation)
        if plus is None and then is None:
            return self._close(source, pending)
        return self._rest(Step(source, tuple(pending), plus, () if then is None else (Pointwise(then),)))

    def branch(self, source: int, *layers: nn.Module | Callable[..., torch.Tensor]) -> Branch:
        """
        What :meth:`add` adds to a result: layers that each look at their own position alone.

        Raises:
            TypeError: if a layer looks further.
        """
        operations = [self._operation(layer) for layer in self._flat(layers)]
        for operation in operations:
            if not isinstance(operation, (Pointwise, Normalize)) and not _is_local(operation):
                raise TypeError(f"{operation}: what is added to a residual block should be computed point by point.")
        return Branch(source, tuple(operations))

    def attend(self, source: int, block: nn.Module) -> int:
        """Add a block in which all positions attend to one another."""
        self._refuse_hooks(block)
        return self._rest(Step(source, (Attend(block),)))

    def modulation(self, spade: Any, volume: int, segmentation: int) -> Modulate:
        """
        The scale and shift of a SPADE layer.

        Args:
            spade: the layer.
            volume: number of the volume that it normalizes.
            segmentation: number of the volume that modulates it.
        """
        if not computes_as(spade, (SPADE,)):
            raise TypeError(self._refusal(spade))
        self._refuse_hooks(spade)
        branches = []
        for layer in (spade.mlp_gamma, spade.mlp_beta):
            convolution, *rest = self._flat([layer])
            raw = self.add(segmentation, Resize(volume), spade.mlp_shared, convolution, together=True)
            branches.append(self.branch(raw, *rest))
        return Modulate(*branches)

    def _rest(self, step: Step) -> int:
        """
        Raises:
            TypeError: if a volume is read after it was overwritten.
        """
        overwritten = {step.source} if step.operations and overwrites(step.operations[0]) else set()
        read_later = [] if step.plus is None else [step.plus.source]
        if self._overwritten & {step.source, *read_later} or overwritten & {*read_later}:
            raise TypeError(
                "an activation in place overwrites a volume that is read again, as what is added to a residual block: "
                "build it with inplace=False."
            )
        self._overwritten |= overwritten
        self.steps.append(step)
        return self.inputs + len(self.steps) - 1

    def _close(self, source: int, pending: list[Operation]) -> int:
        """Let what the pending operations make rest."""
        if not pending:
            return source
        step = Step(source, tuple(pending))
        pending.clear()
        return self._rest(step)

    def _flat(self, layers: Any) -> list[Any]:
        """Layers in the order of their calls, with those of a sequence in its place."""
        flat: list[Any] = []
        for layer in layers:
            if not isinstance(layer, nn.Module) or self._says_steps(layer):
                flat.append(layer)
            elif computes_as(layer, (nn.Sequential,)):
                self._refuse_hooks(layer)
                flat += self._flat(layer)
            elif not (is_plain(layer, nn.Identity) and computes_as(layer, (nn.Identity,))):
                flat.append(layer)
        return flat

    def _says_steps(self, module: nn.Module) -> bool:
        if not computes_as_declared(module, "volume_steps"):
            return False
        self._refuse_hooks(module)
        return True

    def _operation(self, layer: Any) -> Operation:
        if isinstance(layer, (Modulate, Resize)):
            return layer
        if not isinstance(layer, nn.Module):
            return Pointwise(layer)
        for module in layer.modules():  # a layer may say how far it looks for those inside of it
            self._refuse_hooks(module)
        if (
            computes_as(layer, DROPOUTS)
            or computes_as(layer, (*BATCH_NORMS, nn.SyncBatchNorm))
            and layer.track_running_stats
        ):
            if layer.training and self.checks_mode and getattr(layer, "p", True):
                raise TypeError(
                    f"{self._name(layer)} is in training mode, where parts differ from the whole: call eval() first."
                )
            return Pointwise(layer)
        groups = _norm_groups(layer)
        if groups is not None:
            return Normalize(layer, groups)
        reaches = [reach_of(layer, axis) for axis in range(self.spatial_dims)]
        known = tuple(reach for reach in reaches if reach is not None)
        if len(known) < self.spatial_dims:
            raise TypeError(self._refusal(layer))
        return Layer(self._call_of(layer), known, self._name(layer))

    def _call_of(self, layer: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        """What computes a layer: one that cuts volumes by itself has a method ``in_one_piece`` that does not."""
        if not computes_as_declared(layer, "in_one_piece"):
            return layer
        call: Callable[[torch.Tensor], torch.Tensor] = layer.in_one_piece  # type: ignore[assignment]
        return call

    def _name(self, module: nn.Module) -> str:
        return f"{self._names.get(id(module), '')} ({type(module).__name__})".strip()

    def _refusal(self, layer: nn.Module) -> str:
        for module in layer.modules():
            replaced = replaced_method(module)
            if replaced is not None:
                return (
                    f"{self._name(module)} cannot be computed in parts: somebody has replaced or decorated its method "
                    f"{replaced}, and what is known of {type(module).__name__} holds for the one that its class was "
                    "written with. Put that one back, or write a subclass with the new one, which says how far it "
                    "looks in a method spatial_reach(axis), or its steps in volume_steps(steps, volume)."
                )
        return (
            f"{self._name(layer)} cannot be computed in parts: it is not known how far it looks, or it looks at the "
            "whole volume. A layer of your own says it in a method spatial_reach(axis), which returns a Reach; a "
            "module of several layers in a method volume_steps(steps, volume)."
        )

    def _refuse_hooks(self, module: nn.Module) -> None:
        """
        Raises:
            TypeError: if hooks wait for the values of a whole volume.
        """
        if has_hooks_that_see_values(module):
            raise TypeError(
                f"{self._name(module)} has hooks, which would see parts of a volume or nothing: remove them, or "
                "compute the volume in one piece."
            )


def _norm_groups(module: Any) -> int | None:
    """In how many groups of channels a module normalizes by the whole volume, see :class:`Normalize`; None if not."""
    if computes_as_declared(module, "apply_statistics") and isinstance(module, nn.GroupNorm):
        return module.num_groups
    if computes_as(module, (nn.GroupNorm,)):
        return int(module.num_groups)
    if computes_as(module, INSTANCE_NORMS) and not module.track_running_stats:
        return 0
    return None


def overwrites(operation: Operation) -> bool:
    """Whether an operation overwrites what it gets: activations may."""
    call = operation.call if isinstance(operation, Layer) else getattr(operation, "function", None)
    return bool(getattr(call, "inplace", False))


def _is_local(operation: Operation) -> bool:
    return isinstance(operation, Layer) and all(
        reach.is_local and reach.up == 1 and reach.down == 1 for reach in operation.reaches
    )


def _rests_before(operation: Operation, pending: list[Operation]) -> bool:
    """Whether what the pending operations make rests before ``operation``: it needs statistics, or looks around."""
    if not pending:
        return False
    if isinstance(operation, Normalize):
        return True
    return _looks_around(operation) and any(map(_looks_around, pending))


def _looks_around(operation: Operation) -> bool:
    return isinstance(operation, Layer) and not all(reach.is_local for reach in operation.reaches)
