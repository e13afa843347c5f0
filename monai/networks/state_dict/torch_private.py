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
Every private name of torch that this package uses, in one place: whatever else needs one calls a function of this
module. All of them were checked with torch 2.8.0, 2.13.0 and 2.14.1 (``./runtests.sh --torch VERSION``).

Of modules:

- ``Module._load_state_dict_pre_hooks``, whose values are functions or hold one as ``hook``;
- ``Module._load_from_state_dict``, which a layer overrides that loads in a way of its own;
- ``Module._non_persistent_buffers_set``, the names of the buffers that no state dict holds;
- ``Module._parameters``, ``_buffers``, ``_modules``: what a module holds itself, by name;
- ``Module._forward_hooks``, ``_forward_pre_hooks``, ``_backward_hooks``, ``_backward_pre_hooks``: a module's own hooks;
- ``Module._compiled_call_impl``: None unless ``module.compile()`` was called;
- ``_orig_mod``, the module inside of the one that ``torch.compile(module)`` returns.

A class cannot call these two through a function, it has to have them: ``Module._version``, which its state dict tells
(:mod:`~monai.networks.state_dict.hooks`), and ``Module._apply``, which moves a module's tensors
(:mod:`monai.networks.blocks.attention.block` and :mod:`~monai.networks.blocks.attention.cache`).

Of state dicts:

- ``state_dict._metadata``, what each module wrote about itself, by its path.

Of derivatives:

- ``torch.autograd.forward_ad._current_level``: at least 0 inside of forward-mode differentiation;
- ``torch._C._functorch.maybe_current_level``: None outside of ``torch.func``'s transforms;
- ``torch._C._current_autograd_node``: inside a hook of a node of the backward graph, that node;
- ``torch._C._current_graph_task_id``: -1 unless a backward pass is running;
- ``node._saved_query``, ``_saved_key``, ``_saved_value``: what the fused kernels keep for their gradient;
- ``torch._C._autograd._top_saved_tensors_default_hooks``: None unless hooks keep what the backward pass needs, as
  under activation checkpointing.

Of the compiler and of dispatch modes:

- ``function._dynamo_marked_constant``: torch.compile calls the function and takes what it returns for a constant, as
  ``torch.compiler.assume_constant_result`` has it, which would import the compiler here;
- ``function._torchdynamo_disable``: the compiler calls the function instead of looking into it, as
  ``torch.compiler.disable`` has it, which would import the compiler here;
- ``torch.utils._python_dispatch._get_current_dispatch_mode_stack``: the dispatch modes that are on.

Of process groups:

- ``ProcessGroup._get_backend``, whose ``options._timeout`` is how long a rank waits for the others.
"""

from __future__ import annotations

import functools
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.nn as nn
from torch._C._functorch import maybe_current_level
from torch.autograd import forward_ad
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

__all__ = [
    "all_metadata",
    "children_by_key",
    "dispatch_modes",
    "has_hooks",
    "has_hooks_that_see_values",
    "has_pre_hooks",
    "inputs_of_this_node",
    "inside_of_compiled",
    "is_compiled_in_place",
    "is_plain",
    "is_transformed",
    "is_watched",
    "loads_in_its_own_way",
    "metadata_of",
    "not_compiled",
    "own_module",
    "own_tensors",
    "remove_buffer",
    "runs_backward",
    "saves_through_hooks",
    "timeout_of",
    "twin_for_a_while",
    "twin_of_class",
    "with_metadata",
]

Function = TypeVar("Function", bound=Callable)


def loads_in_its_own_way(module: nn.Module, known_hook: Callable) -> bool:
    """
    Tell whether a module itself, without its children, changes keys when it loads: nobody else can judge those.

    Args:
        module: the module.
        known_hook: a hook before loading that does not count.
    """
    cls = type(module)
    if cls._load_from_state_dict is not nn.Module._load_from_state_dict:
        return True
    if cls.set_extra_state is not nn.Module.set_extra_state:
        return True
    hooks = module._load_state_dict_pre_hooks
    return bool(hooks) and any(getattr(hook, "hook", hook) is not known_hook for hook in hooks.values())


def own_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and saved buffers of a module itself, without its children, by name."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield name, parameter
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            yield name, buffer


def children_by_key(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Children of a module by the name in their keys: one that has two names is saved, and loaded, under both."""
    for name, child in module._modules.items():
        if child is not None:
            yield name, child


def own_module(module: nn.Module, name: str) -> nn.Module | None:
    """A child of a module, past any attribute of the same name that a class or a user has put before it."""
    return module._modules[name]


@contextmanager
def twin_for_a_while(module: Any, children: Mapping[str, nn.Module]) -> Iterator[Any]:
    """
    A second module of the same class, with the same tensors and attributes, and some other children. What is set on it,
    or taken from it, while the context is open is set on the module in the end.
    """
    twin = object.__new__(type(module))
    twin.__dict__ = {**module.__dict__, "_modules": {**module._modules, **children}}
    attributes, modules = dict(twin.__dict__), dict(twin._modules)
    own = {id(child): module._modules[name] for name, child in children.items()}
    try:
        yield twin
    finally:
        _carry_over(attributes, twin.__dict__, module.__dict__, own)
        _carry_over(modules, twin._modules, module._modules, own)


def _carry_over(before: dict[str, Any], after: dict[str, Any], target: dict[str, Any], own: Mapping[int, Any]) -> None:
    """Change ``target`` as ``before`` was changed to ``after``, with the module's own children for the twin's."""
    for name in before.keys() - after.keys():
        target.pop(name, None)
    for name, value in after.items():
        if name not in before or value is not before[name]:
            target[name] = own.get(id(value), value)


def twin_of_class(
    module: nn.Module, cls: type[nn.Module], children: Mapping[str, nn.Module], unhooked: Callable[[Callable], bool]
) -> nn.Module:
    """A second module, of the class ``cls``, with the same tensors, attributes and hooks but those ``unhooked``."""
    twin: nn.Module = object.__new__(cls)
    twin.__dict__ = {**module.__dict__, "_modules": {name: children.get(name) for name in module._modules}}
    for name in ("_forward_pre_hooks", "_forward_hooks"):
        hooks = module.__dict__[name].items()
        twin.__dict__[name] = OrderedDict((key, hook) for key, hook in hooks if not unhooked(hook))
    return twin


def remove_buffer(module: nn.Module, name: str) -> None:
    """Forget a buffer, where the module has one of that name."""
    module._buffers.pop(name, None)


def all_metadata(state_dict: Any) -> Any:
    """What every module wrote about itself beside its tensors, by its path, unchecked; empty where nothing is there."""
    return getattr(state_dict, "_metadata", {})


def with_metadata(tensors: Mapping[str, Any], written: Mapping[str, Any]) -> OrderedDict[str, Any]:
    """A copy of a state dict in which modules have written something about themselves, by their paths."""
    copy = OrderedDict(tensors)
    copy._metadata = OrderedDict(written)  # type: ignore[attr-defined]
    return copy


def metadata_of(state_dict: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """What the module at ``path`` wrote about itself beside its tensors; empty where nothing is there."""
    found: Mapping[str, Any] = all_metadata(state_dict).get(path, {})
    return found


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has forward or backward hooks of its own, not counting those of all modules."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def has_hooks_that_see_values(module: nn.Module) -> bool:
    """Whether a module has hooks of its own, not counting those that compute its weights before it runs."""
    weights = (WeightNorm, SpectralNorm)
    before = [hook for hook in module._forward_pre_hooks.values() if not isinstance(hook, weights)]
    return bool(before or module._forward_hooks or module._backward_hooks or module._backward_pre_hooks)


def is_watched(module: nn.Module) -> bool:
    """Whether somebody has hooks on a module, or has replaced its forward: then it has to be called."""
    return has_hooks(module) or "forward" in module.__dict__


def has_pre_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks of its own that run before its forward."""
    return bool(module._forward_pre_hooks)


def is_plain(module: nn.Module | None, kind: type[nn.Module]) -> bool:
    """
    Tell whether what a module computes may be computed without calling it: it is of that very class, and nobody has
    hooks on it or has replaced its forward.
    """
    return type(module) is kind and not is_watched(module)


def inside_of_compiled(module: nn.Module) -> nn.Module | None:
    """The module inside of the one that ``torch.compile(module)`` returns; None for any other module."""
    return module._modules["_orig_mod"] if "_orig_mod" in module._modules else None  # a script has no get()


def is_compiled_in_place(module: nn.Module) -> bool:
    """Whether ``module.compile()`` was called."""
    return module._compiled_call_impl is not None


def is_transformed() -> bool:
    """Whether forward-mode differentiation is on, or a transform of ``torch.func``: ``grad``, ``jvp``, ``vmap``, ..."""
    return maybe_current_level() is not None or forward_ad._current_level >= 0


is_transformed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def inputs_of_this_node() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inside a hook of a fused kernel's node: its queries, keys and values, through which gradients flow."""
    node: Any = torch._C._current_autograd_node()
    return node._saved_query, node._saved_key, node._saved_value


def runs_backward() -> bool:
    """Whether a backward pass is running."""
    return torch._C._current_graph_task_id() != -1


def saves_through_hooks() -> bool:
    """Whether hooks keep what the backward pass needs: some of them, such as checkpointing's, give it out once only."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def dispatch_modes() -> list[Any]:
    """The dispatch modes that see every operation now."""
    return _get_current_dispatch_mode_stack()


def not_compiled(function: Function) -> Function:
    """``function``, which a compiled graph breaks off for; the compiler is not imported where nobody compiles."""
    disabled: list[Callable] = []

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args, **kwargs)

    run._torchdynamo_disable = True  # type: ignore[attr-defined]
    return cast(Function, run)


def timeout_of(group: Any) -> str:
    """How long a rank of a process group waits for the others, as text."""
    for device in ("cuda", "cpu"):
        try:
            return f"{group._get_backend(torch.device(device)).options._timeout.total_seconds():g} seconds"
        except (AttributeError, RuntimeError):  # the group has no backend for this device, or one without options
            continue
    return "its process group's length"
