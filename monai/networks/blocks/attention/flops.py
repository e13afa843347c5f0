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

"""What torch's counter of floating-point operations has to know about the fused kernel of the CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from monai.networks.state_dict.torch_private import dispatch_modes

__all__ = ["count_attention"]

COUNTER = "torch.utils.flop_counter"
_counted: list[Any] = []


def count_attention() -> None:
    """
    Teach :class:`torch.utils.flop_counter.FlopCounterMode` to count attention on a CPU, once somebody has imported it.

    It counts as torch does for its other fused kernels: two products of matrices forward, five backward, as the kernel
    computes the logits again, where the explicit path has four. A formula that torch or the user has stays.
    """
    if torch.compiler.is_compiling() or _counted:
        return
    counter: Any = sys.modules.get(COUNTER)
    if counter is None:
        return
    formulas: dict[str, Callable] = {
        "_scaled_dot_product_flash_attention_for_cpu": _forward,
        "_scaled_dot_product_flash_attention_for_cpu_backward": _backward,
    }
    for name, formula in formulas.items():
        operation = getattr(torch.ops.aten, name, None)
        if operation is not None and operation not in counter.flop_registry:
            counter.register_flop_formula(operation)(formula)
            _add_to_running(counter, operation)
    _counted.extend(formulas)


def _add_to_running(counter: Any, operation: Any) -> None:
    """A counter that is on already copied the formulas when it was made."""
    for mode in dispatch_modes():
        running = getattr(mode, "counter", None)
        if isinstance(running, counter.FlopCounterMode):
            running.flop_registry.setdefault(operation, counter.flop_registry[operation])


def _forward(q: Sequence[int], k: Sequence[int], v: Sequence[int], *args: Any, **kwargs: Any) -> int:
    batch, heads, queries, width = q
    return 2 * batch * heads * queries * k[2] * (width + v[3])


def _backward(
    gradient: Sequence[int], q: Sequence[int], k: Sequence[int], v: Sequence[int], *args: Any, **kwargs: Any
) -> int:
    batch, heads, queries, width = q
    return 2 * batch * heads * queries * k[2] * (3 * width + 2 * v[3])
