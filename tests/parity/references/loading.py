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


"""Loads a checkpoint into the network of whatever ``monai`` this process imports, and judges the outputs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn

from tests.parity.references.networks import arguments_taken, find_class, outputs

__all__ = ["Result", "attempt"]

TOLERANCE = 2e-4  # of the largest output, or of one


@dataclass(frozen=True)
class Result:
    """
    How a load went.

    Args:
        verdict: "exact", "WRONG" (loaded, but the outputs differ), "refused", "no loader", or "broken" where the
            network cannot be built or raised something else than a refusal.
        difference: largest difference of the outputs, relative to the largest output or one.
        said: the error, or the warnings.
        warned: whether it warned.
        complaints: what a load may never do: change the checkpoint, or the network that refuses it.
    """

    verdict: str
    difference: float | None = None
    said: str = ""
    warned: bool = False
    complaints: tuple[str, ...] = ()


class _Users(nn.Module):
    """A user's own module around a network."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


def attempt(
    network: str,
    kwargs: Mapping[str, Any],
    reference: Mapping[str, Any],
    way: str = "plain",
    facts: Any = None,
) -> Result:
    """
    Build a network, load a checkpoint and compare its outputs with the reference.

    Args:
        network: name of the class.
        kwargs: its arguments, in the fork's words.
        reference: the checkpoint, and the inputs and the output of the network that wrote it, as
            :meth:`~tests.parity.references.worker.Worker.write` returns them.
        way: "plain", "nested" (in a user's own module), or "old" (``load_old_state_dict``).
        facts: what only the user knows about the checkpoint, for "old".
    """
    try:
        cls = find_class(network)
        net = cls(**arguments_taken(cls, kwargs))
    except Exception as error:
        return Result("broken", said=_line(error))
    if way == "old" and not hasattr(net, "load_old_state_dict"):
        return Result("no loader")
    prefix = "net." if way == "nested" else ""
    given = {prefix + key: value for key, value in reference["state_dict"].items()}
    before = {key: value.clone() for key, value in net.state_dict().items()}
    versions = {key: (id(value), value._version) for key, value in given.items()}
    error = None
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            _load(net, given, way, facts)
        except Exception as raised:
            error = raised
    complaints = []
    if {key: (id(value), value._version) for key, value in given.items()} != versions:
        complaints.append("the load changed the checkpoint")
    said = "; ".join(_line(warning.message) for warning in heard)
    if error is None:
        return _judged(net, network, kwargs, reference, said, complaints)
    # torch tells a nested network not whether the load is strict, so that a key too many is found when all is loaded
    if way != "nested" and not _equal(net.state_dict(), before):
        complaints.append("the refusal changed the network")
    verdict = "refused" if isinstance(error, RuntimeError) else "broken"
    return Result(verdict, None, _line(error), bool(heard), tuple(complaints))


def _load(net: nn.Module, state_dict: dict[str, torch.Tensor], way: str, facts: Any) -> None:
    if way == "old":
        net.load_old_state_dict(state_dict, **({} if facts is None else {"facts": facts}))
    else:
        (_Users(net) if way == "nested" else net).load_state_dict(state_dict)


def _judged(
    net: nn.Module,
    network: str,
    kwargs: Mapping[str, Any],
    reference: Mapping[str, Any],
    said: str,
    complaints: list[str],
) -> Result:
    if kwargs.get("norm_float16"):  # which convolutions on a CPU do not take
        for module in net.modules():
            module.norm_float16 = False
    try:
        got = outputs(net, network, reference["inputs"])
    except Exception as error:
        return Result("broken", None, _line(error), bool(said), tuple(complaints))
    wanted = reference["output"]
    if got.shape != wanted.shape:
        return Result("WRONG", None, f"{len(got)} outputs, not {len(wanted)}", bool(said), tuple(complaints))
    difference = float((got - wanted).abs().max() / max(1.0, float(wanted.abs().max())))
    verdict = "exact" if difference <= TOLERANCE else "WRONG"  # NaN is wrong
    return Result(verdict, difference, said, bool(said), tuple(complaints))


def _equal(state_dict: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return state_dict.keys() == other.keys() and all(torch.equal(state_dict[key], other[key]) for key in other)


def _line(error: Any) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
