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

"""Chooses one of the networks in a file, by its name or by the network that loads, and checks what it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn as nn

from monai.networks.state_dict.torch_private import all_metadata

from . import untrusted
from .stand_ins import kind_of
from .tensors import Odd
from .untrusted import CheckpointRefused, NetworkNotChosen, listed, quoted
from .unwrap import (
    MAX_DEPTH,
    MOST_PARTS,
    Network,
    State,
    Target,
    describe,
    find_networks,
    is_average,
    is_extra,
    parts,
    peel,
    under,
    with_versions,
)

__all__ = [
    "as_number",
    "checked",
    "choose_network",
]

CURRENT = "current_model_state"  # beside the average, which Lightning saves as the network itself

Fetch = Callable[[torch.Tensor], torch.Tensor]


def choose_network(
    tree: Any,
    source: str,
    net: nn.Module | None = None,
    name: str | None = None,
    fetch: Fetch | None = None,
    weights: str | None = None,
) -> Network:
    """
    The one network of a checkpoint, or the one asked for.

    Args:
        tree: what the file holds: dictionaries in one another, with tensors.
        source: the file's name, for error messages.
        net: the network that is to be loaded.
        name: the name of the network in the file, or of a submodule of the only one.
        fetch: gives the values of a tensor in ``tree`` that has none yet.
        weights: "ema" for a moving average of the weights, "raw" for those of the last step.

    Raises:
        ValueError: if ``weights`` is something else.
        NetworkNotChosen: if there are several networks and neither ``name`` nor ``net`` decides, or none of that name.
        CheckpointRefused: if there is no network, or a value in its state dict that is no tensor.
    """
    target = Target(net) if net is not None else None
    networks = find_networks(tree, target)
    if not networks:
        raise CheckpointRefused(f"{source} holds no network, but {describe(tree)}: pass a file with a state dict.")
    if weights is not None:
        networks = _of_kind(networks, weights, source)
    if name is not None:
        network = _named(networks, name, source, target)
    elif len(networks) == 1:
        network = networks[0]
        _refuse_larger(network, target, source)
    else:
        network = _matching(networks, target, source)
    return checked(network, source, fetch)


def _of_kind(networks: list[Network], weights: str, source: str) -> list[Network]:
    """
    Of the networks in a file, those that are moving averages, or those that are not.

    Raises:
        ValueError: if ``weights`` is neither "ema" nor "raw".
        NetworkNotChosen: if the file does not hold both.
    """
    if weights not in ("ema", "raw"):
        raise ValueError(f"weights={weights!r} should be 'ema', a moving average, or 'raw', those of the last step.")
    names = [network.name for network in networks]
    averages = set(_averages(names))
    if not averages or len(averages) == len(names):
        kind = "no moving average" if not averages else "nothing but moving averages"
        raise NetworkNotChosen(
            f"{source} has {kind} by name: it holds {listed(list(map(quoted, names)))}. Choose with name=."
        )
    return [network for network in networks if (network.name in averages) == (weights == "ema")]


def checked(network: Network, source: str, fetch: Fetch | None = None, values: bool = True) -> Network:
    """
    The network with nothing but tensors, and its scale factor as a number.

    torch keeps what is called ``_extra_state``, whatever it is; a count of batches may be a number. Other entries are
    left out if they lie beside the modules, such as ``epoch``, and are an error inside of one.

    Args:
        network: as it was found.
        source: the file's name, for error messages.
        fetch: gives the values of a tensor that has none yet.
        values: whether to fetch those of the state dict, too.

    Raises:
        CheckpointRefused: if a key is none of a network's, or a value in its state dict is no plain tensor.
    """
    scale_factor = network.scale_factor
    if fetch is not None and torch.is_tensor(scale_factor):
        scale_factor = fetch(scale_factor)
    return replace(
        network,
        state_dict=_tensors_only(network, source, fetch if values else None),
        scale_factor=as_number(scale_factor, source),
    )


def _named(networks: list[Network], name: str, source: str, target: Target | None) -> Network:
    """The network called so, or the only submodule called so of any of them."""
    path = name.strip("./").replace("/", ".")
    for network in networks:
        if network.name == name:
            return network
    ending = [network for network in networks if f".{network.name}".replace("/", ".").endswith(f".{path}")]
    if len(ending) == 1:
        return ending[0]
    found = [(network, prefix) for network in networks for prefix in _prefixes(network, path)]
    whole = [(network, prefix) for network, prefix in found if prefix == f"{path}."]
    if len(whole) == 1 or len(found) == 1:
        network, prefix = (whole if len(whole) == 1 else found)[0]
        part = peel(under(State((), network.state_dict, network.wrappers, network.scale_factor), prefix), target)
        return replace(network, name=name, state_dict=part.tensors, wrappers=part.wrappers)
    choices = [quoted(prefix[:-1]) for _, prefix in found] or [quoted(network.name) for network in networks]
    if found:
        raise NetworkNotChosen(f"{source} has several submodules called {quoted(name)}: choose from {listed(choices)}.")
    raise NetworkNotChosen(
        f"{source} has no network, nor a submodule of one, called {quoted(name)}: it has {listed(choices)}."
    )


def _prefixes(network: Network, path: str) -> list[str]:
    """Prefixes of keys that end in a module's path."""
    places = ((key, f".{key}".find(f".{path}.")) for key in network.state_dict)
    return list(dict.fromkeys(key[: place + len(path) + 1] for key, place in places if place >= 0))


def _refuse_larger(network: Network, target: Target | None, source: str) -> None:
    """Refuse a network of which the target is only a part, rather than let its keys be listed as a misfit."""
    if target is None or target.rank(network.state_dict):
        return
    state = State((), network.state_dict, ())
    inner = {part.path[0]: part for part in parts(state)}
    last = f".{next(iter(target.shapes), '')}"
    for key in network.state_dict:  # deeper, where the keys are the target's own
        if key.endswith(last) and len(inner) < MOST_PARTS:
            prefix = key.removesuffix(last)
            inner[prefix] = under(state, f"{prefix}.")
    fitting = [name for name, part in inner.items() if target.rank(part.tensors) > 1]
    if fitting:
        choices = listed(list(map(quoted, fitting)))
        several = len(fitting) > 1
        choose = f"choose with name=, from {choices}" if several else f"choose it with name={choices}"
        raise NetworkNotChosen(
            f"{source} holds a larger network, of which {choices} {'each have' if several else 'has'} the modules "
            f"asked for, {listed(sorted(map(quoted, target.modules)))}: {choose}.{_about_averages(fitting)}"
        )


def _matching(networks: list[Network], target: Target | None, source: str) -> Network:
    """The one network that fits the target best."""
    ranks = [target.rank(network.state_dict) if target else 0 for network in networks]
    best = max(ranks)
    if best and ranks.count(best) == 1:
        return networks[ranks.index(best)]
    undecided = ", and the network's keys do not tell which" if target else ""
    names = [network.name for network, rank in zip(networks, ranks) if rank == best]
    more = "" if len(names) == len(networks) else f" ({len(networks) - len(names)} others fit less)"
    raise NetworkNotChosen(
        f"{source} holds {len(networks)} networks{undecided}: choose with name=, from "
        f"{listed(list(map(quoted, names)))}{more}.{_about_averages(names)}"
    )


def _about_averages(names: list[str]) -> str:
    """What to choose where some of the networks are moving averages of others."""
    averages = _averages(names)
    if not averages or len(averages) == len(names):
        return ""
    what = "is a moving average (EMA)" if len(averages) == 1 else "are moving averages (EMA)"
    return (
        f" By name {listed(list(map(quoted, averages)))} {what} of the weights, with which most trainers sample and "
        "evaluate; the weights of the last step are the other choice."
    )


def _averages(names: list[str]) -> list[str]:
    """Which names are those of moving averages."""
    averages = [name for name in names if is_average(name)]
    if not averages and CURRENT in names:
        averages = [name for name in names if name != CURRENT]
    return averages


def _tensors_only(network: Network, source: str, fetch: Fetch | None) -> dict[str, torch.Tensor]:
    kept: dict[str, Any] = {}
    strays: list[str] = []
    for key, value in network.state_dict.items():
        _check_key(key, source)
        if torch.is_tensor(value):
            kept[key] = fetch(value).as_subclass(torch.Tensor).detach() if fetch else value
        elif isinstance(value, Odd):
            raise CheckpointRefused(
                f"{source}: {quoted(key)} {value.trouble}: where you trust the file, {value.remedy}."
            )
        elif is_extra(key):
            kept[key] = _with_values(value, fetch) if fetch else value
        elif key.split(".")[-1] == "num_batches_tracked" and isinstance(value, int) and abs(value) < 1 << 63:
            kept[key] = torch.tensor(value)
        elif "." in key:
            strays.append(f"{quoted(key)} ({kind_of(value)})")
    if strays:
        raise CheckpointRefused(
            f"{source}: the state dict {quoted(network.name)} has values that are no tensors: {listed(strays)}. "
            "Save the network's state_dict() alone."
        )
    return with_versions(kept, all_metadata(network.state_dict))


def _with_values(value: Any, fetch: Fetch, depth: int = 0) -> Any:
    """Anything, in which tensors have their values."""
    if torch.is_tensor(value):
        return fetch(value)
    if depth < MAX_DEPTH and isinstance(value, Mapping):
        return {key: _with_values(inner, fetch, depth + 1) for key, inner in value.items()}
    if depth < MAX_DEPTH and type(value) in (list, tuple):
        return type(value)(_with_values(inner, fetch, depth + 1) for inner in value)
    return value


def _check_key(key: str, source: str) -> None:
    """Refuse a key that is no module's, rather than have a terminal obey it."""
    if not key.isprintable() or len(key) > untrusted.MAX_NAME:
        raise CheckpointRefused(
            f"{source} has a tensor called {quoted(key)}: a name of {len(key):,} characters, which no network gives. "
            "Fetch it again, from a source that you trust."
        )


def as_number(value: Any, source: str) -> float | None:
    """
    A scale factor as a number, whether it was saved as one, as a tensor, or in the text of a safetensors file.

    Raises:
        CheckpointRefused: if it is nothing of that kind.
    """
    if value is None:
        return None
    try:
        if isinstance(value, (int, float, str, torch.Tensor)) and not isinstance(value, bool):
            return float(value)
    except (ValueError, RuntimeError, OverflowError):
        pass  # no number in the text, or several in the tensor
    what = describe(value) if torch.is_tensor(value) else quoted(value)
    raise CheckpointRefused(
        f"{source}: scale_factor must be a number or a tensor with one element, got {what}: save it so, or without it."
    )
