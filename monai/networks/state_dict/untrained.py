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

"""Whether a linear still has the weights that torch gave it: by their distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["Departure", "departure", "never_trained", "only_one_untrained"]

FEWEST_VALUES = 64
"""With fewer weights, the distribution is not known well enough."""
LARGEST_STATISTIC = 2.5
"""Bound of the Kolmogorov-Smirnov statistic; uniform samples pass it with a probability of 1 - 7e-6."""
LARGEST_GAP = 20.0
"""Bound of what the largest of n values may lack, times n; it is exceeded with a probability of exp(-20)."""
SAMPLE = 1 << 16
"""Of larger weights whole rows are sampled, about so many values, so that a large checkpoint is not sorted whole."""


@dataclass(frozen=True)
class Departure:
    """
    How far the weights of linears are from the distribution that torch draws them from, uniform within
    1 / sqrt(in_features).

    Args:
        count: number of the values that were looked at.
        total: number of all values.
        outside: fraction of the values outside of the bound.
        gap: how much the largest value within it lacks, as a fraction of the bound.
        distance: largest distance of the distribution functions (Kolmogorov-Smirnov).
        rounding: of the values' type, as a fraction.
    """

    count: int
    total: int
    outside: float
    gap: float
    distance: float
    rounding: float

    @property
    def is_none(self) -> bool:
        """Whether the values may be as they were drawn."""
        return (
            self.count >= FEWEST_VALUES
            and self.outside == 0
            and self.gap <= LARGEST_GAP / self.count + self.rounding
            and (self.distance - self.rounding / 2) * math.sqrt(self.count) <= LARGEST_STATISTIC
        )

    def would_show_in(self, other: Departure) -> bool:
        """Whether the values of ``other``, had they departed as far, would surely not pass for being as drawn."""
        visible = self.distance * math.sqrt(other.count) >= 2 * LARGEST_STATISTIC
        return visible or self.outside * other.total >= LARGEST_GAP


def departure(*tensors: torch.Tensor) -> Departure | None:
    """
    Measure how far linears are from their initial distribution (Massey, https://doi.org/10.2307/2280095).

    Args:
        tensors: weights (out_features, in_features), or biases (out_features,) that follow their weight.

    Returns:
        None where there are no values, they are not at hand (meta tensors) or not floating point.
    """
    if not tensors or any(t.is_meta or not t.is_floating_point() or not t.numel() for t in tensors):
        return None
    place = torch.cat([_sample(tensor).flatten() / bound for tensor, bound in zip(tensors, _bounds(tensors))])
    count, rounding = place.numel(), max(torch.finfo(tensor.dtype).eps for tensor in tensors)
    sizes = place.abs()
    within = sizes <= 1 + rounding
    expected = (place.clamp(-1, 1).sort().values + 1) / 2
    ranks = torch.arange(count, dtype=torch.double, device=place.device) / count
    return Departure(
        count=count,
        total=sum(tensor.numel() for tensor in tensors),
        outside=1 - float(within.double().mean()),
        gap=1 - float(torch.where(within, sizes, 0).max()),
        distance=float(torch.maximum(expected - ranks, ranks + 1 / count - expected).max()),
        rounding=rounding,
    )


def never_trained(weight: torch.Tensor, bias: torch.Tensor | None = None) -> bool:
    """
    Tell whether a linear may still have the weights that torch gave it.

    Training moves some of them past 1 / sqrt(in_features), and changes their distribution: no value may lie outside,
    the largest must nearly reach the bound, and the Kolmogorov-Smirnov statistic must be that of a uniform sample.
    Weights that moved less than this can see are taken for untrained: go by :func:`only_one_untrained` instead where
    there are linears that would have been trained with it.

    Args:
        weight: (out_features, in_features).
        bias: (out_features,), or None.

    Returns:
        False also where there are too few values to tell, or where they are not at hand (meta tensors).
    """
    return _as_drawn(weight, *([] if bias is None else [bias])) is not None


def only_one_untrained(one: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    """
    Tell whether a linear was never trained, and others beside it were, so far that it would show in this one, too.

    For a network that was hardly trained, or not at all, there is no way to know: the answer is False.
    ``python -m tests.networks.state_dict.untrained_rates`` measures how often it errs.

    Args:
        one: weight and maybe bias of the linear.
        others: weights of the others.
    """
    found = _as_drawn(*one)
    if found is None:
        return False
    trained = departure(*others)
    return trained is not None and trained.would_show_in(found)


def _as_drawn(*tensors: torch.Tensor) -> Departure | None:
    """The departure of linears that may be as they were drawn: none of all their values lies outside of the bound."""
    found = departure(*tensors)
    if found is None or not found.is_none:
        return None
    extremes = [torch.stack(torch.aminmax(tensor.detach())).abs().max() for tensor in tensors]
    inside = all(float(most) <= bound * (1 + found.rounding) for most, bound in zip(extremes, _bounds(tensors)))
    return found if inside else None


def _bounds(tensors: Sequence[torch.Tensor]) -> list[float]:
    """Within which torch draws the values of each tensor; a bias follows its weight."""
    bounds: list[float] = []
    for tensor in tensors:
        is_bias = tensor.dim() < 2 and bounds
        bounds.append(bounds[-1] if is_bias else 1 / math.sqrt(tensor[0].numel()))
    return bounds


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    """Rows of a tensor, all or every so many, as doubles."""
    return tensor.detach()[:: -(-tensor.numel() // SAMPLE)].double()
