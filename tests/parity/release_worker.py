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


"""What the release's process does for :mod:`tests.parity.release`."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from tests.differences import energy

__all__ = ["Worker"]


class Worker:
    """Builds and calls classes of the release, see :func:`tests.parity.release.release_run`."""

    def __init__(self) -> None:
        torch.set_num_threads(1)

    def run(self, target: str, kwargs, args, state, call_kwargs, grad, seed, strict, fill, train, call) -> Any:
        net = build(target, kwargs, state, seed, strict, fill).train(train)
        if call is None:
            return net.state_dict()
        if seed is not None:
            torch.manual_seed(seed)
        out = getattr(net, call)(*args, **call_kwargs)
        if not grad:
            return detached(out)
        energy(out).backward()
        return detached(out), {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def build(target: str, kwargs, state, seed, strict, fill) -> torch.nn.Module:
    module, _, name = target.rpartition(".")
    if seed is not None:
        torch.manual_seed(seed)
    net = getattr(importlib.import_module(module), name)(**kwargs)
    if state is not None:
        own = net.state_dict() if fill else {}
        net.load_state_dict({**{key: value for key, value in own.items() if key not in state}, **state}, strict=strict)
    return net


def detached(value):
    """``value`` with every tensor inside cut from its graph."""
    if torch.is_tensor(value):
        return value.detach()
    if isinstance(value, (list, tuple)):
        return type(value)(detached(item) for item in value)
    return value
