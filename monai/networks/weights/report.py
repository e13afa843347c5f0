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

"""What became of every parameter of a network and of every tensor of a file, when one was loaded from the other."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from .journal import KINDS, Journal

__all__ = ["LEFT", "LoadReport", "ParameterLine", "TensorLine", "account"]

LEFT, UNJUDGED = "left", "left to its module"
SHOWN = 8  # how many keys of one outcome the text shows


@dataclass(frozen=True)
class ParameterLine:
    """
    What became of a parameter or buffer of the network.

    Args:
        key: its name in the network's state dict.
        shape: its shape.
        outcome: "loaded", "converted", "resampled", "inflated", "written by rule" or "left" as it was; "left to its
            module" where the file does not hold it and the module loads in a way of its own.
        how: what was done to the tensors of the file, in words; or why it was left.
        tensors: keys of the tensors of the file that it is made of.
    """

    key: str
    shape: tuple[int, ...]
    outcome: str
    how: str
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class TensorLine:
    """
    What became of a tensor of the file.

    Args:
        key: its name in the file.
        shape: its shape.
        outcome: "used" or "ignored"; "left to its module" where the network has no parameter of that name, and a module
            that loads in a way of its own took it.
        how: the parameters that were made of it, or why it was ignored.
    """

    key: str
    shape: tuple[int, ...]
    outcome: str
    how: str


@dataclass(frozen=True)
class LoadReport:
    """
    An account of a load: a line for every parameter and buffer of the network, and for every tensor of the file.

    Args:
        network: class of the network.
        layouts: who wrote the keys of the file, where that is known.
        parameters: in the order of the network's state dict.
        tensors: in the order of the file.
    """

    network: str
    layouts: tuple[str, ...]
    parameters: tuple[ParameterLine, ...]
    tensors: tuple[TensorLine, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many parameters and buffers had each outcome, those that none had left out."""
        counts = Counter(line.outcome for line in self.parameters)
        return {outcome: counts[outcome] for outcome in (*KINDS, LEFT, UNJUDGED) if counts[outcome]}

    @property
    def left(self) -> tuple[str, ...]:
        """Keys of the parameters and buffers that are as they were before."""
        return tuple(line.key for line in self.parameters if line.outcome == LEFT)

    @property
    def ignored(self) -> dict[str, str]:
        """Tensors of the file that went nowhere, and why."""
        return {line.key: line.how for line in self.tensors if line.outcome == "ignored"}

    def inside(self, network: str, own: Mapping[str, Any], path: str, ties: Mapping[str, str]) -> LoadReport:
        """
        The account of a network of which a submodule was loaded.

        Args:
            network: its class.
            own: its state dict.
            path: of the submodule.
            ties: keys of parameters that are the same tensor as one of the submodule, and that one's key.
        """
        lines = {f"{path}.{line.key}": replace(line, key=f"{path}.{line.key}") for line in self.parameters}
        why = f"it is not in {path}, which the file is for"
        parameters = []
        for key, value in own.items():
            line = lines.get(ties.get(key, key))
            parameters.append(
                ParameterLine(key, _shape(value), LEFT, why, ()) if line is None else replace(line, key=key)
            )
        return replace(self, network=network, parameters=tuple(parameters))

    def to_json(self) -> str:
        """All lines as JSON."""
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in self.counts.items()) or "no parameters"
        used = sum(line.outcome == "used" for line in self.tensors)
        lines = [f"{self.network}: {counts}; {used} of {len(self.tensors)} tensors of the file used"]
        lines += [f"  the file's keys are those of {layout}" for layout in self.layouts]
        lines += _grouped((line.outcome, line.how, line.key) for line in self.parameters if line.outcome != KINDS[0])
        lines += _grouped((line.outcome, line.how, line.key) for line in self.tensors if line.outcome != "used")
        return "\n".join(lines)


def account(
    network: str,
    own: Mapping[str, Any],
    journal: Journal,
    layouts: Iterable[str] = (),
    left: Mapping[str, str] | None = None,
    others_handed_on: bool = True,
) -> LoadReport:
    """
    Draw up the account of a load.

    Args:
        network: class of the network.
        own: the network's state dict.
        journal: what was loaded, under the network's keys.
        layouts: who wrote the keys of the file.
        left: parameters that stay as they were, and why.
        others_handed_on: whether tensors of other names than the network's are in the journal for modules that take
            them, as a strict load demands.
    """
    parameters: list[ParameterLine] = []
    uses: dict[str, list[str]] = {}
    for key, value in own.items():
        if left is not None and key in left:
            parameters.append(ParameterLine(key, _shape(value), LEFT, left[key], ()))
            continue
        if key not in journal:
            parameters.append(ParameterLine(key, _shape(value), UNJUDGED, "", ()))
            continue
        origin = journal.origins[key]
        parameters.append(ParameterLine(key, _shape(value), origin.kind, "; ".join(origin.changes), origin.keys))
        for used in origin.keys:
            uses.setdefault(used, []).append(key)
    handed = {key for key in journal if key not in own} if others_handed_on else set()
    used_by_none = {key: UNJUDGED for name in handed for key in journal.origins[name].keys}
    tensors = [
        _tensor_line(key, value, uses.get(key), journal, used_by_none.get(key, "ignored"))
        for key, value in journal.file.items()
    ]
    return LoadReport(network, tuple(layouts), tuple(parameters), tuple(tensors))


def _tensor_line(key: str, value: Any, used: list[str] | None, journal: Journal, otherwise: str) -> TensorLine:
    if used:
        return TensorLine(key, _shape(value), "used", ", ".join(used))
    if otherwise == UNJUDGED:
        return TensorLine(key, _shape(value), UNJUDGED, "")
    return TensorLine(key, _shape(value), "ignored", journal.ignored.get(key, "the network has no such parameter"))


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", ()))


def _grouped(lines: Iterable[tuple[str, str, str]]) -> list[str]:
    """A line for each outcome and reason, with some of its keys."""
    groups: dict[tuple[str, str], list[str]] = {}
    for outcome, how, key in lines:
        groups.setdefault((outcome, how), []).append(key)
    return [
        f"  {outcome}{f' ({how})' if how else ''}: {', '.join(keys[:SHOWN])}"
        + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")
        for (outcome, how), keys in groups.items()
    ]
