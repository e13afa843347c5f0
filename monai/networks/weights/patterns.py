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

"""Rules that find keys by patterns, wherever in a network they are."""

from __future__ import annotations

import re
from dataclasses import dataclass

from monai.networks.state_dict.rules import Drop, Part, Rule

__all__ = ["Everywhere", "Ignore", "OneWay", "Unflatten"]


@dataclass(frozen=True)
class Everywhere(Rule):
    """
    Keys that a pattern matches as a whole get another name.

    Args:
        old: pattern of the keys, with groups.
        new: the new name, with ``\\1`` for what the first group has matched.
        back: pattern of the new keys, for the way back.
        again: the old name, with ``\\1`` for what the first group of ``back`` has matched.
    """

    old: str
    new: str
    back: str
    again: str

    def apply(self, part: Part) -> None:
        for key in part.foreign():
            found = re.fullmatch(self.old, key)
            if found:
                part.move(key, found.expand(self.new))

    def inverse(self) -> Everywhere:
        return Everywhere(self.back, self.again, self.old, self.new)


@dataclass(frozen=True)
class Ignore(Drop):
    """
    Tensors that the network has no place for, and that none of its outputs depends on, are left out.

    Args:
        pattern: of their keys, from the beginning.
        why: nothing depends on them.
    """

    why: str

    @property
    def does(self) -> str:  # type: ignore[override]
        """Why they are ignored."""
        return self.why


@dataclass(frozen=True)
class OneWay(Rule):
    """A rule for what only older versions of a package write: the way back leaves what its newer versions have."""

    rule: Rule

    @property
    def does(self) -> str:  # type: ignore[override]
        """What the rule does."""
        does: str = self.rule.does
        return does

    def apply(self, part: Part) -> None:
        self.rule.apply(part)

    def inverse(self) -> None:
        return None


@dataclass(frozen=True)
class Unflatten(Rule):
    """
    The weight of a linear becomes that of a convolution of size 1, which the package has as well.

    Args:
        pattern: of the weight's key, as a whole.
        dims: number of the convolution's axes.
    """

    pattern: str
    dims: int
    does = "a linear is a convolution of size 1"

    def apply(self, part: Part) -> None:
        for key in part.foreign():
            value = part.state[part.prefix + key]
            if re.fullmatch(self.pattern, key) and value.dim() == 2:
                part.state[part.prefix + key] = value.reshape(*value.shape, *[1] * self.dims)

    def inverse(self) -> None:
        return None
