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


"""Loads references into the fork and into the release, and holds the results against what they must be."""

from __future__ import annotations

import atexit
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from fork.referee import Referee
from tests.parity.references.cases import CASES, Case
from tests.parity.references.loading import Result, attempt
from tests.parity.references.networks import find_class
from tests.parity.references.rules import Expectation, expected, known_facts
from tests.parity.references.store import WORKER, references
from tests.parity.references.targets import Target, targets

__all__ = ["Load", "loads_into_the_fork", "run"]


@dataclass(frozen=True)
class Load:
    """
    A load into the fork.

    Args:
        case: who wrote the checkpoint.
        target: the network that loaded it.
        way: "plain", "nested", "old" or "facts", see :func:`~tests.parity.references.loading.attempt`.
        expectation: what it had to come to.
        result: what it came to.
        release: what a strict load, and one by ``load_old_state_dict``, came to in the release.
    """

    case: Case
    target: Target
    way: str
    expectation: Expectation
    result: Result
    release: tuple[Result, Result] | None = None

    @property
    def deviation(self) -> str:
        """What is not as it must be; empty where all is."""
        wanted, got = self.expectation, self.result
        if got.complaints:
            return ", and ".join(got.complaints)
        if got.verdict == "broken" or wanted.verdict not in ("untold", got.verdict):
            return f"{got.verdict}, not {wanted.verdict} ({wanted.reason})"
        if wanted.warned is not None and wanted.warned != got.warned:
            return f"{'no' if wanted.warned else 'a'} warning"
        return ""

    def __str__(self) -> str:
        way = "" if self.way == "plain" else f" ({self.way})"
        return (
            f"{self.case.name} -> {self.target.name}{way}: {self.deviation or self.result.verdict} {self.result.said}"
        )


def loads_into_the_fork(case: Case, reference: Mapping[str, Any], nested: set[str] | None = None) -> Iterator[Load]:
    """
    Load a checkpoint into every network that it is to be loaded into, and once more where facts of the user's matter.

    Args:
        case: who wrote it.
        reference: checkpoint, inputs and output.
        nested: the verdicts that loads in a user's own module have been held against; the first load that is to come
            to another one is repeated there, and its verdict added. By default none.
    """
    facts = known_facts(case)
    nested = set() if nested is None else nested
    for number, target in enumerate(targets(case)):
        wanted = expected(case, target)
        arguments = target.network, target.arguments, reference
        yield Load(case, target, "plain", wanted, attempt(*arguments))
        inside = expected(case, target, way="nested")
        if inside.verdict not in nested or inside.verdict != wanted.verdict:
            nested.add(inside.verdict)
            yield Load(case, target, "nested", inside, attempt(*arguments, way="nested"))
        careful = expected(case, target, way="old")
        if careful != wanted and hasattr(find_class(target.network), "load_old_state_dict"):
            yield Load(case, target, "old", careful, attempt(*arguments, way="old"))
        if facts is not None and (number == 0 or wanted.verdict != "exact"):
            wanted = expected(case, target, facts)
            yield Load(case, target, "facts", wanted, attempt(*arguments, way="old", facts=facts))


def run(writer: str, network: str, with_release: bool) -> list[Load]:
    """
    Load all that a package writes for a network.

    Args:
        writer: the package.
        network: name of the class.
        with_release: whether the release loads it, too.

    Raises:
        ForkError: if a package cannot be had.
    """
    torch.set_num_threads(1)
    place = references(writer, network)
    written = torch.load(place, weights_only=True)
    done: list[Load] = []
    nested: set[str] = set()
    for case in CASES:
        if case.writer == writer and case.network == network:
            loads = list(loads_into_the_fork(case, written[case.name], nested))
            done += _with_release(loads, place) if with_release else loads
    return done


def _with_release(loads: list[Load], place: Path) -> list[Load]:
    plain = [load for load in loads if load.way == "plain"]
    networks = [(load.target.network, load.target.arguments) for load in plain]
    results = _release().ask("load", place, loads[0].case.name, networks)
    found = dict(zip(map(id, plain), results))
    return [Load(**{**vars(load), "release": found.get(id(load))}) for load in loads]


@lru_cache(maxsize=1)
def _release() -> Referee:
    release = Referee(WORKER)
    atexit.register(release.close)
    return release
