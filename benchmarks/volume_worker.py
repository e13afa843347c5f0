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
Decodes a volume in a process of its own: whole, in overlapping windows, or streamed. The same module works in the
fork's process and in the release's.
"""

from __future__ import annotations

import gc
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch.utils.flop_counter import FlopCounterMode

import monai
from benchmarks.measure import CLOCKS, anonymous_growth
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import AutoencoderKL

__all__ = ["STORAGES", "Decoded", "Peak", "VolumeTask", "VolumeWorker"]

OPTIONS: dict[str, Any] = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 1,
    "num_res_blocks": (1, 1, 1),
    "attention_levels": (False, False, False),
    "latent_channels": 4,
    "with_encoder_nonlocal_attn": False,
    "with_decoder_nonlocal_attn": False,
}
"""An autoencoder without attention, as MAISI's."""
STRIDE = 4
"""How many voxels of an image lie beside one of its latent, along an axis."""
OVERLAP = 0.4
STORAGES = ("cpu", "folder", "none")
"""Ways to decode that are streamed; the others are "whole" and "windows"."""


@dataclass(frozen=True)
class VolumeTask:
    """
    What to decode, and how.

    Args:
        way: "whole", "windows", or where volumes rest: "cpu", "folder", "none".
        size: voxels of the image along every axis.
        memory: budget of a streamed decode in bytes.
        channels: of the decoder's levels, the last one first.
    """

    way: str
    size: int
    memory: int = 48 * 2**20
    channels: tuple[int, ...] = (8, 16, 16)


@dataclass(frozen=True)
class Decoded:
    """The image, and the shortest time by each clock."""

    image: torch.Tensor = field(repr=False)
    seconds: dict[str, float]


@dataclass(frozen=True)
class Peak:
    """By how much the process's own memory grows, what the streamed decode said that the device needs, operations."""

    anonymous: int
    device: int | None
    operations: int


class VolumeWorker:
    """Answers the requests of :mod:`benchmarks.volumes`, each in a fresh process."""

    def __init__(self) -> None:
        torch.set_num_threads(1)

    def where(self) -> str:
        """The file of the MONAI in this process."""
        return str(monai.__file__)

    def decode(self, task: VolumeTask, runs: int) -> Decoded:
        """Decode ``runs`` times."""
        seconds = dict.fromkeys(CLOCKS, float("inf"))
        with _prepared(task) as (call, _):
            for _ in range(runs):
                image = None  # the one of the run before, which this one may overwrite
                start = {name: clock() for name, clock in CLOCKS.items()}
                image = call()
                seconds = {name: min(seconds[name], clock() - start[name]) for name, clock in CLOCKS.items()}
        return Decoded(cast(torch.Tensor, image).clone(), seconds)

    def peak(self, task: VolumeTask) -> Peak:
        """Decode once, and watch."""
        with _prepared(task) as (call, device), FlopCounterMode(display=False) as counter:
            gc.collect()
            grown = anonymous_growth(call)
        return Peak(grown, device, counter.get_total_flops())


@contextmanager
def _prepared(task: VolumeTask) -> Any:
    """The decode of a task as a function, after a small one that loads what stays; and the bytes that it will need."""
    net, latent = _autoencoder(task.channels), _latent(task.size)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        net.decode(_latent(4 * STRIDE))
        if task.way not in STORAGES:
            yield (lambda: _windows(net, latent) if task.way == "windows" else net.decode(latent)), None
            return
        from monai.networks.volumes import StreamedAutoencoder  # the release has none

        storage = {"cpu": "cpu", "folder": folder, "none": None}[task.way]
        streamed = StreamedAutoencoder(net, task.memory, storage)
        yield (lambda: streamed.decode(latent)), streamed.needs("decode", latent).device


def _windows(net: AutoencoderKL, latent: torch.Tensor) -> torch.Tensor:
    """Windows of half the size, as NV-Generate-CTMR decodes."""
    roi = [max(1, size // 2) for size in latent.shape[2:]]
    inferer = SlidingWindowInferer(roi, sw_batch_size=1, overlap=OVERLAP, mode="gaussian")
    found = inferer(latent, net.decode)
    return cast(torch.Tensor, found)


def _autoencoder(channels: tuple[int, ...]) -> AutoencoderKL:
    """An autoencoder whose weights depend on their names and shapes alone: the same in the fork and the release."""
    net = AutoencoderKL(channels=channels, norm_num_groups=min(channels), **OPTIONS).eval()
    generator = torch.Generator().manual_seed(0)
    for name, weight in sorted(net.named_parameters()):
        noise = torch.randn(weight.shape, generator=generator)
        is_scale = weight.dim() == 1 and name.endswith("weight")
        weight.data = 1 + 0.1 * noise if is_scale else noise * weight[0].numel() ** -0.5
    return net


def _latent(size: int) -> torch.Tensor:
    shape = (1, OPTIONS["latent_channels"], *[size // STRIDE] * OPTIONS["spatial_dims"])
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))
