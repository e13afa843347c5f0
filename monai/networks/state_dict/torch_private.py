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
Every private name of torch that loading reads, in one place. Checked with torch 2.8.0, 2.13.0 and 2.14.1:

- ``Module._load_state_dict_pre_hooks``, whose values are functions or hold one as ``hook``;
- ``Module._load_from_state_dict``, which a layer overrides that loads in a way of its own;
- ``Module._non_persistent_buffers_set``, the names of the buffers that no state dict holds;
- ``state_dict._metadata``, what each module wrote about itself, by its path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn as nn

__all__ = ["loads_in_its_own_way", "metadata_of", "own_tensors"]


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


def metadata_of(state_dict: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """What the module at ``path`` wrote about itself beside its tensors; empty where nothing is there."""
    return getattr(state_dict, "_metadata", {}).get(path, {})
