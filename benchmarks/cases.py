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

"""All cases by name, and how to choose among them."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.case import Case
from benchmarks.curve_cases import CURVES, GPU, GROWTHS, LARGE
from benchmarks.processes import BenchmarkError
from benchmarks.small_cases import SMALL
from benchmarks.target_cases import TARGETS
from benchmarks.training_cases import LOADING, TRAINING

__all__ = ["BY_DEFAULT", "CASES", "GROWTHS", "choose"]

CASES = {case.name: case for case in (*TARGETS, *SMALL, *TRAINING, *LOADING, *CURVES, *LARGE, *GPU)}
BY_DEFAULT = ("targets", "small", "training", "loading", "curves")
"""The groups that are measured where none is named."""


def choose(names: Sequence[str], quick: bool = False) -> list[Case]:
    """
    The cases of some names, in their own order.

    Args:
        names: names of cases or groups; those of ``BY_DEFAULT`` where there is none.
        quick: whether to leave out the slow ones that are not named themselves.

    Raises:
        BenchmarkError: if there is no case or group of a name.
    """
    wanted = set(names or BY_DEFAULT)
    groups = {case.group for case in CASES.values()}
    unknown = sorted(wanted - groups - set(CASES))
    if unknown:
        raise BenchmarkError(
            f"no case or group {', '.join(map(repr, unknown))}; groups are {', '.join(sorted(groups))}, "
            "--list shows the cases"
        )
    return [c for c in CASES.values() if c.name in wanted or (c.group in wanted and not (quick and c.slow))]
