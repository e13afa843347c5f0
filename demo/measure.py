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

"""Differences and times of networks. Runs in the fork's process and in the release's."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

SCRIPTED_CALLS = 3
"""TorchScript profiles its first call and optimizes the next ones."""


def flat(output: Any) -> torch.Tensor:
    """All numbers of a tensor, or of nested lists and tuples of tensors, as one vector on the CPU."""
    if isinstance(output, torch.Tensor):
        return output.detach().float().flatten().cpu()
    return torch.cat([flat(part) for part in output])


def difference(a: Any, b: Any) -> float:
    """Largest absolute difference of two outputs; infinite where their sizes differ, NaN where one holds NaN."""
    x, y = flat(a), flat(b)
    return float((x - y).abs().max()) if x.shape == y.shape else float("inf")


@torch.no_grad()
def seeded(net: Any, inputs: torch.Tensor) -> torch.Tensor:
    """The output as one vector; a network that draws random numbers draws the same ones every time."""
    torch.manual_seed(0)
    return flat(net(inputs))


def exported_difference(net: nn.Module, inputs: torch.Tensor) -> float:
    """Export a network for any batch size, and compare it with the eager one on one sample and on all of them."""
    program = torch.export.export(net, (inputs,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)).module()
    return max(difference(seeded(net, x), seeded(program, x)) for x in (inputs[:1], inputs))


def scripted_difference(net: nn.Module, inputs: torch.Tensor) -> float:
    """Script, save and load a network, and compare it with the eager one on one sample and on all of them."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "network.ts")
        torch.jit.script(net).save(path)
        loaded = torch.jit.load(path, map_location=inputs.device)
    batches: Sequence[torch.Tensor] = (inputs[:1], inputs)
    return max(difference(seeded(net, x), seeded(loaded, x)) for x in batches for _ in range(SCRIPTED_CALLS))


@torch.no_grad()
def seconds(net: nn.Module, inputs: torch.Tensor, calls: int) -> float:
    """Shortest time of a forward pass over some calls, after one that does not count."""
    net(inputs)
    best = float("inf")
    for _ in range(calls):
        _wait(inputs.device)
        start = time.perf_counter()
        net(inputs)
        _wait(inputs.device)
        best = min(best, time.perf_counter() - start)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
