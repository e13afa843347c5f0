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

"""What was measured of a case, and whether that reaches its goals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.case import Case, Growth

__all__ = ["Check", "Grown", "Result", "exponent", "grown", "percent"]

MEGA = 1e6


@dataclass(frozen=True)
class Check:
    """A number and the bound that it has to keep."""

    what: str
    value: float
    bound: float
    at_least: bool

    @property
    def met(self) -> bool:
        """Whether the number keeps the bound."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def __str__(self) -> str:
        sign = (">=" if self.at_least else "<=") if self.met else ("<" if self.at_least else ">")
        return f"{self.what} {self.value:.3g} {sign} {self.bound:.3g}"


@dataclass(frozen=True)
class Result:
    """
    A row of the table.

    Args:
        case: what was measured.
        seconds: shortest times by "fork", "release", "flash" (the release with flash attention), "limit", "rival".
        bytes: peaks of memory, likewise.
        notes: what else there is to know, one sentence each.
        failed: whether the fork raised.
    """

    case: Case
    seconds: Mapping[str, float]
    bytes: Mapping[str, int]
    notes: Sequence[str] = ()
    failed: bool = False

    def speed_over(self, label: str) -> float | None:
        """How many times the fork's time another one's is."""
        return _ratio(self.seconds.get(label), self.seconds.get("fork"))

    def over_limit(self) -> float | None:
        """How many times the limit's time the fork's is."""
        return _ratio(self.seconds.get("fork"), self.seconds.get("limit"))

    def checks(self) -> list[Check]:
        """The goals that something was measured for."""
        goals, ours = self.case.goals, self.bytes.get("fork")
        rows = [
            ("speed over the release", self.speed_over("release"), goals.release, True),
            ("speed over the release with flash", self.speed_over("flash"), goals.flash, True),
            ("speed over x-transformers", self.speed_over("rival"), goals.rival, True),
            ("time over the limit", self.over_limit(), goals.limit, False),
            ("memory over the release's", _ratio(ours, self.bytes.get("release")), goals.memory, False),
            ("MB", None if ours is None else ours / MEGA, goals.megabytes, False),
        ]
        return [Check(what, v, bound, least) for what, v, bound, least in rows if v is not None and bound is not None]

    def as_row(self) -> dict[str, Any]:
        """All of it in types that JSON knows."""
        return {
            "name": self.case.name,
            "title": self.case.title,
            "tokens": self.case.tokens,
            "seconds": dict(self.seconds),
            "bytes": dict(self.bytes),
            "speed_over_release": self.speed_over("release"),
            "time_over_limit": self.over_limit(),
            "checks": [{**asdict(check), "met": check.met} for check in self.checks()],
            "notes": list(self.notes),
            "failed": self.failed,
        }


@dataclass(frozen=True)
class Grown:
    """How a cost grew: a sentence, and the check of its bound."""

    growth: Growth
    exponent: float
    doublings: tuple[float, ...]

    @property
    def check(self) -> Check:
        """The bound and what is bound."""
        if self.growth.per_doubling:
            return Check("factor per doubling", max(self.doublings), self.growth.at_most, False)
        return Check("exponent", self.exponent, self.growth.at_most, False)

    def as_row(self) -> dict[str, Any]:
        """All of it in types that JSON knows."""
        check = self.check
        return {
            "title": self.growth.title,
            "cases": list(self.growth.cases),
            "cost": self.growth.cost,
            "exponent": self.exponent,
            "per_doubling": list(self.doublings),
            "check": {**asdict(check), "met": check.met},
        }


def grown(growth: Growth, results: Mapping[str, Result], label: str = "fork") -> Grown | None:
    """
    How the fork's cost grew with the tokens; None where a case is missing.

    Args:
        growth: which cases, which cost.
        results: what was measured, by the cases' names.
        label: whose cost. Defaults to the fork's.
    """
    if not all(name in results for name in growth.cases):
        return None
    chosen = [results[name] for name in growth.cases]
    costs = [(r.seconds if growth.cost == "seconds" else r.bytes).get(label) for r in chosen]
    if not all(costs):
        return None
    tokens = [r.case.tokens for r in chosen]
    values = [float(c) for c in costs if c is not None]
    factors = [
        (values[i + 1] / values[i]) ** (1 / math.log2(tokens[i + 1] / tokens[i])) for i in range(len(values) - 1)
    ]
    return Grown(growth, exponent(tokens, values), tuple(factors))


def percent(ratio: float) -> str:
    """A ratio in percent, in words that fit large and tiny ones."""
    return f"{100 * ratio:.1f} %" if ratio > 5e-4 else f"{100 * ratio:.0e} %" if ratio else "0 %"


def exponent(tokens: Sequence[float], costs: Sequence[float]) -> float:
    """Exponent of the power law that fits best, in logarithms."""
    x, y = [math.log(t) for t in tokens], [math.log(c) for c in costs]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)
    return slope


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b
