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

"""Modules that load checkpoints of any age, by hooks of torch: wherever they are nested, a plain load does it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import torch
import torch.nn as nn

from monai.networks.state_dict.layouts import recognize_layouts
from monai.networks.state_dict.load import OWN_VERSION, Load, Request
from monai.networks.state_dict.refusals import refuse
from monai.networks.state_dict.rules import CheckpointFacts
from monai.networks.state_dict.torch_private import metadata_of

__all__ = ["OldCheckpoints", "SafeLoading", "adapted_for_copying", "adapted_state_dict"]


class SafeLoading(nn.Module):
    """
    A module that adapts older checkpoints when it loads, and refuses a misfit before it changes a weight.

    Plain ``load_state_dict`` does it, whatever the module is nested in. Keys that are the module's own, whatever was
    done to it, pass untouched, and no tensor is looked at. Where there are others, the rules of
    :mod:`monai.networks.state_dict.layouts` translate them, by the ``layout_role`` of each submodule; what is no rule
    is in its method ``adapt_state_dict(part)``. Missing and unexpected keys are found beforehand where the module
    itself is the one that loads; torch does not tell nested modules whether the load is strict. The caller's dictionary
    stays as it is: torch hands its hooks a copy.
    """

    _version = OWN_VERSION

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(_before_load)
        self.register_state_dict_post_hook(_after_save)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False):
        """
        Load a state dict of this or an older release, see :meth:`torch.nn.Module.load_state_dict`.

        Raises:
            RuntimeError: if the state dict does not fit; the module is left as it is.
        """
        return self._load_as(Request(strict=bool(strict)), state_dict, strict, assign)

    def state_dict_facts(self) -> dict[str, bool]:
        """What the keys do not tell about how the module was built: saved beside them, and compared when it loads."""
        return {}

    def idle_keys(self) -> list[str]:
        """Keys of parameters that no output depends on: a checkpoint may lack them."""
        return []

    def _load_as(self, request: Request, state_dict: Mapping[str, Any], strict: bool, assign: bool):
        self.__dict__["_load_request"] = request
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        finally:
            self.__dict__.pop("_load_request", None)


class OldCheckpoints(SafeLoading):
    """A network with upstream's loader of older checkpoints."""

    def load_old_state_dict(
        self, old_state_dict: Mapping[str, torch.Tensor], verbose: bool = False, facts: CheckpointFacts | None = None
    ) -> None:
        """
        Load a checkpoint that an older release wrote. Plain ``load_state_dict`` does the same, without ``facts``, and
        without a warning of weights that were never trained.

        Args:
            old_state_dict: the older network's state dict, which is left as it is.
            verbose: whether to print the keys that the two networks do not share. Defaults to False.
            facts: what the keys cannot tell; None leaves everything open.

        Raises:
            RuntimeError: if the checkpoint does not fit this network; the network is left as it is.
        """
        if verbose:
            own = self.state_dict().keys()
            print("Keys of the network that the checkpoint lacks:", sorted(own - old_state_dict.keys()) or "none")
            print("Keys of the checkpoint that the network lacks:", sorted(old_state_dict.keys() - own) or "none")
        request = Request(strict=True, facts=facts or CheckpointFacts(), careful=True)
        self._load_as(request, old_state_dict, strict=True, assign=False)


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

    def metadata(path: str) -> Mapping[str, Any]:
        return metadata_of(state_dict, path)

    loads = [Load(part, adapted, prefix, metadata, request, _before_load) for prefix, part in _outermost(net, "")]
    for load in loads:
        load.adapt()
    whole = Load(net, adapted, "", metadata, request, _before_load)
    whole.layouts = [layout for load in loads for layout in load.layouts]
    problems = [*(line for load in loads for line in load.misfits()), *whole.misfits()]
    problems += whole.missing_and_unexpected()
    refuse(net, dict.fromkeys(problems), whole.layouts, whole.own, state_dict)
    for load in loads:
        load.warn()
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

        load = Load(part, adapted, path, metadata, Request(strict=True, careful=True), _before_load)
        if load.is_of_an_older_layout():
            changed = True
            load.adapt()
            refuse(part, load.left_unused(), load.layouts)
            load.warn()
    return {key[len(prefix) :]: value for key, value in adapted.items()} if changed else state_dict


def _after_save(module: nn.Module, state_dict: Any, prefix: str, local_metadata: dict[str, Any]) -> None:
    """Write beside a module's tensors what they do not tell."""
    local_metadata.update(module.state_dict_facts())  # type: ignore[operator]
    if hasattr(module, "attention_kind"):
        local_metadata["use_proj_attn"] = not isinstance(module.out_proj, nn.Identity)


def _before_load(
    module: nn.Module,
    state_dict: MutableMapping[str, Any],
    prefix: str,
    local_metadata: Mapping[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Adapt and judge a module's part of a checkpoint. Nested modules run it, too: what they find is their own then."""

    def metadata(path: str) -> Mapping[str, Any]:
        return local_metadata if path == prefix[:-1] else metadata_of(state_dict, path)

    request = module.__dict__.get("_load_request") or Request()
    Load(module, state_dict, prefix, metadata, request, _before_load).run()


def _refuse_without_network(own: Mapping[str, Any], keys: set[str]) -> None:
    """Raise where the state dict of a network of this package is to take keys of an older layout."""
    older = [layout for layout in recognize_layouts(keys - own.keys()) if layout.is_old and layout.rules]
    if older and metadata_of(own, "").get("version", 1) >= OWN_VERSION:
        raise RuntimeError(
            f"The keys are those of {older[0].source} ({older[0].evidence}), which only the network itself can "
            "translate: pass the network instead of its state dict, or adapt them first by "
            "monai.networks.state_dict.hooks.adapted_state_dict(net, state_dict)."
        )


def _outermost(module: nn.Module, prefix: str) -> Iterator[tuple[str, SafeLoading]]:
    """The modules that adapt a checkpoint, each with the prefix of its keys, without those inside of others."""
    if isinstance(module, SafeLoading):
        yield prefix, module
        return
    for name, child in module.named_children():
        yield from _outermost(child, f"{prefix}{name}.")
