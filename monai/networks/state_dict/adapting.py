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

"""A checkpoint of any age as a network's own state dict, for those who load or copy it themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import torch.nn as nn

from monai.networks.state_dict.hooks import OWN_VERSION, CheckpointFacts, Request, SafeLoading
from monai.networks.state_dict.layouts import recognize_layouts
from monai.networks.state_dict.load import Load
from monai.networks.state_dict.refusals import refuse
from monai.networks.state_dict.torch_private import children_by_key, metadata_of

__all__ = ["AdaptedKeys", "adapted_for_copying", "adapted_state_dict"]


class AdaptedKeys:
    """
    A checkpoint whose keys have become those of a network, as far as its modules know how. Nobody has judged yet
    whether it fits.

    Args:
        net: the network, which is left as it is.
        adapted: the checkpoint, which is changed.
        written: as it was written, with what its modules said of themselves.
        request: what the caller says.
        older: whether the keys may be those of an older layout; otherwise nothing is adapted.

    Raises:
        RuntimeError: if keys of two layouts are mixed, or a rule refuses them.
    """

    def __init__(
        self,
        net: nn.Module,
        adapted: MutableMapping[str, Any],
        written: Mapping[str, Any],
        request: Request,
        older: bool = True,
    ) -> None:
        def metadata(path: str) -> Mapping[str, Any]:
            return metadata_of(written, path)

        self.loads = [Load(part, adapted, prefix, metadata, request) for prefix, part in _outermost(net, "")]
        for load in self.loads if older else ():
            load.adapt()
        self.layouts = [layout for load in self.loads for layout in load.layouts]
        self.whole = Load(net, adapted, "", metadata, request)
        self.whole.layouts = self.layouts

    def misfits(self) -> list[str]:
        """Which tensors cannot take their place, a line each."""
        lines = [*(line for load in self.loads for line in load.misfits()), *self.whole.misfits()]
        return list(dict.fromkeys(lines))

    def warn(self) -> None:
        """Warn of what was noted."""
        for load in self.loads:
            load.warn()


def adapted_state_dict(
    net: nn.Module, state_dict: Mapping[str, Any], facts: CheckpointFacts | None = None
) -> dict[str, Any]:
    """
    Bring a checkpoint of any age to the layout of a network, which is left as it is and may lie on the meta device, or
    be sharded over several.

    Args:
        net: the network.
        state_dict: the checkpoint, which is left as it is.
        facts: what its keys cannot tell; None leaves everything open.

    Returns:
        what ``net.load_state_dict`` takes as it is, in the order of ``net.state_dict()``

    Raises:
        RuntimeError: if the checkpoint does not fit the network.
    """
    adapted = dict(state_dict)
    request = Request(strict=True, facts=facts or CheckpointFacts(), careful=True)
    keys = AdaptedKeys(net, adapted, state_dict, request)
    refuse(net, [*keys.misfits(), *keys.whole.missing_and_unexpected()], keys.layouts, keys.whole.own, state_dict)
    keys.warn()
    own = [key for key in net.state_dict() if key in adapted]
    return {key: adapted[key] for key in [*own, *(key for key in adapted if key not in set(own))]}


def adapted_for_copying(
    net: nn.Module | Mapping[str, Any], state_dict: Mapping[str, Any], prefix: str = ""
) -> Mapping[str, Any]:
    """
    Bring a checkpoint that is to be copied into a network by names, maybe in part, to the names of that network.

    Args:
        net: the network, or its state dict; it is left as it is.
        state_dict: the checkpoint, which is left as it is. Where no older layout is recognized, it comes back itself.
        prefix: what its keys need before them to be the network's.

    Returns:
        the checkpoint with the network's names, as far as it has them; without ``prefix``

    Raises:
        RuntimeError: if the checkpoint is of an older layout and cannot be adapted, as where it says that an output
            projection was never used, and only a part of it is there; or where only a state dict is given for the
            network.
    """
    if not isinstance(net, nn.Module):
        _refuse_without_network(net, {prefix + key for key in state_dict})
        return state_dict
    adapted: dict[str, Any] = {prefix + key: value for key, value in state_dict.items()}
    changed = False
    for path, part in _outermost(net, ""):

        def metadata(name: str) -> Mapping[str, Any]:
            return metadata_of(state_dict, name[len(prefix) :])

        load = Load(part, adapted, path, metadata, Request(strict=True, careful=True))
        if load.is_of_an_older_layout():
            changed = True
            load.adapt()
            refuse(part, load.left_unused(), load.layouts)
            load.warn()
    return {key[len(prefix) :]: value for key, value in adapted.items()} if changed else state_dict


def _refuse_without_network(own: Mapping[str, Any], keys: set[str]) -> None:
    """Raise where the state dict of a network of this package is to take keys of an older layout."""
    older = [layout for layout in recognize_layouts(keys - own.keys()) if layout.is_old and layout.rules]
    if older and metadata_of(own, "").get("version", 1) >= OWN_VERSION:
        raise RuntimeError(
            f"The keys are those of {older[0].source} ({older[0].evidence}), which only the network itself can "
            "translate: pass the network instead of its state dict, or adapt them first by "
            "monai.networks.state_dict.adapted_state_dict(net, state_dict)."
        )


def _outermost(module: nn.Module, prefix: str) -> Iterator[tuple[str, SafeLoading]]:
    """The modules that adapt a checkpoint, each with the prefix of its keys, without those inside of others."""
    if isinstance(module, SafeLoading):
        yield prefix, module
        return
    for name, child in children_by_key(module):
        yield from _outermost(child, f"{prefix}{name}.")
