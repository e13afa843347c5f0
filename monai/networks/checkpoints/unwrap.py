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

"""The networks inside of what trainers and wrappers save: found by their structure, without the wrappers' prefixes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch
import torch.nn as nn

from monai.networks.state_dict.torch_private import all_metadata, with_metadata

from .stand_ins import kind_of
from .tensors import Odd
from .untrusted import listed, quoted

__all__ = [
    "MAX_DEPTH",
    "MOST_PARTS",
    "Network",
    "State",
    "Target",
    "describe",
    "find_networks",
    "is_average",
    "is_extra",
    "parts",
    "peel",
    "under",
    "with_versions",
]

ALWAYS_WRAPPERS = ("module", "_orig_mod")  # DataParallel and DistributedDataParallel; torch.compile
OFTEN_WRAPPERS = ("model", "net", "network")  # what users call the one network inside of a module of theirs
COMPILED = "_orig_mod."
MAX_WRAPPERS = 8  # around one another
LIGHTNING = "pytorch-lightning_version"
LIGHTNING_TRAINER = ("callbacks", "loops", "optimizer_states", "lr_schedulers", "hyper_parameters")
BARE_NAME = "state_dict"  # the name of a network that lies in the file without a dictionary around it
MAX_DEPTH = 8  # of dictionaries in one another
MOST_PARTS = 64  # modules of a LightningModule that may be networks of their own
# What trainers call the moving average of a network's weights.
AVERAGE = re.compile(r"(?:^|[_./])(?:ema|swa|averaged?|averaging|shadow)(?:$|[_./])", re.IGNORECASE)


@dataclass(frozen=True)
class State:
    """
    A dictionary of tensors in a checkpoint.

    Args:
        path: the keys that lead to it.
        tensors: its entries; those that are no tensors belong to the trainer.
        wrappers: what is around it, outermost first, with the prefixes that were removed.
        scale_factor: what the file holds under this name beside it.
        is_lightning: whether it is the state dict of a LightningModule.
    """

    path: tuple[str, ...]
    tensors: dict[str, Any]
    wrappers: tuple[str, ...]
    scale_factor: Any = None
    is_lightning: bool = False


class Target:
    """
    What the network that is to be loaded expects.

    Args:
        net: the network.
    """

    def __init__(self, net: nn.Module) -> None:
        tensors = {key: value for key, value in net.state_dict().items() if torch.is_tensor(value)}
        self.shapes = {key: None if nn.parameter.is_lazy(t) else t.shape for key, t in tensors.items()}
        self.modules = modules(self.shapes)

    def rank(self, tensors: Mapping[str, Any]) -> int:
        """How well tensors match: 3 every key and shape, 2 every top-level module, 1 one of them, 0 none."""
        if all(key in tensors and getattr(tensors[key], "shape", None) == shape for key, shape in self.shapes.items()):
            return 3
        shared = self.modules & modules(tensors)
        return 2 if shared == self.modules else int(bool(shared))

    def closeness(self, tensors: Mapping[str, Any]) -> tuple[int, int]:
        """The rank, and how many keys are shared."""
        return self.rank(tensors), len(self.shapes.keys() & tensors.keys())


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
        return _kind(tree) if isinstance(tree, Odd) else f"a {_kind(tree)}"
    if not tree:
        return "an empty dictionary"
    return f"a dictionary with {listed([f'{quoted(key)} ({_kind(value)})' for key, value in tree.items()])}"


def _kind(value: Any) -> str:
    if isinstance(value, Odd):
        return value.kind
    return "optimizer state" if _is_optimizer(value) else kind_of(value)


def _state_dicts(tree: Any, around: State | None = None, seen: set[int] | None = None) -> Iterator[State]:
    """The dictionaries of tensors at any depth below ``tree``."""
    around = around or State((), {}, ())
    seen = set() if seen is None else seen
    if not isinstance(tree, (Mapping, list, tuple)) or id(tree) in seen or len(around.path) > MAX_DEPTH:
        return
    seen.add(id(tree))
    if not isinstance(tree, Mapping):
        tree = {place: value for place, value in enumerate(tree) if isinstance(value, (Mapping, list, tuple))}
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
            or is_extra(str(key))
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
        yield replace(around, tensors=with_versions(own, all_metadata(tree)))


def _is_optimizer(value: Any) -> bool:
    return isinstance(value, Mapping) and any(str(key).split(".")[0] == "param_groups" for key in value)


def _is_array(value: Any, dims: int = 1) -> bool:
    if torch.is_tensor(value):
        return (value.is_floating_point() or value.is_complex()) and value.dim() >= dims
    return isinstance(value, Odd)


def _has_weight_matrix(tensors: Mapping[str, Any]) -> bool:
    return any(key.endswith("weight") and _is_array(value, 2) for key, value in tensors.items())


def _split(state: State, target: Target | None) -> list[State]:
    """
    The networks in one dictionary of tensors: a LightningModule holds each of its own under a prefix, and what averages
    weights may hold the average beside the network.
    """
    whole = peel(state, target)
    inner = parts(strip(state, ("_orig_mod",)))
    splits = state.is_lightning or any(is_average(part.path[-1]) for part in inner)
    if not splits or len(inner) > MOST_PARTS or len(state.path) > 2 * MAX_DEPTH:
        return [whole]
    pieces = [piece for part in inner for piece in _split(part, target)]
    if target is not None and pieces and target.rank(whole.tensors):
        if target.closeness(whole.tensors) >= max(target.closeness(piece.tensors) for piece in pieces):
            return [whole]
    return pieces or [whole]


def is_average(name: str) -> bool:
    """Whether something is called like a moving average of weights."""
    return AVERAGE.search(name) is not None


def _short_names(paths: list[tuple[str, ...]]) -> list[str]:
    """The paths as names, without the parts at the front that tell nothing apart."""
    paths = [path or (BARE_NAME,) for path in paths]
    depth = min((len(path) for path in paths), default=1) - 1
    common = len(list(takewhile(lambda column: len(set(column)) == 1, zip(*(path[:depth] for path in paths)))))
    return ["/".join(path[common:]) for path in paths]


def is_extra(key: str) -> bool:
    return key.split(".")[-1] == "_extra_state"


def peel(state: State, target: Target | None) -> State:
    """
    Remove the prefixes that all keys share, as far as a wrapper wrote them, and those of compiled submodules.

    The target tells which do. Without one, or where nothing matches it, they are those that wrappers are known by.
    """
    if target is not None:
        options = [state]
        while (prefix := _shared_prefix(options[-1])) is not None and len(options) <= MAX_WRAPPERS:
            options.append(under(options[-1], prefix))
        best = max(options, key=lambda option: target.closeness(option.tensors))  # the least peeled of the best
        if target.rank(best.tensors):
            return _without_compiled(best, target)
    return _without_compiled(strip(state, (*ALWAYS_WRAPPERS, *OFTEN_WRAPPERS)), target)


def strip(state: State, wrappers: tuple[str, ...]) -> State:
    """Remove the prefixes that all keys share and ``wrappers`` names."""
    while (prefix := _shared_prefix(state)) is not None and prefix[:-1] in wrappers:
        inner = under(state, prefix)
        if prefix[:-1] in OFTEN_WRAPPERS and all(module.isdigit() for module in modules(inner.tensors)):
            break  # numbered children: the prefix is the name of a Sequential of the network, as in MONAI's UNet
        state = inner
    return state


def parts(state: State) -> list[State]:
    """What lies under each of the top-level prefixes, of which a file may have as many as tensors."""
    tensors = _by_first_name({key: value for key, value in state.tensors.items() if "." in key})
    versions = _by_first_name(_versions(state.tensors))
    scale_factor = state.tensors.get("scale_factor", state.scale_factor)
    return [
        replace(
            state,
            path=(*state.path, name),
            tensors=with_versions(inner, versions.get(name, {})),
            wrappers=(*state.wrappers, f"{name}."),
            scale_factor=scale_factor,
            is_lightning=False,
        )
        for name, inner in tensors.items()
    ]


def under(state: State, prefix: str) -> State:
    """The tensors whose keys begin with ``prefix``, without it."""
    tensors = {key[len(prefix) :]: value for key, value in state.tensors.items() if key.startswith(prefix)}
    versions = {p[len(prefix) :]: v for p, v in _versions(state.tensors).items() if f"{p}.".startswith(prefix)}
    return replace(state, tensors=with_versions(tensors, versions), wrappers=(*state.wrappers, prefix))


def _by_first_name(table: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The entries by the first name of their keys, and there by the rest of them."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in table.items():
        name, _, rest = key.partition(".")
        found.setdefault(name, {})[rest] = value
    return found


def _without_compiled(state: State, target: Target | None) -> State:
    """Remove the ``_orig_mod.`` of compiled submodules, unless the target has some or two keys would become one."""
    if not any(f".{COMPILED}" in key for key in state.tensors):
        return state
    tensors = {_plain(key): value for key, value in state.tensors.items()}
    if len(tensors) < len(state.tensors) or (target is not None and any(COMPILED in key for key in target.shapes)):
        return state
    versions = {_plain(f"{path}.")[:-1]: version for path, version in _versions(state.tensors).items()}
    return replace(state, tensors=with_versions(tensors, versions), wrappers=(*state.wrappers, f"*.{COMPILED}"))


def with_versions(tensors: dict[str, Any], versions: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict with the versions of its modules, where torch looks for them when it loads."""
    return with_metadata(tensors, versions) if versions else tensors


def modules(keys: Iterable[str]) -> set[str]:
    """The top-level modules."""
    return {key.split(".")[0] for key in keys}


def _versions(tensors: Any) -> Mapping[str, Any]:
    versions = all_metadata(tensors)
    return versions if isinstance(versions, Mapping) else {}


def _shared_prefix(state: State) -> str | None:
    """The prefix of all keys, but for those of counters beside it, as AveragedModel and EMA classes write them."""
    inside = [key for key, value in state.tensors.items() if "." in key or not _is_counter(key, value)]
    names = {key.partition(".")[0] if "." in key else None for key in inside}
    name = names.pop() if len(names) == 1 else None
    return None if name is None else f"{name}."


def _is_counter(key: str, value: Any) -> bool:
    """Whether an entry beside the modules is none of a network: a number, or what is no tensor at all."""
    if torch.is_tensor(value):
        return value.dim() == 0 and not value.is_floating_point() and not value.is_complex()
    return not key.endswith("_extra_state")


def _plain(path: str) -> str:
    return re.sub(r"(?<=\.)_orig_mod\.", "", path)
