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

"""Trains a network with and without projection: equal weights at the start, equal images, equal noise, turn by turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn as nn
import torch.nn.functional as F

from benchmarks.ablation_data import SIDE, Slices
from demo.training import augmented
from monai.metrics import PSNRMetric
from monai.networks.nets import AutoencoderKL, ViTAutoEnc
from monai.transforms import GaussianSmooth

__all__ = ["TASKS", "VARIANTS", "Curves", "Result", "Task", "pair", "points", "train"]

VARIANTS = {"with projection": True, "without projection": False}
"""What ``use_proj_attn`` is."""
BATCH = 4
SHIFT = 3
"""By how many pixels training slices are moved at most."""
POINTS = 25
"""How often held-out slices are judged during a training."""
JUDGED = 32
"""Held-out images to judge by, at most."""
NOISE = 0.2
"""Standard deviation of the noise to remove; intensities lie in [0, 1]."""
KL_WEIGHT = 1e-6
NOISE_SEED = 2**31
"""Of the noise on held-out slices: the same for every network, seed and step."""
BLUR = 4
"""By how much the latents of the autoencoder are smaller than a slice, along an axis."""
SIGMAS = (0.4, 0.6, 0.8, 1.0, 1.2, 1.4)
"""Widths of Gaussian filters, in pixels."""


class Task(Protocol):
    """A network and what it learns."""

    title: str
    rate: float
    """Highest learning rate."""
    simple: str
    """What needs no network."""

    def build(self, use_proj_attn: bool) -> nn.Module:
        """The network, with fresh weights."""

    def loss(self, net: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Of a batch; random numbers are torch's global ones."""

    def restored(self, net: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """What the network makes of held-out slices, to be compared with them."""

    def simply_restored(self, images: torch.Tensor) -> torch.Tensor:
        """The same by the simple rule."""


class Autoencode:
    """An AutoencoderKL gives slices back through latents a sixteenth their size."""

    title = "AutoencoderKL: reconstruct slices"
    rate = 2e-3
    simple = "slices averaged over 4 x 4 pixels and enlarged"

    def build(self, use_proj_attn: bool) -> nn.Module:
        """Attention at the lowest level, 16 x 16, in the encoder and the decoder."""
        return AutoencoderKL(
            spatial_dims=2,
            channels=(8, 16, 32),
            num_res_blocks=1,
            attention_levels=(False, False, True),
            latent_channels=4,
            norm_num_groups=8,
            use_proj_attn=use_proj_attn,
        )

    def loss(self, net: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Mean absolute error, and a little of the divergence of the latents from a standard normal distribution."""
        reconstruction, mean, sigma = net(images)
        divergence = (mean**2 + sigma**2 - 2 * sigma.log() - 1).mean() / 2
        out: torch.Tensor = F.l1_loss(reconstruction, images) + KL_WEIGHT * divergence
        return out

    def restored(self, net: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Decoded from the mean of the latents, without a random number."""
        reconstruct: Any = net.reconstruct
        out: torch.Tensor = reconstruct(images)
        return out

    def simply_restored(self, images: torch.Tensor) -> torch.Tensor:
        """As small as a channel of the latents, and enlarged."""
        return F.interpolate(F.avg_pool2d(images, BLUR), scale_factor=BLUR, mode="bilinear")


class Denoise:
    """A ViTAutoEnc gives slices back without the noise on them."""

    title = "ViTAutoEnc: denoise slices"
    rate = 5e-3
    simple = "noisy slices under the best Gaussian filter"

    def build(self, use_proj_attn: bool) -> nn.Module:
        """256 tokens, patches of 4 x 4."""
        return ViTAutoEnc(
            in_channels=1,
            img_size=SIDE,
            patch_size=4,
            hidden_size=64,
            mlp_dim=128,
            num_layers=3,
            num_heads=4,
            spatial_dims=2,
            use_proj_attn=use_proj_attn,
        )

    def loss(self, net: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Mean squared error, whose logarithm PSNR is."""
        return F.mse_loss(net(images + NOISE * torch.randn_like(images))[0], images)

    def restored(self, net: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """From the same noise at every call."""
        out: torch.Tensor = net(self._noisy(images))[0]
        return out

    def simply_restored(self, images: torch.Tensor) -> torch.Tensor:
        """Under the filter of the width that suits these very slices best."""
        noisy = self._noisy(images)
        filtered = [GaussianSmooth(sigma)(noisy.flatten(0, 1)).reshape(noisy.shape) for sigma in SIGMAS]
        return min(filtered, key=lambda x: float(F.mse_loss(x, images)))

    def _noisy(self, images: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(NOISE_SEED)
        return images + NOISE * torch.randn(images.shape, generator=generator)


TASKS: dict[str, Task] = {"AutoencoderKL": Autoencode(), "ViTAutoEnc": Denoise()}


@dataclass(frozen=True)
class Curves:
    """
    A variant of a network.

    Args:
        parameters: how many numbers it learns.
        loss: training loss of each seed, at every point the mean since the point before.
        psnr: PSNR of the held-out slices in dB of each seed, at every point.
        seconds: shortest and median time of a step.
    """

    parameters: int
    loss: list[list[float]]
    psnr: list[list[float]]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Result:
    """
    What came of a network.

    Args:
        title: the network and what it learned.
        points: after how many steps it was judged.
        simple: what needs no network, and
        simple_psnr: its PSNR in dB.
        curves: of each variant.
    """

    title: str
    points: list[int]
    simple: str
    simple_psnr: float
    curves: dict[str, Curves]


def points(steps: int) -> list[int]:
    """After how many steps to judge: evenly, the last step included."""
    return sorted({-(-steps * part // POINTS) for part in range(1, POINTS + 1)})


def pair(task: Task, seed: int) -> dict[str, nn.Module]:
    """The network with and without projection; every parameter that both have starts with the same numbers."""
    torch.manual_seed(seed)
    nets = {name: task.build(projected) for name, projected in VARIANTS.items()}
    full, bare = nets.values()
    with torch.no_grad():
        for name, weight in bare.named_parameters():
            weight.copy_(full.get_parameter(name))
    return nets


def train(task: Task, slices: Slices, steps: int, seeds: int, advance: Callable[[], object]) -> Result:
    """
    Train both variants for every seed, step by step in turn, so that a busy machine slows both.

    Args:
        task: the network and what it learns.
        slices: to train on and to judge by.
        steps: how many steps each of them takes.
        seeds: how many pairs to train: seeds 0, 1, ...
        advance: called after each step of a pair.

    Raises:
        ValueError: if there is no step or no seed.
    """
    if steps < 1 or seeds < 1:
        raise ValueError(f"at least one step and one seed are needed, got {steps} and {seeds}.")
    judged = slices.held_out[torch.linspace(0, len(slices.held_out) - 1, JUDGED).round().long().unique()]
    with torch.random.fork_rng(devices=[]):
        runs = [_train_pair(task, slices.training, judged, steps, seed, advance) for seed in range(seeds)]
    curves = {}
    for name in VARIANTS:
        rows = [run[name] for run in runs]
        times = torch.tensor([row.times for row in rows], dtype=torch.float64)
        seconds = {"min": float(times.min()), "median": float(times.quantile(0.5))}
        curves[name] = Curves(rows[0].parameters, [r.loss for r in rows], [r.psnr for r in rows], seconds)
    return Result(task.title, points(steps), task.simple, psnr(task.simply_restored(judged), judged), curves)


def psnr(images: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean PSNR of images in dB; the largest intensity is 1."""
    return float(torch.as_tensor(PSNRMetric(max_val=1.0)(images, truth)).mean())


class Trainee:
    """A network in training, and what was noted of it."""

    def __init__(self, task: Task, net: nn.Module, steps: int) -> None:
        self.task, self.net = task, net
        self.parameters = sum(weight.numel() for weight in net.parameters())
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=task.rate, weight_decay=0.01)
        # a shorter cycle would have no warm-up; such a training ends in the midst of one
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, task.rate, total_steps=max(10, steps))
        self.recent: list[float] = []
        self.loss: list[float] = []
        self.psnr: list[float] = []
        self.times: list[float] = []

    def step(self, images: torch.Tensor, noise_seed: int) -> None:
        """Learn from a batch."""
        torch.manual_seed(noise_seed)
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = self.task.loss(self.net, images)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.times.append(time.perf_counter() - start)
        self.recent.append(loss.item())

    @torch.no_grad()
    def judge(self, images: torch.Tensor) -> None:
        """Note a point of the curves."""
        self.net.eval()
        self.psnr.append(psnr(self.task.restored(self.net, images), images))
        self.net.train()
        self.loss.append(sum(self.recent) / len(self.recent))
        self.recent.clear()


def _train_pair(
    task: Task, training: torch.Tensor, judged: torch.Tensor, steps: int, seed: int, advance: Callable[[], object]
) -> dict[str, Trainee]:
    trainees = {name: Trainee(task, net, steps) for name, net in pair(task, seed).items()}
    generator = torch.Generator().manual_seed(seed)
    due = set(points(steps))
    for step in range(1, steps + 1):
        images = augmented(training, BATCH, SHIFT, generator)
        noise_seed = int(torch.randint(2**31, (), generator=generator))
        turns = list(trainees.values())
        for trainee in turns[:: 1 if step % 2 else -1]:
            trainee.step(images, noise_seed)
        if step in due:
            for trainee in turns:
                trainee.judge(judged)
        advance()
    return trainees
