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

"""
Rules by which the keys and tensors of an older layout become those of a network, each with its inverse.

A rule takes only keys that the network does not have itself: what is the network's own stays untouched, whatever a rule
says. Keys in rules are relative to the module that they are about.
"""

from __future__ import annotations

import math
import re
from collections.abc import MutableMapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn as nn

from monai.networks.state_dict.hooks import CheckpointFacts

__all__ = [
    "MERGED",
    "CausalMask",
    "Drop",
    "DropPart",
    "Flatten",
    "Interleaved",
    "Join",
    "Layers",
    "Misfit",
    "Numbered",
    "Part",
    "Refuse",
    "Rename",
    "Rule",
    "Shift",
    "Split",
    "Together",
    "Unused",
    "When",
    "Wrap",
    "recording",
]


MERGED = (
    "torch's set_model_state_dict does this to an older checkpoint, by adding the network's own keys. Load it by "
    "monai.networks.load_checkpoint, or adapt it first by adapted_state_dict(net, state_dict)."
)


class Misfit(RuntimeError):
    """Why a checkpoint does not fit a network, in a line."""


@dataclass
class Part:
    """
    A module's share of a checkpoint while it is adapted.

    Args:
        module: the module.
        prefix: of its keys.
        state: the checkpoint, which rules change.
        own: keys of the network that loads, with the prefix of the load.
        facts: what the user knows.
        unused: paths of the linears that the checkpoint says were never used, see :class:`Unused`.
    """

    module: Any
    prefix: str
    state: MutableMapping[str, Any]
    own: MutableMapping[str, Any]
    facts: CheckpointFacts = field(default_factory=CheckpointFacts)
    unused: list[str] = field(default_factory=list)

    def foreign(self, start: str = "") -> list[str]:
        """Keys of the checkpoint in this part that begin with ``start`` and are not the network's own, relative."""
        beginning, cut = self.prefix + start, len(self.prefix)
        return [key[cut:] for key in self.state if key.startswith(beginning) and key not in self.own]

    def has(self, key: str) -> bool:
        """Whether the checkpoint holds a key that is not the network's own."""
        return self.prefix + key in self.state and self.prefix + key not in self.own

    def expects(self, key: str) -> bool:
        """Whether the network has a key."""
        return self.prefix + key in self.own

    def take(self, key: str) -> Any:
        """Remove a key from the checkpoint and return its tensor."""
        return self.state.pop(self.prefix + key)

    def put(self, key: str, value: Any) -> None:
        """
        Add a key.

        Raises:
            Misfit: if the checkpoint has it: then keys of two layouts are mixed.
        """
        if self.prefix + key in self.state:
            raise Misfit(
                f"{self.prefix}{key} is there twice, under this key and an older one: keys of two layouts are mixed. "
                f"{MERGED}"
            )
        self.state[self.prefix + key] = value

    def move(self, old: str, new: str) -> None:
        """Rename a key; see :meth:`put`."""
        value = self.take(old)
        try:
            self.put(new, value)
        except Misfit:
            self.state[self.prefix + old] = value
            raise


def recording(state: MutableMapping[str, Any], text: str) -> AbstractContextManager:
    """Let a checkpoint that keeps an account of itself, as a ``Journal`` does, know what is done to it."""
    doing = getattr(state, "doing", None)
    out: AbstractContextManager = nullcontext() if doing is None else doing(text)
    return out


class Rule:
    """What is done to the keys of one module. A rule that finds none of its keys does nothing."""

    comes_last: ClassVar[bool] = False
    """Whether the rule waits until all modules of the network have found their keys."""
    does: ClassVar[str] = "renamed"
    """What becomes of tensors that are not only renamed, for the account of a load."""

    def apply(self, part: Part) -> None:
        """
        Change the checkpoint.

        Raises:
            Misfit: if it cannot be what the network computes.
        """
        raise NotImplementedError(type(self).__name__)

    def inverse(self) -> Rule | None:
        """The rule that goes back to the older layout; None where nothing is to be done."""
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True)
class Rename(Rule):
    """Keys that begin with ``old`` begin with ``new`` instead."""

    old: str
    new: str

    def apply(self, part: Part) -> None:
        for key in part.foreign(self.old):
            part.move(key, self.new + key[len(self.old) :])

    def inverse(self) -> Rename:
        return Rename(self.new, self.old)


@dataclass(frozen=True)
class Drop(Rule):
    """Weights that no output depends on are left out: every key that the pattern matches from its beginning."""

    pattern: str
    does = "no output depends on it"

    def apply(self, part: Part) -> None:
        for key in part.foreign():
            if re.match(self.pattern, key):
                part.take(key)

    def inverse(self) -> None:
        return None


@dataclass(frozen=True)
class CausalMask(Rule):
    """A causal mask that was saved is left out: it follows from how the block was built."""

    name: str
    does = "a causal mask follows from how the block was built"

    def apply(self, part: Part) -> None:
        if part.has(self.name):
            part.take(self.name)

    def inverse(self) -> _SavedMask:
        return _SavedMask(self.name)


@dataclass(frozen=True)
class _SavedMask(Rule):
    """The way back of :class:`CausalMask`. Masks of one length share their memory."""

    name: str
    masks: dict[int, torch.Tensor] = field(default_factory=dict, compare=False)

    def apply(self, part: Part) -> None:
        if part.module.causal:
            length = part.module.sequence_length
            if length not in self.masks:
                self.masks[length] = torch.ones(length, length).tril()[None, None]
            part.put(self.name, self.masks[length])

    def inverse(self) -> CausalMask:
        return CausalMask(self.name)


@dataclass(frozen=True)
class DropPart(Rule):
    """A whole part of the module is left out, where the network has nothing of it."""

    start: str
    does = "no output depends on it"

    def apply(self, part: Part) -> None:
        if not any(key.startswith(part.prefix + self.start) for key in part.own):
            for key in part.foreign(self.start):
                part.take(key)

    def inverse(self) -> None:
        return None


@dataclass(frozen=True)
class Shift(Rule):
    """
    Several layers change names at once, in this order, though some of the old names are new ones, too. It happens
    where the last of the old names is there.
    """

    names: tuple[tuple[str, str], ...]

    def apply(self, part: Part) -> None:
        if not part.foreign(self.names[-1][0]):
            return
        for old, new in self.names:
            beginning = part.prefix + old
            for key in [key for key in part.state if key.startswith(beginning)]:
                part.move(key[len(part.prefix) :], new + key[len(beginning) :])

    def inverse(self) -> Shift:
        return Shift(tuple((new, old) for old, new in reversed(self.names)))


@dataclass(frozen=True)
class Join(Rule):
    """Linears become one, whose rows are theirs, one after another."""

    olds: tuple[str, ...]
    new: str
    does = "joined, one below the other"

    def apply(self, part: Part) -> None:
        for kind in ("weight", "bias"):
            olds, new = [f"{old}.{kind}" for old in self.olds], f"{self.new}.{kind}"
            if part.expects(new) and all(part.has(old) for old in olds):
                part.put(new, torch.cat([part.take(old) for old in olds]))

    def inverse(self) -> Split:
        return Split(self.new, self.olds)


@dataclass(frozen=True)
class Split(Rule):
    """The rows of a linear become those of several, as many for each."""

    old: str
    news: tuple[str, ...]
    does = "its rows are those of several"

    def apply(self, part: Part) -> None:
        for kind in ("weight", "bias"):
            old, news = f"{self.old}.{kind}", [f"{new}.{kind}" for new in self.news]
            if part.has(old) and all(part.expects(new) for new in news):
                for new, rows in zip(news, part.take(old).chunk(len(news))):
                    part.put(new, rows)

    def inverse(self) -> Join:
        return Join(self.news, self.old)


@dataclass(frozen=True)
class Flatten(Rule):
    """The weight of a convolution of size 1 becomes that of a linear; ``sizes`` is what the way back appends."""

    key: str
    sizes: tuple[int, ...] = ()
    does = "a convolution of size 1 is a linear"

    def apply(self, part: Part) -> None:
        value = part.state.get(part.prefix + self.key)
        if value is None:
            return
        if self.sizes:
            part.state[part.prefix + self.key] = value.reshape(*value.shape, *self.sizes)
        elif value.dim() > 2 and math.prod(value.shape[2:]) == 1:
            part.state[part.prefix + self.key] = value.flatten(1)

    def inverse(self) -> Flatten:
        return Flatten(self.key, () if self.sizes else (1,))


@dataclass(frozen=True)
class Interleaved(Rule):
    """
    One linear or convolution of size 1 whose rows are ordered by head, then by q, k and v, becomes three.

    Args:
        old: its name.
        news: names of those of q, k and v.
        heads: attribute of the module, by its path, that tells the number of heads.
    """

    old: str
    news: tuple[str, str, str]
    heads: str
    does = "rows in the order of q, k and v"

    def apply(self, part: Part) -> None:
        heads = self._heads(part.module)
        for kind in ("weight", "bias"):
            old = f"{self.old}.{kind}"
            if not part.has(old) or part.state[part.prefix + old].shape[0] % (3 * heads) != 0:
                continue
            rows = part.take(old)
            separate = rows.reshape(heads, 3, rows.shape[0] // (3 * heads), -1).transpose(0, 1).flatten(1, 2)
            for new, values in zip(self.news, separate):
                part.put(f"{new}.{kind}", values if kind == "weight" else values[:, 0])

    def inverse(self) -> Interleaved:
        return _Interleave(self.old, self.news, self.heads)

    def _heads(self, module: nn.Module) -> int:
        path, _, name = self.heads.rpartition(".")
        return int(getattr(module.get_submodule(path), name))


@dataclass(frozen=True)
class _Interleave(Interleaved):
    """The way back of :class:`Interleaved`."""

    def apply(self, part: Part) -> None:
        heads = self._heads(part.module)
        for kind in ("weight", "bias"):
            keys = [f"{new}.{kind}" for new in self.news]
            if all(part.prefix + key in part.state for key in keys):
                parts = [part.take(key) for key in keys]
                stacked = torch.stack([rows.reshape(heads, rows.shape[0] // heads, -1) for rows in parts], dim=1)
                rows = stacked.flatten(0, 2)
                part.put(f"{self.old}.{kind}", rows if kind == "weight" else rows[:, 0])

    def inverse(self) -> Interleaved:
        return Interleaved(self.old, self.news, self.heads)


@dataclass(frozen=True)
class Unused(Rule):
    """
    A linear that was saved and never used: it is left out, and the network's, if it has one, becomes an identity where
    the whole checkpoint is loaded.

    Args:
        old: its name in the checkpoint.
        new: the network's.
    """

    old: str
    new: str
    does = "its network never used it"

    def apply(self, part: Part) -> None:
        keys = part.foreign(f"{self.old}.")
        for key in keys:
            part.take(key)
        if keys and part.expects(f"{self.new}.weight"):
            part.unused.append(part.prefix + self.new)

    def inverse(self) -> Unused:
        return Unused(self.new, self.old)


@dataclass(frozen=True)
class Numbered(Rule):
    """Keys that begin with a number get a name before it."""

    name: str

    def apply(self, part: Part) -> None:
        for key in part.foreign():
            if key.partition(".")[0].isdecimal():
                part.move(key, self.name + key)

    def inverse(self) -> Rename:
        return Rename(self.name, "")


@dataclass(frozen=True)
class Layers(Rule):
    """The layers with weights of a sequence, whose numbers are not known, get names."""

    sequence: str
    names: tuple[str, ...]

    def apply(self, part: Part) -> None:
        keys = part.foreign(f"{self.sequence}.")
        numbers = sorted({key.split(".")[1] for key in keys if key.split(".")[1].isdecimal()}, key=int)
        if len(numbers) == len(self.names):
            for number, name in zip(numbers, self.names):
                Rename(f"{self.sequence}.{number}.", f"{name}.").apply(part)

    def inverse(self) -> None:
        return None  # the numbers that a layout used are lost: no way back


@dataclass(frozen=True)
class Wrap(Rule):
    """Layers that were bare lie in a wrapper now: where the network has ``path.name.weight``, ``path.weight`` is it."""

    name: str
    comes_last = True

    def apply(self, part: Part) -> None:
        for key in list(part.own):
            path, inside, kind = key[len(part.prefix) :].rpartition(f"{self.name}.")
            if key.startswith(part.prefix) and inside and kind in ("weight", "bias") and part.has(path + kind):
                part.move(path + kind, path + inside + kind)

    def inverse(self) -> None:
        return None  # which layers were bare is lost: no way back


@dataclass(frozen=True)
class Refuse(Rule):
    """A checkpoint with keys that begin with ``start`` is refused, where they are not the network's own."""

    start: str
    reason: str

    def apply(self, part: Part) -> None:
        if part.foreign(self.start):
            raise Misfit(f"{part.prefix}{self.start}*: {self.reason}")

    def inverse(self) -> None:
        return None


@dataclass(frozen=True)
class Together(Rule):
    """Several rules, one after another."""

    rules: tuple[Rule, ...]

    def apply(self, part: Part) -> None:
        for rule in self.rules:
            with recording(part.state, rule.does):
                rule.apply(part)

    def inverse(self) -> Together:
        backwards = [rule.inverse() for rule in reversed(self.rules)]
        return Together(tuple(rule for rule in backwards if rule is not None))


@dataclass(frozen=True)
class When(Rule):
    """Rules for checkpoints that have keys that begin with ``start`` in the same module, and not the network's own."""

    start: str
    rules: tuple[Rule, ...]

    def apply(self, part: Part) -> None:
        if part.foreign(self.start):
            Together(self.rules).apply(part)

    def inverse(self) -> Together:
        return Together(self.rules).inverse()
