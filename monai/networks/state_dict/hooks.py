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
The load hook of modules, what its caller may ask for, and what the modules say of themselves.

A module needs this file alone. What is done to a checkpoint, and what is known of older ones, is in the procedure that
:mod:`monai.networks.state_dict` hands over when it is imported (:func:`adapt_loads_by`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn

__all__ = [
    "OWN_VERSION",
    "CheckpointFacts",
    "OldCheckpoints",
    "Procedure",
    "Request",
    "SafeLoading",
    "adapt_loads_by",
    "before_load",
]

OWN_VERSION = 2
"""Of the state dicts of modules that say what they are: every output projection in them was used."""


@dataclass(frozen=True)
class CheckpointFacts:
    """
    What only the user can know about a checkpoint, because its keys are the same either way.

    None leaves a question open: where the answer changes the outputs, the load is refused and names the question.

    Args:
        cross_attention_scaled: whether the transformers of a GenerativeModels 0.1 network (keys ``ff.net.*``) divided
            their logits by sqrt(num_head_channels). Release 0.1.0 did not, the revisions after it did.
        transposed_upsampling: whether the decoder of a GenerativeModels or MAISI autoencoder doubled the size by
            transposed convolutions (``use_convtranspose=True``), or by a convolution of the enlarged image.
        projection_used: whether a MONAI 1.4 network used the output projections that it saved; it saved them with
            ``include_fc=False`` too.

    Raises:
        TypeError: if a value is neither a bool nor None.
    """

    cross_attention_scaled: bool | None = None
    transposed_upsampling: bool | None = None
    projection_used: bool | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not isinstance(value, bool):
                raise TypeError(f"{name} must be True, False or None (not known), got {value!r}.")


@dataclass(frozen=True)
class Request:
    """
    What the caller of a load says.

    Args:
        strict: whether every key has to fit; None where nobody says so, as inside of another module.
        facts: what the user knows.
        careful: whether weights may be looked at, to warn of what was never trained.
    """

    strict: bool | None = None
    facts: CheckpointFacts = CheckpointFacts()
    careful: bool = False


Procedure = Callable[[nn.Module, MutableMapping[str, Any], str, Mapping[str, Any], Request], Collection[nn.Module]]
"""
Adapts a module's part of a checkpoint in place, or raises a RuntimeError. It is given the module, the checkpoint, the
prefix of the module's keys, what the module that wrote them said of itself, and what the caller of the load says. It
returns the modules inside for which nothing is left to do.
"""
_procedures: list[Procedure] = []
_settled: ContextVar[frozenset[int]] = ContextVar("_settled", default=frozenset())  # ids, while a module loads


def adapt_loads_by(procedure: Procedure) -> None:
    """Have every load of a :class:`SafeLoading` module go through ``procedure``, in place of an earlier one."""
    _procedures[:] = [procedure]


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
        self.register_load_state_dict_pre_hook(before_load)
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
        before = _settled.set(frozenset())
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        finally:
            _settled.reset(before)
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


def _after_save(module: nn.Module, state_dict: Any, prefix: str, local_metadata: dict[str, Any]) -> None:
    """Write beside a module's tensors what they do not tell."""
    local_metadata.update(module.state_dict_facts())  # type: ignore[operator]
    if hasattr(module, "attention_kind"):
        local_metadata["use_proj_attn"] = not isinstance(module.out_proj, nn.Identity)


def before_load(
    module: nn.Module,
    state_dict: MutableMapping[str, Any],
    prefix: str,
    local_metadata: Mapping[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """
    Adapt and judge a module's part of a checkpoint. Nested modules run it, too, unless the module whose load it is has
    settled what concerns them: then torch alone judges, as of any module.
    """
    if id(module) in _settled.get():
        return
    request = module.__dict__.get("_load_request")
    for procedure in _procedures:
        settled = procedure(module, state_dict, prefix, local_metadata, request or Request())
        if request is not None:
            _settled.set(frozenset(map(id, settled)))
