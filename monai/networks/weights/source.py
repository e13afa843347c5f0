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

"""Layouts of other packages: who wrote a file, and by which rules its keys become those of a network, and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.nn as nn

from monai.networks.state_dict.rules import Misfit, Part, Rule

from .journal import Journal

__all__ = ["Source", "becomes", "recognize", "translate", "translate_back"]

Check = Callable[[nn.Module, Mapping[str, Any], Mapping[str, Any]], Iterable[str]]
"""
Given the network, the file's state dict and its configuration (empty where there is none), a line for everything that
the network would compute in another way than the package that wrote the file.
"""

Adapt = Callable[[Journal, Mapping[str, Any]], None]
"""Given the tensors of a file and its configuration, does what only the configuration says, before the rules."""


def _nothing(net: nn.Module, state: Mapping[str, Any], config: Mapping[str, Any]) -> Iterable[str]:
    return ()


def _as_they_are(journal: Journal, config: Mapping[str, Any]) -> None:
    """The configuration says nothing about how tensors are to be read."""


@dataclass(frozen=True)
class Source:
    """
    A package's layout of a network's weights.

    Args:
        name: a short name, for the arguments ``source`` and ``--to``.
        package: who writes it, in words.
        pattern: of a key that shows it, and that no network of this package has.
        networks: names of the classes that it can become.
        rules: by the role of a module, ``""`` for the network as a whole, which comes first. They take the keys of the
            file to those that a network of this package with the same number of dimensions and the same sizes has.
        refusals: patterns of keys of what no network here computes, each with the reason and the remedy.
        check: see :data:`Check`.
        adapt: see :data:`Adapt`.
        reversible: whether the way back gives what the package loads.
        written_config: gives the configuration with which the package builds such a network, where it keeps one in
            ``config.json`` beside the weights.
        is_monai: whether MONAI wrote it, so that older layouts of MONAI may lie in it, too.
        unless: pattern of a key that shows that it is another layout, which has such keys, too; none by default.
    """

    name: str
    package: str
    pattern: str
    networks: tuple[str, ...]
    rules: Mapping[str, tuple[Rule, ...]]
    refusals: tuple[tuple[str, str], ...] = ()
    check: Check = field(default=_nothing)
    adapt: Adapt = field(default=_as_they_are)
    reversible: bool = True
    written_config: Callable[[nn.Module], dict[str, Any]] | None = None
    is_monai: bool = False
    unless: str | None = None

    def evidence(self, keys: Iterable[str]) -> str | None:
        """A key that shows this layout; None where there is none."""
        names = list(keys)
        if self.unless is not None and any(re.search(self.unless, key) for key in names):
            return None
        pattern = re.compile(self.pattern)
        return next((key for key in names if pattern.search(key)), None)


def becomes(net: nn.Module, source: Source) -> bool:
    """Whether a network is one of those that a layout is for."""
    return any(base.__name__ in source.networks for base in type(net).__mro__)


def recognize(sources: Iterable[Source], keys: Iterable[str]) -> list[tuple[Source, str]]:
    """The layouts that keys show, each with one that shows it."""
    names = list(keys)
    found = ((source, source.evidence(names)) for source in sources)
    return [(source, key) for source, key in found if key is not None]


def translate(net: nn.Module, journal: Journal, source: Source, config: Mapping[str, Any] | None = None) -> None:
    """
    Give the tensors of a file the names that a network of this package has for them. Changes the journal alone.

    Args:
        net: the network.
        journal: the tensors of the file.
        source: their layout.
        config: the configuration that the package saved beside its weights, where there is one.

    Raises:
        RuntimeError: with all reasons, if the network cannot compute what the file's network did.
    """
    problems = [*_refused(journal, source)]
    if not becomes(net, source):
        problems.append(
            f"{source.package} wrote the file, which a {type(net).__name__} cannot take: it is for "
            f"{' or '.join(source.networks)}. Where that is a part of your network, name it by into=."
        )
    else:
        problems += source.check(net, journal, config or {})
    if not problems:
        try:
            source.adapt(journal, config or {})
            _apply(net, journal, source)
        except Misfit as error:
            problems.append(str(error))
    if problems:
        raise RuntimeError(f"The file is not loaded into {type(net).__name__}:\n\t" + "\n\t".join(problems))


def translate_back(net: nn.Module, state_dict: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """
    Give a network's tensors the names that another package has for them.

    Args:
        net: the network.
        state_dict: its state dict, which is left as it is.
        source: the layout that is wanted.

    Raises:
        ValueError: if the layout has no way back, or is not one of such a network.
        RuntimeError: if the package cannot compute what the network does.
    """
    if not source.reversible or not becomes(net, source):
        raise ValueError(
            f"A {type(net).__name__} cannot be written as {source.package} has it: only "
            f"{' or '.join(source.networks)} can{'' if source.reversible else ', and there is no way back'}."
        )
    problems = list(source.check(net, {}, {}))
    if problems:
        reasons = "\n\t".join(problems)
        raise RuntimeError(f"{type(net).__name__} is not written as {source.package} has it:\n\t{reasons}")
    state = dict(state_dict)
    for name, module, rules in reversed(list(_by_module(net, source))):
        for rule in reversed(rules):
            back = rule.inverse()
            if back is not None:
                back.apply(_Backwards(module, f"{name}." if name else "", state, {}))
    return state


class _Backwards(Part):
    """A module's share of a state dict on its way to another package, which takes every key."""

    def expects(self, key: str) -> bool:
        """That package has whatever key a rule makes."""
        return True


def _apply(net: nn.Module, journal: Journal, source: Source) -> None:
    own = dict(net.state_dict())
    for name, module, rules in _by_module(net, source):
        part = Part(module, f"{name}." if name else "", journal, own)
        for rule in rules:
            with journal.doing(rule.does):
                rule.apply(part)


def _by_module(net: nn.Module, source: Source) -> Iterator[tuple[str, nn.Module, tuple[Rule, ...]]]:
    """The modules that a layout has rules for, each with its name and its rules."""
    for name, module in net.named_modules(remove_duplicate=False):
        roles = ([""] if not name else []) + [getattr(module, "layout_role", None) or "-"]
        rules = tuple(rule for role in roles for rule in source.rules.get(role, ()))
        if rules:
            yield name, module, rules


def _refused(state: Mapping[str, Any], source: Source) -> Iterator[str]:
    for pattern, reason in source.refusals:
        found = next((key for key in state if re.search(pattern, key)), None)
        if found is not None:
            yield f"{found}: {reason}"
