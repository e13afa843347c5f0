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

"""Checks that several processes run together, and the comparison of a split network with one process."""

from __future__ import annotations

import copy
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.utils.checkpoint import checkpoint

from monai.networks.nets.spade_autoencoderkl import SPADEResBlock
from monai.networks.volumes import VolumeSplit, split_volume
from tests.networks.volumes.split_cases import CASES, Case, randomized
from tests.processes import run_ranks

__all__ = ["compared", "keys_as_before", "recompute", "run_checks"]

SECONDS = 60


class Recomputed(nn.Module):
    """A module whose activations the backward pass computes again."""

    works_on_slabs = True

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.computed = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(self.once_more, *args, use_reentrant=False, **kwargs)

    def once_more(self, *args: Any, **kwargs: Any) -> Any:
        self.computed += 1
        return self.inner(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)


def recompute(module: nn.Module) -> list[Recomputed]:
    """Let the backward pass compute the activations of a network's lists of blocks again."""
    blocks = []
    for name, child in list(module.named_children()):
        # the decoder of SPADE knows its blocks by their class
        if isinstance(module, nn.ModuleList) and not isinstance(child, SPADEResBlock):
            module[int(name)] = Recomputed(child)
            blocks.append(module[int(name)])
        else:
            blocks += recompute(child)
    return blocks


def keys_as_before(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state of a network with the keys that it had before :func:`recompute`."""
    return {key.replace("inner.", ""): value for key, value in state.items()}


def run_checks(ranks: int, checks: Mapping[str, Callable[..., Any]], limit: float = 240.0) -> list[dict[str, Any]]:
    """
    Run checks in several processes that share a mesh.

    Args:
        ranks: how many processes.
        checks: functions of a module by name, called with the mesh; a result is a number, text or None.
        limit: seconds, after which the processes are killed.

    Returns:
        for each process what every check returned, or the text of its error
    """
    with tempfile.TemporaryDirectory() as folder:
        run_ranks(_work, ranks, ranks, folder, dict(checks), limit=limit)
        return [torch.load(Path(folder, f"{rank}.pt")) for rank in range(ranks)]


def _work(rank: int, ranks: int, folder: str, checks: dict[str, Callable[..., Any]]) -> None:
    from torch.distributed.device_mesh import init_device_mesh

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    store, timeout = f"file://{folder}/store", timedelta(seconds=SECONDS)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks, timeout=timeout)
    mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("space",))
    said: dict[str, Any] = {}
    for name, check in checks.items():
        try:
            said[name] = check(mesh)
        except Exception:
            said[name] = traceback.format_exc()
        dist.barrier()
    torch.save(said, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def compared(name: str, mesh: Any, recomputing: bool = False) -> dict[str, float]:
    """
    How far a split network is from one process, in outputs, gradients and buffers.

    Args:
        name: of the case.
        mesh: the ranks.
        recomputing: whether the backward pass of the split network computes its blocks again.
    """
    case = CASES[name]
    torch.manual_seed(0)
    net = randomized(case.build()).train(case.train)
    whole = copy.deepcopy(net)
    volume = split_volume(net, mesh, case.axis)
    blocks = recompute(net) if recomputing else []
    inputs = case.inputs()
    slabs = [volume.scatter(x, case.latent, zoom).requires_grad_() for x, zoom in zip(inputs, case.zooms)]
    wholes = [x.clone().requires_grad_() for x in inputs]
    outputs = _outputs_apart(case, volume, _flat(case.call(net, *slabs)), _flat(case.call(whole, *wholes)))
    gradients = [
        _apart(slab.grad, volume.scatter(x.grad, case.latent, zoom)) for slab, x, zoom in zip(slabs, wholes, case.zooms)
    ]
    buffers = [_apart(one, other) for one, other in zip(net.buffers(), whole.buffers()) if other.numel()]
    assert list(keys_as_before(net.state_dict())) == list(whole.state_dict())
    called = [block for block in blocks if block.computed]
    assert bool(called) == recomputing and all(block.computed >= 2 for block in called), "a block was not recomputed"
    return {
        "outputs": outputs,
        "input gradients": max(gradients),
        "weight gradients": _weights_apart(net, whole),
        "buffers": max([0.0, *buffers]),
    }


def _outputs_apart(case: Case, volume: VolumeSplit, found: list, wanted: list) -> float:
    """How far outputs are apart; runs both backward passes, from a weighted sum of all outputs."""
    worst, mine, all_of_it = 0.0, torch.zeros(()), torch.zeros(())
    for out, want in zip(found, wanted):
        weight = torch.randn(want.shape, generator=torch.Generator().manual_seed(9), dtype=want.dtype)
        share = 1.0
        if out.shape == want.shape:  # the same on all ranks
            cut, weights, share = want, weight, 1 / volume.size
        else:
            cut, weights = (_part(case, volume, out, each) for each in (want, weight))
        worst = max(worst, _apart(out, cut))
        mine = mine + (out * weights).sum() * share
        all_of_it = all_of_it + (want * weight).sum()
    mine.backward()
    all_of_it.backward()
    return worst


def _part(case: Case, volume: VolumeSplit, out: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """This rank's part of an output."""
    if not case.tokens:
        sizes: Sequence[Any] = [None] * volume.size
        dist.all_gather_object(sizes, out.shape[case.axis + 2])
        begin = sum(sizes[: volume.rank])
        return whole.narrow(case.axis + 2, begin, out.shape[case.axis + 2])
    grid = [size // 4 for size in case.shapes[0][2:]]
    begin, end = volume.slabs_of(case.shapes[0][case.axis + 2]).range_of(volume.rank)
    on_grid = whole.view(whole.shape[0], *grid, -1).narrow(1 + case.axis, begin // 4, (end - begin) // 4)
    return on_grid.reshape(whole.shape[0], -1, whole.shape[-1])


def _weights_apart(net: Any, whole: Any) -> float:
    """How far the sums of the ranks' gradients are from those of one process."""
    pairs = [(one, other) for one, other in zip(net.parameters(), whole.parameters()) if other.grad is not None]
    largest = max(float(other.grad.abs().max()) for _, other in pairs)
    worst = 0.0
    for one, other in pairs:
        dist.all_reduce(one.grad)
        # a gradient that is nothing but the rounding of others has no digits of its own
        scale = max(float(other.grad.abs().max()), 1e-2 * largest)
        worst = max(worst, float((one.grad - other.grad).abs().max()) / scale)
    return worst


def _flat(outputs: Any) -> list[torch.Tensor]:
    return [outputs] if isinstance(outputs, torch.Tensor) else [each for part in outputs for each in _flat(part)]


def _apart(one: Any, other: Any) -> float:
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-30))
