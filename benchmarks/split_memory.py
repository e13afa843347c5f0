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
Memory that each of several processes needs to decode its slab of a volume, on the CPU with gloo.

``python -m benchmarks.split_memory`` decodes a latent with an AutoencoderKL on 1, 2 and 4 processes, without gradients
and with a backward pass, and prints a table: of the rank that needs most, by how much the process grew, and how many
bytes of tensors lived at once beside weights and inputs.
"""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh

from benchmarks.maisi_worker import costs_of
from benchmarks.measure import FIXED_ALLOCATION
from benchmarks.result import MEGA
from monai.networks.nets import AutoencoderKL
from monai.networks.volumes import split_volume

__all__ = ["Need", "main", "measure", "table"]

STRIDE, LATENT_CHANNELS = 2, 4
OPTIONS: dict[str, Any] = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 1,
    "num_res_blocks": (1, 1),
    "channels": (16, 16),
    "attention_levels": (False, False),
    "latent_channels": LATENT_CHANNELS,
    "norm_num_groups": 8,
    "with_encoder_nonlocal_attn": False,
    "with_decoder_nonlocal_attn": False,
}
SMALL = 8
"""Latents along an axis, for each rank, of a first decode that loads what stays."""


@dataclass(frozen=True)
class Need:
    """
    What the rank needs that needs most, in bytes.

    Args:
        process: by how much its own memory grew.
        tensors: of its tensors at once, without weights and inputs.
        sent: to other ranks.
    """

    process: int
    tensors: int
    sent: int


def measure(ranks: int, size: int, backward: bool) -> Need:
    """
    Decode on several processes.

    Args:
        ranks: how many.
        size: voxels of the image along every axis.
        backward: whether the sum of the image is propagated back.

    Raises:
        ValueError: if the volume cannot be cut for so many ranks.
    """
    if size % STRIDE or size // STRIDE < ranks:
        raise ValueError(f"an image of {size} voxels an axis is no {STRIDE} times {ranks} slices or more of a latent")
    kept = {name: os.environ.get(name) for name in FIXED_ALLOCATION}
    os.environ.update(FIXED_ALLOCATION)  # the new processes read it when they start
    try:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(_work, args=(ranks, size // STRIDE, backward, folder), nprocs=ranks)
            found: list[Need] = pickle.loads(Path(folder, "needs").read_bytes())
    finally:
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return Need(*(max(getattr(need, part) for need in found) for part in ("process", "tensors", "sent")))


def _work(rank: int, ranks: int, latents: int, backward: bool, folder: str) -> None:
    """One process; the first one writes what all need."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    net: Any = AutoencoderKL(**OPTIONS)
    volume = split_volume(net, init_device_mesh("cpu", (ranks,)))

    def decode(slab: torch.Tensor) -> torch.Tensor:
        with torch.set_grad_enabled(backward):
            image: torch.Tensor = net.decode(slab)
            if backward:
                image.sum().backward()
            return image.detach()

    small = volume.scatter(_latent(SMALL * ranks, SMALL), latent=True)
    costs_of(lambda: decode(small), timed=0, watched=True)
    slab = volume.scatter(_latent(latents, latents), latent=True).clone()
    dist.barrier()
    with volume.counted() as traffic:
        cost, _ = costs_of(lambda: decode(slab), timed=0, watched=True)
    needs: list[Any] = [None] * ranks
    dist.all_gather_object(needs, Need(cost.process or 0, cost.tensors or 0, traffic.sent))
    if rank == 0:
        Path(folder, "needs").write_bytes(pickle.dumps(needs))
    dist.barrier()
    dist.destroy_process_group()


def _latent(slices: int, size: int) -> torch.Tensor:
    shape = (1, LATENT_CHANNELS, slices, size, size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def table(needs: Sequence[tuple[int, Need, Need | None]]) -> str:
    """
    A table in Markdown.

    Args:
        needs: numbers of ranks, what a decode needs, what a decode and its backward pass need or None; one rank first.
    """
    head = "| ranks | way | process | of one | tensors | of one | sent by a rank |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for way, which in (("decode", 1), ("decode and backward", 2)):
        one: Any = needs[0][which]
        for row in needs:
            need: Any = row[which]
            if need is None:
                continue
            process, tensors = (f"{part / MEGA:,.0f} MB" for part in (need.process, need.tensors))
            shares = (f"{need.process / one.process:.2f}", f"{need.tensors / one.tensors:.2f}")
            sent = f"{need.sent / MEGA:,.1f} MB"
            lines.append(f"| {row[0]} | {way} | {process} | {shares[0]} | {tensors} | {shares[1]} | {sent} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 where it cannot be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.split_memory", description=__doc__)
    parser.add_argument("--size", type=int, default=120, help="voxels along every axis (%(default)s)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], help="beside one (%(default)s)")
    parser.add_argument("--forward", action="store_true", help="the decode alone, no backward pass")
    args = parser.parse_args(argv)
    try:
        rows = [
            (ranks, measure(ranks, args.size, False), None if args.forward else measure(ranks, args.size, True))
            for ranks in (1, *args.ranks)
        ]
    except ValueError as error:
        print(f"split_memory failed: {error}", file=sys.stderr)
        return 1
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
