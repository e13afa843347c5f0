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

"""What the trainings of the demo share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn as nn


def train(weights: Iterable[nn.Parameter], loss: Callable[[], torch.Tensor], steps: int, rate: float) -> None:
    """Minimize ``loss`` with AdamW and a one-cycle learning rate.

    Args:
        weights: the parameters to train.
        loss: draws a batch and returns its loss.
        steps: number of updates.
        rate: highest learning rate.
    """
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()


def augmented(slices: torch.Tensor, batch: int, shift: int, generator: torch.Generator) -> torch.Tensor:
    """A random batch of slices, half of them mirrored, all moved by ``shift`` pixels at most."""
    images = slices[torch.randint(len(slices), (batch,), generator=generator)]
    mirror = torch.rand(batch, 1, 1, 1, generator=generator) < 0.5
    offset = torch.randint(-shift, shift + 1, (2,), generator=generator).tolist()
    return torch.where(mirror, images.flip(2), images).roll(offset, (2, 3))


def command_line(description: str | None) -> argparse.Namespace:
    """Read what :mod:`demo.make_checkpoint` hands to the training of a checkpoint."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    return parser.parse_args()


def write(path: Path, checkpoint: dict[str, object], error: torch.Tensor) -> None:
    """Write a checkpoint with the version of torch, and say so."""
    torch.save({"torch_version": torch.__version__.split("+")[0], **checkpoint}, path)
    print(f"{path}: {path.stat().st_size} bytes, error {error:.4f}")
