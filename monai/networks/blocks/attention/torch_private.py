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
Every private name of torch that attention reads, in one place. Checked with torch 2.8.0, 2.13.0 and 2.14.1:

- ``Module._forward_hooks``, ``_forward_pre_hooks``, ``_backward_hooks``, ``_backward_pre_hooks``: a module's own hooks;
- ``Module._apply``, which moves a module's tensors, and ``_modules`` and ``_buffers``, which hold them: used where an
  attention block is moved, unpickled and asked for its dropout;
- ``torch.autograd.forward_ad._current_level``: at least 0 inside of forward-mode differentiation;
- ``torch._C._functorch.maybe_current_level``: None outside of ``torch.func``'s transforms;
- ``function._dynamo_marked_constant``: torch.compile calls the function and takes what it returns for a constant, as
  ``torch.compiler.assume_constant_result`` has it, which would import the compiler here;
- ``torch._C._current_autograd_node``: inside a hook of a node of the backward graph, that node;
- ``node._saved_query``, ``_saved_key``, ``_saved_value``: what the fused kernels keep for their gradient;
- ``torch._C._autograd._top_saved_tensors_default_hooks``: None unless hooks keep what the backward pass needs, as
  under activation checkpointing;
- ``torch.utils._python_dispatch._get_current_dispatch_mode_stack``: the dispatch modes that are on.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
from torch._C._functorch import maybe_current_level
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

__all__ = [
    "dispatch_modes",
    "has_hooks",
    "inputs_of_this_node",
    "is_plain",
    "is_transformed",
    "saves_through_hooks",
]


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has forward or backward hooks of its own, not counting those of all modules."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def is_plain(module: nn.Module | None, kind: type[nn.Module]) -> bool:
    """
    Tell whether what a module computes may be computed without calling it: it is of that very class, and nobody has
    hooks on it or has replaced its forward.
    """
    return (
        type(module) is kind
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and not module._backward_hooks
        and not module._backward_pre_hooks
        and "forward" not in module.__dict__
    )


def is_transformed() -> bool:
    """Whether forward-mode differentiation is on, or a transform of ``torch.func``: ``grad``, ``jvp``, ``vmap``, ..."""
    return maybe_current_level() is not None or forward_ad._current_level >= 0


is_transformed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def inputs_of_this_node() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inside a hook of a fused kernel's node: its queries, keys and values, through which gradients flow."""
    node: Any = torch._C._current_autograd_node()
    return node._saved_query, node._saved_key, node._saved_value


def saves_through_hooks() -> bool:
    """Whether hooks keep what the backward pass needs: some of them, such as checkpointing's, give it out once only."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def dispatch_modes() -> list[Any]:
    """The dispatch modes that see every operation now."""
    return _get_current_dispatch_mode_stack()
