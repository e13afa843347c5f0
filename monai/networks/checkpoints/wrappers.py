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

"""The network inside of what trainers and wrappers save: found by its structure, told apart by name or by a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch
import torch.nn as nn

from . import limits
from .prefixes import State, Target, parts, peel, strip, under, with_versions

__all__ = ["Network", "as_number", "checked", "choose_network", "describe", "find_networks"]

LIGHTNING = "pytorch-lightning_version"
LIGHTNING_TRAINER = ("callbacks", "loops", "optimizer_states", "lr_schedulers", "hyper_parameters")
BARE_NAME = "state_dict"  # the name of a network that lies in the file without a dictionary around it
MAX_DEPTH = 8  # of dictionaries in one another
SHOWN = 8  # names in an error message

Fetch = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Network:
    """
    A network found in a checkpoint.

    Args:
        name: what tells it from the others.
        state_dict: its tensors by key, without prefixes of wrappers; entries ``_extra_state`` may hold anything.
        wrappers: what was around it, outermost first.
        scale_factor: the latent scale factor saved beside it.
    """

    name: str
    state_dict: dict[str, torch.Tensor]
    wrappers: tuple[str, ...] = ()
    scale_factor: Any = None


def choose_network(
    tree: Any,
    source: str,
    net: nn.Module | None = None,
    name: str | None = None,
    fetch: Fetch | None = None,
) -> Network:
    """
    The one network of a checkpoint, or the one asked for.

    Args:
        tree: what the file holds: dictionaries in one another, with tensors.
        source: the file's name, for error messages.
        net: the network that is to be loaded.
        name: the name of the network in the file, or of a submodule of the only one.
        fetch: gives the values of a tensor in ``tree`` that has none yet.

    Raises:
        ValueError: if there is no network; several, and neither ``name`` nor ``net`` decides; none of that name; or a
            value in its state dict that is no tensor.
    """
    target = Target(net) if net is not None else None
    networks = find_networks(tree, target)
    if not networks:
        raise ValueError(f"{source} holds no network, but {describe(tree)}: pass a file with a state dict.")
    if name is not None:
        network = _named(networks, name, source)
    elif len(networks) == 1:
        network = networks[0]
        _refuse_larger(network, target, source)
    else:
        network = _matching(networks, target, source)
    return checked(network, source, fetch)


def checked(network: Network, source: str, fetch: Fetch | None = None) -> Network:
    """
    The network with nothing but tensors, and its scale factor as a number.

    torch keeps what is called ``_extra_state``, whatever it is; a count of batches may be a number. Other entries are
    left out if they lie beside the modules, such as ``epoch``, and are an error inside of one.

    Args:
        network: as it was found.
        source: the file's name, for error messages.
        fetch: gives the values of a tensor that has none yet.

    Raises:
        ValueError: if a value in its state dict is no tensor, or claims more memory than it has.
    """
    scale_factor = network.scale_factor
    if fetch is not None and torch.is_tensor(scale_factor):
        scale_factor = fetch(scale_factor)
    return replace(
        network,
        state_dict=_tensors_only(network, source, fetch),
        scale_factor=as_number(scale_factor, source),
    )


def find_networks(tree: Any, target: Target | None = None) -> list[Network]:
    """
    All networks of a checkpoint, each with a name of its own.

    A network is a dictionary from names to tensors, at any depth. Of several such dictionaries those are preferred that
    hold a matrix called a weight, so that statistics and losses are none. Optimizer states are none either.
    """
    found = [part for state in _state_dicts(tree) for part in _split(state, target)]
    found = [state for state in found if _has_weight_matrix(state.tensors)] or found
    names = _short_names([state.path for state in found])
    return [Network(name, s.tensors, s.wrappers, s.scale_factor) for name, s in zip(names, found)]


def describe(tree: Any) -> str:
    """What a file holds, in a few words."""
    if torch.is_tensor(tree):
        return f"one tensor of shape {list(tree.shape)}"
    if not isinstance(tree, Mapping):
        return f"a {type(tree).__name__}"
    if not tree:
        return "an empty dictionary"
    entries = [f"{key!r} ({'optimizer state' if _is_optimizer(v) else type(v).__name__})" for key, v in tree.items()]
    return f"a dictionary with {_shown(entries)}"


def _state_dicts(tree: Any, around: State | None = None, seen: set[int] | None = None) -> Iterator[State]:
    """The dictionaries of tensors at any depth below ``tree``."""
    around = around or State((), {}, ())
    seen = set() if seen is None else seen
    if not isinstance(tree, (Mapping, list, tuple)) or id(tree) in seen or len(around.path) > MAX_DEPTH:
        return
    seen.add(id(tree))
    if not isinstance(tree, Mapping):
        tree = dict(enumerate(tree))
    elif _is_optimizer(tree):
        return
    lightning = LIGHTNING in tree
    inside = replace(
        around,
        wrappers=around.wrappers + ("lightning",) * lightning,
        scale_factor=tree.get("scale_factor", around.scale_factor),
    )
    inner = 0
    for key, value in tree.items():
        if (
            not isinstance(value, (Mapping, list, tuple))
            or _is_extra(str(key))
            or (lightning and key in LIGHTNING_TRAINER)
        ):
            continue
        child = replace(
            inside,
            path=(*inside.path, str(key)),
            wrappers=(*inside.wrappers, str(key)),
            is_lightning=lightning and key == "state_dict",
        )
        for found in _state_dicts(value, child, seen):
            inner += 1
            yield found
    own = {key: value for key, value in tree.items() if isinstance(key, str)}
    arrays = [key for key, value in own.items() if _is_array(value)]
    if any("." in key for key in arrays) or (arrays and not inner):
        yield replace(around, tensors=with_versions(own, getattr(tree, "_metadata", {})))


def _is_optimizer(value: Any) -> bool:
    return isinstance(value, Mapping) and any(str(key).split(".")[0] == "param_groups" for key in value)


def _is_array(value: Any, dims: int = 1) -> bool:
    return torch.is_tensor(value) and (value.is_floating_point() or value.is_complex()) and value.dim() >= dims


def _has_weight_matrix(tensors: Mapping[str, Any]) -> bool:
    return any(key.endswith("weight") and _is_array(value, 2) for key, value in tensors.items())


def _split(state: State, target: Target | None) -> list[State]:
    """The networks in one dictionary of tensors: a LightningModule holds each of its own under a prefix."""
    whole = peel(state, target)
    if not state.is_lightning:
        return [whole]
    pieces = [peel(part, target) for part in parts(strip(state, ("_orig_mod",)))]
    if target is not None and pieces and target.rank(whole.tensors):
        if target.closeness(whole.tensors) >= max(target.closeness(piece.tensors) for piece in pieces):
            return [whole]
    return pieces or [whole]


def _short_names(paths: list[tuple[str, ...]]) -> list[str]:
    """The paths as names, without the parts at the front that tell nothing apart."""
    paths = [path or (BARE_NAME,) for path in paths]
    depth = min((len(path) for path in paths), default=1) - 1
    common = len(list(takewhile(lambda column: len(set(column)) == 1, zip(*(path[:depth] for path in paths)))))
    return ["/".join(path[common:]) for path in paths]


def _is_extra(key: str) -> bool:
    return key.split(".")[-1] == "_extra_state"


def _named(networks: list[Network], name: str, source: str) -> Network:
    for network in networks:
        if network.name == name:
            return network
    prefix = name.rstrip(".") + "."
    larger = [network for network in networks if any(key.startswith(prefix) for key in network.state_dict)]
    if len(larger) == 1:
        part = under(State((), larger[0].state_dict, larger[0].wrappers), prefix)
        return replace(larger[0], name=name, state_dict=part.tensors, wrappers=part.wrappers)
    choices = _shown([repr(network.name) for network in networks])
    raise ValueError(f"{source} has no network, nor a submodule of its only one, called {name!r}: it has {choices}.")


def _refuse_larger(network: Network, target: Target | None, source: str) -> None:
    """Refuse a network of which the target is only a part, rather than let its keys be listed as a misfit."""
    if target is None or target.rank(network.state_dict):
        return
    pieces = parts(State((), network.state_dict, ()))
    fitting = [piece.path[0] for piece in pieces if target.rank(piece.tensors) > 1]
    if len(fitting) == 1:
        raise ValueError(
            f"{source} holds a larger network, of which {fitting[0]!r} has the modules asked for, "
            f"{_shown(sorted(target.modules))}: choose it with name={fitting[0]!r}."
        )


def _matching(networks: list[Network], target: Target | None, source: str) -> Network:
    """The one network that fits the target best."""
    ranks = [target.rank(network.state_dict) if target else 0 for network in networks]
    best = max(ranks)
    if best and ranks.count(best) == 1:
        return networks[ranks.index(best)]
    undecided = ", and the network's keys do not tell which" if target else ""
    choices = _shown([repr(network.name) for network in networks])
    raise ValueError(f"{source} holds {len(networks)} networks{undecided}: choose with name=, from {choices}.")


def _tensors_only(network: Network, source: str, fetch: Fetch | None) -> dict[str, torch.Tensor]:
    kept: dict[str, Any] = {}
    strays: list[str] = []
    for key, value in network.state_dict.items():
        if torch.is_tensor(value):
            kept[key] = _plain(key, fetch(value) if fetch else value, source)
        elif _is_extra(key):
            kept[key] = value
        elif key.split(".")[-1] == "num_batches_tracked" and isinstance(value, int):
            kept[key] = torch.tensor(value)
        elif "." in key:
            strays.append(f"{key!r} ({type(value).__name__})")
    if strays:
        raise ValueError(
            f"{source}: the state dict {network.name!r} has values that are no tensors: {_shown(strays)}. "
            "Save the network's state_dict() alone."
        )
    return with_versions(kept, getattr(network.state_dict, "_metadata", {}))


def _plain(key: str, value: torch.Tensor, source: str) -> torch.Tensor:
    """A tensor without a subclass or a gradient."""
    if value.is_meta or hasattr(type(value), "__tensor_flatten__"):
        raise ValueError(f"{source}: {key!r} has no values of its own ({type(value).__name__} on {value.device}).")
    if value.layout == torch.strided and value.nbytes > max(limits.MAX_REPEATED, value.untyped_storage().nbytes()):
        raise ValueError(
            f"{source}: {key!r} claims {value.nbytes:,} bytes for the shape {list(value.shape)}, of which "
            f"{value.untyped_storage().nbytes():,} are there."
        )
    return value.as_subclass(torch.Tensor).detach()


def as_number(value: Any, source: str) -> float | None:
    """
    A scale factor as a number, whether it was saved as one, as a tensor, or in the text of a safetensors file.

    Raises:
        ValueError: if it is nothing of that kind.
    """
    if value is None:
        return None
    try:
        if isinstance(value, (int, float, str, torch.Tensor)) and not isinstance(value, bool):
            return float(value)
    except (ValueError, RuntimeError):
        pass  # no number in the text, or several in the tensor
    what = describe(value) if torch.is_tensor(value) else repr(value)
    raise ValueError(f"{source}: scale_factor must be a number or a tensor with one element, got {what}.")


def _shown(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
