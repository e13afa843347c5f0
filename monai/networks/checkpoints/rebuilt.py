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

from collections.abc import Iterator
from enum import Enum
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
import torch.nn as nn

from .untrusted import shortened

__all__ = ["differences", "has_values_beside", "hidden_modules", "misfits", "silent_buffers"]

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, Enum, np.generic, np.ndarray)
FUNCTIONS = (FunctionType, BuiltinFunctionType, type)
OF_EVERY_MODULE = frozenset(vars(nn.Module()))  # its tables, and whether it trains


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


def differences(net: nn.Module, built: nn.Module) -> Iterator[str]:
    """What of a network's modules, their settings and the buffers that are not saved was changed after construction."""
    others = dict(built.named_modules(remove_duplicate=False))
    for path, module in net.named_modules(remove_duplicate=False):
        other, name = others.pop(path, None), path or "the network"
        if other is None or type(module) is not type(other):
            yield f"{name} is a {type(module).__name__}, built is {type(other).__name__ if other else 'none'}"
        elif module.extra_repr() != other.extra_repr():
            yield f"{name} is {shortened(module.extra_repr())}, built is {shortened(other.extra_repr())}"
        else:
            yield from (f"{name}.{text}" for text in _settings(module, other))
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
    beside = [*silent_buffers(net).values(), *(value for module in net.modules() for value in vars(module).values())]
    return any(torch.is_tensor(value) and value.numel() for value in beside)


def _settings(module: nn.Module, other: nn.Module) -> Iterator[str]:
    """Plain attributes that differ, tensors that are no parameters, and methods that the module itself has replaced."""
    own, built = vars(module), vars(other)
    for name in sorted(own.keys() - OF_EVERY_MODULE):
        value, expected = own[name], built.get(name)
        if name not in built:
            if callable(getattr(type(module), name, None)):
                yield f"{name} was replaced"
        elif torch.is_tensor(value) and torch.is_tensor(expected):
            # a single value may be what the last forward measured, as the perplexity of a VQVAE
            if expected.numel() > 1 and not expected.is_meta and not _equal(value, expected):
                yield f"{name}, a tensor that is not saved, has other values than are built"
        elif name.startswith("pretrained"):
            continue
        elif (_says_all(value) or _says_all(expected)) and not _same(value, expected):
            yield f"{name} is {shortened(repr(value))}, built is {shortened(repr(expected))}"


def _says_all(value: Any) -> bool:
    """Whether ``==`` tells if two are the same: plain values, what is made of them, and named functions."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_says_all, value))
    if isinstance(value, dict):
        return all(map(_says_all, value.values()))
    if isinstance(value, FUNCTIONS):
        return "<" not in value.__qualname__  # one that __init__ defines is another one each time
    return isinstance(value, PLAIN)


def _same(value: Any, built: Any) -> bool:
    if torch.is_tensor(value) != torch.is_tensor(built):
        return False
    if isinstance(value, np.ndarray) or isinstance(built, np.ndarray):
        return np.array_equal(value, built)
    return bool(value == built)


def _equal(value: torch.Tensor, built: torch.Tensor) -> bool:
    """Whether a tensor holds what was built, in its own type."""
    return value.shape == built.shape and torch.equal(value.cpu(), built.to(value.dtype).cpu())


def _shared(net: nn.Module) -> list[list[str]]:
    """Names of the parameters that are one and the same."""
    names: dict[int, list[str]] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return sorted(sorted(group) for group in names.values() if len(group) > 1)
