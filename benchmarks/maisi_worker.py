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
Samples and decodes MAISI's volume in a process of its own: whole, in overlapping windows, or streamed. The same module
works in the fork's process and in the release's.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

import monai
from benchmarks.maisi_model import MaisiTask, autoencoder, drawn_latent, inputs, networks, sample
from benchmarks.measure import CLOCKS, anonymous_growth
from monai.inferers import SlidingWindowInferer
from tests.live_bytes import LiveBytes

__all__ = ["DECODE", "SAMPLING", "Cost", "MaisiWorker", "Outcome", "costs_of", "window"]

SAMPLING, DECODE = "sampling", "decode"
WINDOW, OVERLAP = (1 / 2, 1 / 2, 3 / 8), 0.4
"""A window over the latent, as 64 x 64 x 48 of 128^3 in NV-Generate-CTMR's ``config_infer_24g_512x512x512.json``."""
STORAGES = ("cpu", "folder")


@dataclass(frozen=True)
class Cost:
    """
    What a stage costs one process.

    Args:
        seconds: shortest time by each clock; empty where it was not timed.
        process: by how many bytes the process's own memory grew, None where it was not watched.
        tensors: bytes of tensors that were alive at once, without weights and inputs, likewise.
    """

    seconds: Mapping[str, float]
    process: int | None = None
    tensors: int | None = None


@dataclass(frozen=True)
class Outcome:
    """
    What a process made.

    Args:
        costs: of each stage that it did, "sampling" and "decode".
        latent: (1, 4, sizes).
        image: (1, 1, sizes).
        planned: bytes that a streamed decode says it needs on the device.
    """

    costs: Mapping[str, Cost]
    latent: torch.Tensor = field(repr=False)
    image: torch.Tensor = field(repr=False)
    planned: int | None = None


class MaisiWorker:
    """Answers the requests of :mod:`benchmarks.maisi`, each in a fresh process."""

    def __init__(self) -> None:
        torch.set_num_threads(1)

    def where(self) -> str:
        """The file of the MONAI in this process."""
        return str(monai.__file__)

    def run(self, task: MaisiTask, way: str, latent: torch.Tensor | None, timed: int, watched: bool) -> Outcome:
        """
        Sample and decode.

        Args:
            task: what to do.
            way: of the decode: "whole", "windows", or where volumes rest: "cpu", "folder".
            latent: what to decode, or None: it is sampled, or drawn if the task says so.
            timed: how many runs are timed.
            watched: whether memory is watched, in one more run.
        """
        costs = {}
        if watched:
            _load_what_stays(task)
        if latent is None and task.sampled:
            nets, given = networks(task), inputs(task)
            costs[SAMPLING], latent = costs_of(lambda: sample(task, nets, given), timed, watched)
            del nets, given
        latent = drawn_latent(task) if latent is None else latent
        with decoder(task, way) as (decode, planned):
            costs[DECODE], image = costs_of(lambda: decode(latent), timed, watched)
            return Outcome(costs, latent, image.clone(), planned(latent))  # a folder's file is gone with it


@contextmanager
def decoder(task: MaisiTask, way: str) -> Iterator[tuple[Callable, Callable]]:
    """A decode as a function of a latent, and a function that tells the bytes that it plans with, or None."""
    net: Any = autoencoder(task)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        if way in STORAGES:
            from monai.networks.volumes import StreamedAutoencoder  # the release has none

            streamed = StreamedAutoencoder(net, task.memory, folder if way == "folder" else way)
            yield streamed.decode_stage_2_outputs, lambda latent: streamed.needs("decode", latent).device
        elif way == "windows":
            yield lambda latent: _windows(net, latent), lambda latent: None
        else:
            yield net.decode_stage_2_outputs, lambda latent: None


def _load_what_stays(task: MaisiTask) -> None:
    """Sample and decode a small volume: what a first call loads does not count as memory of the next one."""
    small = replace(task, scheduler="rflow", size=min(task.size, 64), steps=1)
    latent = sample(small, networks(small), inputs(small))
    with decoder(small, "whole") as (decode, _):
        decode(latent)


def costs_of(call: Callable[[], torch.Tensor], timed: int, watched: bool) -> tuple[Cost, torch.Tensor]:
    """
    The cost of a call, and what it returns.

    Args:
        call: a stage.
        timed: how many runs are timed.
        watched: whether memory is watched, in one more run, whose time counts if it is the only one.
    """
    seconds: dict[str, float] = {}
    found: list[Any] = []

    def run() -> None:
        found[:] = []  # what the run before made is freed first
        start = {name: clock() for name, clock in CLOCKS.items()}
        found.append(call())
        took = {name: clock() - start[name] for name, clock in CLOCKS.items()}
        seconds.update({name: min(took[name], seconds.get(name, took[name])) for name in CLOCKS})

    for _ in range(timed):
        run()
    if not watched:
        return Cost(seconds), found[0]
    timings = dict(seconds)
    found[:] = []
    gc.collect()
    with LiveBytes("aten.from_file") as live:
        process = anonymous_growth(run)
    return Cost(timings or seconds, process, live.most), found[0]


def window(latent: torch.Tensor) -> list[int]:
    """Latents along the sides of a window."""
    return [max(1, round(share * size)) for share, size in zip(WINDOW, latent.shape[2:])]


def _windows(net: Any, latent: torch.Tensor) -> torch.Tensor:
    """The decode of NV-Generate-CTMR."""
    inferer = SlidingWindowInferer(window(latent), sw_batch_size=1, overlap=OVERLAP, mode="gaussian")
    found = inferer(latent, net.decode_stage_2_outputs)
    assert isinstance(found, torch.Tensor)
    return found
