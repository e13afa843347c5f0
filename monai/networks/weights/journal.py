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

"""The working state of a load: a state dict that remembers where its tensors come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["KINDS", "Journal", "Origin"]

KINDS = ("loaded", "converted", "resampled", "inflated", "written by rule")
"""What may have happened to a tensor, from the least to the most."""


@dataclass(frozen=True)
class Origin:
    """
    Where a tensor comes from.

    Args:
        keys: of the tensors of the file that it is made of; none where it was written by a rule.
        kind: one of :data:`KINDS`.
        changes: what was done to it beyond a new name, in words.
    """

    keys: tuple[str, ...]
    kind: str = "loaded"
    changes: tuple[str, ...] = ()


class Journal(dict):
    """
    A state dict on its way into a network. Whoever moves or changes tensors in it leaves a trace.

    A tensor that is taken out and put back as it is, under whatever key, keeps its origin. Any other tensor that is put
    in is made of those that were taken out since the last one was put, or of the one whose place it takes.

    Args:
        state_dict: the tensors of the file. It is left as it is.
    """

    def __init__(self, state_dict: Mapping[str, Any]) -> None:
        super().__init__(state_dict)
        self.file: dict[str, Any] = dict(state_dict)
        self.origins: dict[str, Origin] = {key: Origin((key,)) for key in state_dict}
        self.ignored: dict[str, str] = {}
        self._text, self._kind = "", "converted"
        self._taken: list[tuple[Any, Origin]] = []
        self._spent = False  # whether something was made of what was taken

    @contextmanager
    def doing(self, text: str, kind: str = "converted") -> Iterator[None]:
        """
        Say what is done to tensors inside of the ``with`` block. What is taken there and put nowhere counts as ignored,
        for the reason ``text``.

        Args:
            text: in words.
            kind: one of :data:`KINDS`.

        Raises:
            ValueError: if there is no such kind.
        """
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r} should be one of {KINDS}.")
        before = self._text, self._kind
        self._settle()
        self._text, self._kind = text, kind
        try:
            yield
        finally:
            self._settle()
            self._text, self._kind = before

    def ignore(self, key: str, why: str) -> None:
        """Take a tensor out that nothing needs."""
        with self.doing(why):
            self.pop(key)

    def share(self, key: str, other: str) -> None:
        """Say that a tensor of the network is the same one as another, and comes from where that comes from."""
        super().__setitem__(key, self[other])
        self.origins[key] = self.origins[other]

    def pop(self, key: str, *default: Any) -> Any:  # type: ignore[override]
        """Take a tensor out."""
        if key not in self:
            return super().pop(key, *default)
        if self._spent:
            self._forget_taken()
        value = super().pop(key)
        self._taken.append((value, self.origins.pop(key)))
        return value

    def __delitem__(self, key: str) -> None:
        self.pop(key)

    def __setitem__(self, key: str, value: Any) -> None:
        self.origins[key] = self._origin(key, value)
        super().__setitem__(key, value)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Put several tensors in."""
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def clear(self) -> None:
        """Begin again: the journal is empty and knows nothing but the file."""
        super().clear()
        self.origins.clear()
        self.ignored.clear()
        self._taken.clear()

    def _origin(self, key: str, value: Any) -> Origin:
        for place, (taken, origin) in enumerate(self._taken):
            if taken is value:
                del self._taken[place]
                return origin
        if key in self:
            if self[key] is value:
                return self.origins[key]
            return self._changed([self.origins[key]])
        if self._taken:
            self._spent = True
            return self._changed([origin for _, origin in self._taken])
        if self.file.get(key) is value and value is not None:
            return Origin((key,))  # the checkpoint is put back as it was
        return Origin((), "written by rule", (self._text,) if self._text else ())

    def _changed(self, origins: list[Origin]) -> Origin:
        keys = tuple(dict.fromkeys(key for origin in origins for key in origin.keys))
        texts = [text for origin in origins for text in origin.changes] + ([self._text] if self._text else [])
        kind = max((self._kind, *(origin.kind for origin in origins)), key=KINDS.index)
        return Origin(keys, kind, tuple(dict.fromkeys(texts)))

    def _forget_taken(self) -> None:
        self._taken.clear()
        self._spent = False

    def _settle(self) -> None:
        """Of what was taken and went nowhere, say that it is ignored."""
        if not self._spent:
            for _, origin in self._taken:
                self.ignored.update(dict.fromkeys(origin.keys, self._text))
        self._forget_taken()
