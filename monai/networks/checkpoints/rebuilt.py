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

"""Whether a network is what its configuration builds, told from its modules, without running it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import partial
from inspect import getattr_static
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import ReferenceType

import numpy as np
import torch
import torch.nn as nn

from monai.networks.construction import RECORD

from .untrusted import listed, shortened, shown

__all__ = ["differences", "has_values_beside", "hidden_modules", "misfits", "silent_buffers"]

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, Enum, np.generic)
WHOLE = (*PLAIN, set, frozenset, type, BuiltinFunctionType, ModuleType)  # are compared without their parts
OF_EVERY_MODULE = frozenset({*vars(nn.Module()), RECORD})  # its tables, and whether it trains
MEASURED = {("VectorQuantizer", "perplexity"), ("DynUNet", "heads"), ("DynUNetSkipLayer", "heads")}
"""Class and attribute of what runs of MONAI's networks leave behind, from random values at construction."""
MISSING = object()


def misfits(net: nn.Module, built: nn.Module) -> Iterator[str]:
    """Why the state dict of a network does not fit the one that was built: keys, shapes, and which tensors are one."""
    own, other = net.state_dict(), built.state_dict()
    for key in sorted(own.keys() - other.keys()):
        yield f"{key} is not built"
    for key in sorted(other.keys() - own.keys()):
        yield f"{key} is built, and not there"
    for key in sorted(own.keys() & other.keys()):
        if own[key].shape != other[key].shape:
            yield f"{key} has the shape {tuple(own[key].shape)}, {tuple(other[key].shape)} is built"
    if _shared(net) != _shared(built):
        yield f"other parameters are one and the same: {_shared(net) or 'none'}, built are {_shared(built) or 'none'}"
    others = dict(built.named_modules(remove_duplicate=False))
    for path, module in net.named_modules(remove_duplicate=False):
        yield from _other_order(path, _children(module), _children(others.get(path, module)))


def differences(net: nn.Module, built: nn.Module) -> Iterator[str]:
    """What of a network's modules, their settings and the buffers that are not saved was changed after construction."""
    alike = _Alike(net, built)
    others = dict(built.named_modules(remove_duplicate=False))
    for path, module in net.named_modules(remove_duplicate=False):
        other, name = others.pop(path, None), path or "the network"
        if other is None or type(module) is not type(other):
            yield f"{name} is a {type(module).__name__}, built is {type(other).__name__ if other else 'none'}"
        elif module.extra_repr() != other.extra_repr():
            yield f"{name} is {shortened(module.extra_repr())}, built is {shortened(other.extra_repr())}"
        else:
            yield from _other_order(path, _parameters(module), _parameters(other))
            yield from (f"{name}.{text}" for text in _settings(module, other, alike))
    yield from (f"{path} is built, and not there" for path in others)
    buffers = dict(net.named_buffers(remove_duplicate=False))
    for key, value in silent_buffers(built).items():
        if key in buffers and not value.is_meta and not _equal(buffers[key], value):
            yield f"the buffer {key}, which is not saved, has other values than are built"


def silent_buffers(net: nn.Module) -> dict[str, torch.Tensor]:
    """Buffers by key that a state dict leaves out."""
    saved = net.state_dict().keys()
    return {key: value for key, value in net.named_buffers(remove_duplicate=False) if key not in saved}


def hidden_modules(net: nn.Module) -> Iterator[str]:
    """Attributes that hold modules with weights which are in no state dict, as a list of Python does."""
    registered = set(net.modules())
    for path, module in net.named_modules():
        for name, value in vars(module).items():
            inside = [] if name in OF_EVERY_MODULE else _modules(value)
            if any(each not in registered and each.state_dict() for each in inside):
                yield f"{path}.{name}" if path else name


def _modules(value: Any) -> list[nn.Module]:
    if isinstance(value, nn.Module):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [module for item in items for module in _modules(item)]


def has_values_beside(net: nn.Module) -> bool:
    """Whether there are values in tensors that a state dict leaves out."""
    if any(value.numel() for value in silent_buffers(net).values()):
        return True
    seen: dict[int, Any] = {id(value): value for value in _places(net).values()}
    own = (vars(module).items() for module in net.modules())
    return any(_has_values(value, seen) for items in own for name, value in items if name not in OF_EVERY_MODULE)


def _has_values(value: Any, seen: dict[int, Any]) -> bool:
    if isinstance(value, WHOLE) or id(value) in seen:
        return False
    seen[id(value)] = value
    if torch.is_tensor(value):
        return value.numel() > 0
    return any(_has_values(part, seen) for part in _taken_apart(value)[1])


def _settings(module: nn.Module, other: nn.Module, alike: _Alike) -> Iterator[str]:
    """Attributes that differ from those that are built, or from those of the class, and new ones that are plain."""
    own, built, cls = vars(module), vars(other), type(module)
    for name in sorted((own.keys() | built.keys()) - OF_EVERY_MODULE):
        if name.startswith("pretrained") or _is_measured(cls, name):
            continue
        value, expected = own.get(name, MISSING), built.get(name, MISSING)
        of_class = getattr_static(cls, name, MISSING)
        if expected is MISSING and callable(getattr(cls, name, None)):
            yield f"{name} was replaced"
        elif expected is MISSING and of_class is MISSING:
            if not name.startswith("_") and _is_plain(value):  # compiling, DDP and PEFT leave private ones behind
                yield f"{name} is {_shown(value)}, and is not built"
        elif expected is MISSING and hasattr(nn.Module, name):
            continue  # as compile() leaves behind
        else:
            value, expected = (of_class if each is MISSING else each for each in (value, expected))
            if not alike(value, expected):
                yield f"{name} is {_shown(value)}, built is {_shown(expected)}"


def _is_measured(cls: type, name: str) -> bool:
    bases = (base.__name__ for base in cls.__mro__ if base.__module__.startswith("monai.networks."))
    return any((base, name) in MEASURED for base in bases)


def _is_plain(value: Any) -> bool:
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, value.values()))
    return isinstance(value, PLAIN)


def _shown(value: Any) -> str:
    return "not there" if value is MISSING else shown(repr(value))


class _Alike:
    """
    Whether attributes of two networks mean the same, told from their parts.

    Modules, parameters and buffers of the networks are the same where they have the same place.

    Args:
        net: the network of the first value.
        built: the network of the second one.
    """

    def __init__(self, net: nn.Module, built: nn.Module) -> None:
        self.places = [{id(value): place for place, value in _places(each).items()} for each in (net, built)]
        self.seen: dict[tuple[int, int], Any] = {}  # with the values, so that no other one gets their ids

    def __call__(self, value: Any, built: Any) -> bool:
        place, expected = self.places[0].get(id(value)), self.places[1].get(id(built))
        if place is not None or expected is not None:
            return place == expected
        if value is built or (id(value), id(built)) in self.seen:
            return True
        if isinstance(value, WHOLE) or isinstance(built, WHOLE):
            return isinstance(value, WHOLE) and isinstance(built, WHOLE) and _same(value, built)
        self.seen[id(value), id(built)] = value, built
        if torch.is_tensor(value) or torch.is_tensor(built):
            return torch.is_tensor(value) and torch.is_tensor(built) and _same_tensor(value, built)
        if isinstance(value, np.ndarray) and isinstance(built, np.ndarray):
            return np.array_equal(value, built, equal_nan=value.dtype.kind == built.dtype.kind == "f")
        (frame, parts), (expected, expected_parts) = _taken_apart(value), _taken_apart(built)
        return frame == expected and all(map(self, parts, expected_parts))


def _taken_apart(value: Any) -> tuple[Any, list[Any]]:
    """What two values have in common if they can be the same, as many parts too, and the parts."""
    if isinstance(value, (list, tuple)):
        return (isinstance(value, list), len(value)), list(value)
    if isinstance(value, dict):
        return list(value), list(value.values())
    if isinstance(value, partial):
        return partial, [value.func, value.args, value.keywords]
    if isinstance(value, MethodType):
        return MethodType, [value.__func__, value.__self__]
    if isinstance(value, FunctionType):
        cells = [_content(cell) for cell in value.__closure__ or ()]
        return (value.__code__, len(cells)), [value.__defaults__, value.__kwdefaults__, *cells]
    if isinstance(value, ReferenceType):
        return ReferenceType, [value()]
    if isinstance(value, nn.Module):  # one that the network does not have as a part
        state = value.state_dict()
        return (type(value), str(value), list(state)), [*state.values(), *_fields(value).values()]
    fields = _fields(value)
    has_own = not fields and any("__eq__" in vars(cls) for cls in type(value).__mro__[:-1])
    return (type(value), list(fields), value if has_own else None), list(fields.values())


def _fields(value: Any) -> dict[str, Any]:
    """Attributes of an object; those of a module without what every module has."""
    if dataclasses.is_dataclass(value):  # also one without a __dict__
        return {each.name: getattr(value, each.name, None) for each in dataclasses.fields(value)}
    slots = [name for cls in type(value).__mro__ for name in vars(cls).get("__slots__", ()) if hasattr(value, name)]
    fields = {**{name: getattr(value, name) for name in slots}, **getattr(value, "__dict__", {})}
    left_out = OF_EVERY_MODULE if isinstance(value, nn.Module) else ()
    return {name: each for name, each in fields.items() if name not in left_out}


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that its function has not set
        return None


def _same(value: Any, built: Any) -> bool:
    if isinstance(value, type) and isinstance(built, type) and "<" in built.__qualname__:
        return value.__qualname__ == built.__qualname__  # one that __init__ defines is another one each time
    if isinstance(built, torch.device) and built.type == "meta":
        return isinstance(value, torch.device)
    return bool(value == built) or (value != value and built != built)


def _same_tensor(value: torch.Tensor, built: torch.Tensor) -> bool:
    """An empty one is there for runs to fill, as a matrix of attention."""
    return built.is_meta or not built.numel() or (value.dtype == built.dtype and _equal(value, built))


def _equal(value: torch.Tensor, built: torch.Tensor) -> bool:
    """Whether a tensor holds what was built, in its own type."""
    if value.shape != built.shape or value.is_meta:
        return False
    value, built = value.detach().cpu(), built.detach().to(value.dtype).cpu()
    return torch.equal(value, built) or bool(((value == built) | (value.isnan() & built.isnan())).all())


def _places(net: nn.Module) -> dict[str, Any]:
    """The modules, parameters and buffers of a network by their keys; of one that it has twice, the first."""
    places: dict[str, Any] = dict(net.named_modules())
    return {**places, **dict(net.named_parameters()), **dict(net.named_buffers())}


def _other_order(path: str, own: Mapping[str, Any], built: Mapping[str, Any]) -> Iterator[str]:
    """Whether a module's own modules or parameters follow one another in another order."""
    order, expected = list(own), list(built)
    if order != expected and sorted(order) == sorted(expected):
        yield f"{path or 'the network'} has the order {listed(order)}, built is {listed(expected)}"


def _children(module: nn.Module) -> dict[str, nn.Module]:
    return dict(module.named_children())


def _parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters(recurse=False))


def _shared(net: nn.Module) -> list[list[str]]:
    """Names of the parameters that are one and the same."""
    names: dict[int, list[str]] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return sorted(sorted(group) for group in names.values() if len(group) > 1)
