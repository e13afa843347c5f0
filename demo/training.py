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

"""A training loop of a few seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable

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
