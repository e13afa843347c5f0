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


"""How far two results are apart, and one number that depends on all of a result."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["energy", "max_difference"]


def max_difference(a: Any, b: Any) -> float:
    """Largest absolute difference between two equally nested results; shapes and types must agree."""
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            raise AssertionError(f"{len(a)} results against {len(b)}")
        return max([max_difference(x, y) for x, y in zip(a, b)], default=0.0)
    if a.shape != b.shape or a.dtype != b.dtype:
        raise AssertionError(f"{a.dtype} {list(a.shape)} against {b.dtype} {list(b.shape)}")
    return float((a.detach().double() - b.detach().double()).abs().max()) if a.numel() else 0.0


def energy(value) -> torch.Tensor:
    """Sum of the squares of every floating point tensor inside ``value``."""
    if torch.is_tensor(value):
        return value.float().pow(2).sum() if value.is_floating_point() else torch.zeros(())
    return torch.stack([energy(item) for item in value]).sum()
