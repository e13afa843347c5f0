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
Samples and decodes MAISI's volume on several processes, each with a slab of it.

``torchrun --nproc-per-node 2 -m benchmarks.maisi_rank`` from the root prints what it costs a process, on the CPU with
gloo; :mod:`benchmarks.maisi` compares it with one process.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from benchmarks.maisi_model import STRIDE, Inputs, MaisiTask, autoencoder, drawn_latent, inputs, networks, sample
from benchmarks.maisi_worker import DECODE, SAMPLING, Cost, Outcome, costs_of
from benchmarks.measure import CLOCKS
from benchmarks.result import MEGA
from monai.networks.volumes import split_volume

__all__ = ["add_task", "flags", "main", "run_rank", "task_of"]

BY_TORCHRUN = "run it on several processes: torchrun --nproc-per-node 2 -m benchmarks.maisi_rank"
MIB = 2**20


def add_task(parser: argparse.ArgumentParser) -> None:
    """Add the options of a task but its size."""
    default = MaisiTask()
    parser.add_argument("--scheduler", default=default.scheduler, help="rflow or ddpm (%(default)s)")
    parser.add_argument(
        "--narrow", type=int, default=default.narrow, help="by what channels are divided, 1: as published (%(default)s)"
    )
    parser.add_argument("--steps", type=int, default=default.steps, help="of the sampling (%(default)s)")
    parser.add_argument(
        "--memory", type=int, default=default.memory // MIB, help="MiB of a streamed decode (%(default)s)"
    )
    parser.add_argument("--drawn", action="store_true", help="decode noise, without sampling")


def task_of(args: argparse.Namespace, size: int) -> MaisiTask:
    """
    The task that the command line names.

    Raises:
        ValueError: if there is no such task.
    """
    return MaisiTask(args.scheduler, size, args.narrow, args.steps, args.memory * MIB, not args.drawn)


def flags(task: MaisiTask) -> list[str]:
    """The options that name a task but its size, without those that are as by default."""
    default = MaisiTask()
    parts = []
    for name in ("scheduler", "narrow", "steps"):
        value = getattr(task, name)
        parts += [f"--{name}", str(value)] if value != getattr(default, name) else []
    parts += ["--memory", str(task.memory // MIB)] if task.memory != default.memory else []
    return parts if task.sampled else [*parts, "--drawn"]


def main(argv: Sequence[str] | None = None) -> int:
    """Sample and decode on this process's slab; 1 where that cannot be."""
    parser = argparse.ArgumentParser(prog="torchrun --nproc-per-node 2 -m benchmarks.maisi_rank", description=__doc__)
    add_task(parser)
    parser.add_argument("--size", type=int, default=MaisiTask().size, help="voxels along every axis (%(default)s)")
    parser.add_argument("--timed", type=int, default=1, help="how many runs are timed (%(default)s)")
    parser.add_argument("--watched", action="store_true", help="watch memory in one more run")
    parser.add_argument("--out", type=Path, help="file to write everything to")
    args = parser.parse_args(argv)
    if not dist.is_torchelastic_launched():
        print(f"no other process here, {BY_TORCHRUN}", file=sys.stderr)
        return 1
    if not args.timed and not args.watched:
        parser.error("--timed 0 measures nothing without --watched")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("space",))
        outcome = run_rank(task_of(args, args.size), mesh, args.timed, args.watched)
        if dist.get_rank() == 0:
            _report(outcome, args.out)
    except ValueError as error:  # every rank says it: torchrun ends the others when the first one ends
        print(f"maisi_rank failed: {error}", file=sys.stderr, flush=True)
        return 1
    finally:
        dist.destroy_process_group()
    return 0


def run_rank(task: MaisiTask, mesh: DeviceMesh, timed: int, watched: bool) -> Outcome:
    """
    Sample and decode on this rank's slab.

    Args:
        task: what to do.
        mesh: the ranks that share the volume.
        timed: how many runs are timed.
        watched: whether memory is watched, in one more run.

    Returns:
        the whole latent and image, and of every cost that of the rank where it is largest

    Raises:
        ValueError: if the volume has too few slices for the ranks.
    """
    if watched:
        run_rank(MaisiTask("rflow", STRIDE * 8 * mesh.size(), task.narrow, 1), mesh, 1, False)  # loads what stays
    costs = {}
    if task.sampled:
        costs[SAMPLING], slab = costs_of(_sampling(task, mesh), timed, watched)
    net: Any = autoencoder(task)
    volume = split_volume(net, mesh)
    if not task.sampled:
        slab = volume.scatter(drawn_latent(task), latent=True)
    with torch.no_grad():
        dist.barrier()
        costs[DECODE], image = costs_of(lambda: net.decode_stage_2_outputs(slab), timed, watched)
    return Outcome(_largest(costs), volume.gather(slab), volume.gather(image))


def _sampling(task: MaisiTask, mesh: DeviceMesh) -> Any:
    """The sampling of a slab, as a function."""
    nets, whole = networks(task), inputs(task)
    volume, control = split_volume(nets.unet, mesh), split_volume(nets.control, mesh)
    given = Inputs(volume.scatter(whole.noise), control.scatter(whole.mask, zoom=STRIDE), whole.conditions)
    del whole
    dist.barrier()
    return lambda: sample(task, nets, given, volume)


def _largest(costs: dict[str, Cost]) -> dict[str, Cost]:
    """Of every number the largest over the ranks."""
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, costs)
    found = {}
    for stage in costs:
        each = [of_rank[stage] for of_rank in ranks]
        seconds = {clock: max(cost.seconds[clock] for cost in each) for clock in CLOCKS}
        if each[0].process is None:
            found[stage] = Cost(seconds)
        else:
            found[stage] = Cost(seconds, max(cost.process for cost in each), max(cost.tensors for cost in each))
    return found


def _report(outcome: Outcome, out: Path | None) -> None:
    if out is not None:
        out.write_bytes(pickle.dumps(outcome))
        return
    for stage, cost in outcome.costs.items():
        memory = "" if cost.process is None else f", {cost.process / MEGA:,.0f} MB of the process"
        tensors = "" if cost.tensors is None else f", {cost.tensors / MEGA:,.0f} MB of tensors"
        print(f"{stage}: {cost.seconds['wall']:.2f} s{memory}{tensors}, by the rank that needs most")


if __name__ == "__main__":
    sys.exit(main())
