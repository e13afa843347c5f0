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

"""Builds the network of a bundle's configuration without running code of it: an allowed class, and plain arguments."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import partial
from typing import Any

import torch
import torch.nn as nn

from .untrusted import CheckpointRefused, quoted, shown

__all__ = ["NetworkBuilder", "fetching"]

ROOMS = ("monai.networks", "monai.apps.generation", "monai.apps.reconstruction", "monai.apps.detection", "torch.nn")
"""Packages whose modules have constructors that run nothing else; ``torch.nn`` for modules inside of a network."""
HOMES = (*ROOMS[:-1], "torch.nn.modules")  # where their classes are defined
ENUMS = "monai.utils"
DEEPEST = 50  # values in one another
MAX_TEXT = 1000  # characters of a text; MONAI compares an unknown one with those it knows, in quadratic time
LONGEST_ERROR = 400  # characters of what a constructor says, which may repeat any text of the configuration


def fetching(name: str, others: Mapping[str, Any] | Sequence[str]) -> bool:
    """Whether an argument of a network of MONAI asks for weights from elsewhere; ``others`` are its other arguments."""
    return name.startswith("pretrained") or (name == "weights" and "pretrained" in others)


class NetworkBuilder:
    """
    Builds a network as ``ConfigParser`` does, from what is safe whoever wrote it.

    Args:
        allow: names of further packages, whose modules are imported and whose classes and functions are called.
    """

    def __init__(self, allow: Sequence[str] = ()) -> None:
        if isinstance(allow, str):
            raise TypeError(f"allow is a sequence of packages, got the text {allow!r}: pass ({allow!r},).")
        self.allow = tuple(name.rstrip(".") for name in allow)

    def build(self, config: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> nn.Module:
        """
        Build a network.

        Args:
            config: ``_target_`` and arguments.
            defaults: what arguments that ``config`` lacks were when it was written; where the class has another default
                today, they are passed.

        Raises:
            CheckpointRefused: if the class is not allowed, an argument is none that is built without running code, or
                the class does not take them.
        """
        cls = self._class(config)
        arguments = self._arguments(config)
        known = inspect.signature(cls.__init__).parameters
        for name, value in (defaults or {}).items():
            if name in arguments:
                continue
            value = self._value(value, name, 1)
            if name not in known or not _same(known[name].default, value):
                arguments[name] = value
        return self._made(cls, arguments)

    def _made(self, cls: type[nn.Module], arguments: dict[str, Any]) -> nn.Module:
        asked = [name for name, value in arguments.items() if fetching(name, arguments) and value]
        if asked:
            given = f"{quoted(asked[0])}, {quoted(arguments[asked[0]])}"
            raise CheckpointRefused(f"{cls.__name__} is asked for other weights by {given}: leave it out.")
        try:
            return cls(**arguments)
        except NotImplementedError:
            raise  # what the meta device cannot do
        except Exception as error:  # whatever a constructor raises is about the arguments
            message = f"{cls.__name__} cannot be built from these arguments: {shown(error, LONGEST_ERROR)}"
            raise CheckpointRefused(f"{message}. Was it saved by another version of MONAI?") from error

    def _class(self, config: Mapping[str, Any]) -> type[nn.Module]:
        found = self._found(config.get("_target_"))
        if not (isinstance(found, type) and issubclass(found, nn.Module)):
            raise CheckpointRefused(f"_target_ {quoted(config['_target_'])} is no network, a class of torch.nn.Module.")
        return found

    def _arguments(self, config: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
        marked = [name for name in config if name.startswith("_") and name not in ("_target_", "_mode_", "_desc_")]
        if marked:
            raise CheckpointRefused(f"{quoted(marked[0])} in a network's configuration is not taken: leave it out.")
        return {name: self._value(value, name, depth + 1) for name, value in config.items() if name[:1] != "_"}

    def _value(self, value: Any, place: str, depth: int) -> Any:
        if depth > DEEPEST:
            raise CheckpointRefused(f"{quoted(place)} has values in one another, more than {DEEPEST} deep.")
        if isinstance(value, str):
            return _text(value, place)
        if isinstance(value, (list, tuple)):
            return type(value)(self._value(item, place, depth + 1) for item in value)
        if not isinstance(value, Mapping):
            return value
        if "_target_" in value:
            return self._component(value, depth)
        return {name: self._value(item, f"{place}::{name}", depth + 1) for name, item in value.items()}

    def _component(self, config: Mapping[str, Any], depth: int) -> Any:
        found, mode = self._found(config["_target_"]), config.get("_mode_", "default")
        arguments = self._arguments(config, depth)
        if mode == "callable":
            return partial(found, **arguments) if arguments else found
        if mode != "default":
            raise CheckpointRefused(f"_mode_ {quoted(mode)} is not taken: 'default' and 'callable' are.")
        if isinstance(found, type) and issubclass(found, nn.Module):
            return self._made(found, arguments)
        if not self._is_allowed(config["_target_"]) and not (isinstance(found, type) and issubclass(found, Enum)):
            raise CheckpointRefused(f"_target_ {quoted(config['_target_'])} is not called{self._remedy()}")
        try:
            return found(**arguments)
        except Exception as error:
            raise CheckpointRefused(
                f"{quoted(config['_target_'])} does not take its arguments: {shown(error, LONGEST_ERROR)}."
            ) from error

    def _found(self, target: Any) -> Any:
        """A class or function that is allowed, by its name."""
        if not isinstance(target, str) or not all(part.isidentifier() for part in target.split(".")):
            raise CheckpointRefused(f"_target_ {quoted(target)} is no name of a class.")
        allowed = self._is_allowed(target)
        if not allowed and not _is_in(target, (*ROOMS, ENUMS)):
            raise CheckpointRefused(f"_target_ {quoted(target)} is not built{self._remedy()}")
        found = _imported(target)
        if found is None:
            raise CheckpointRefused(
                f"_target_ {quoted(target)} is not there: is its package installed, and of the version that wrote it?"
            )
        home = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
        if not (self._is_allowed(home) if allowed else _is_harmless(found, home)):
            raise CheckpointRefused(f"_target_ {quoted(target)}, which is {quoted(home)}, is not built{self._remedy()}")
        return found

    def _is_allowed(self, name: str) -> bool:
        return _is_in(name, self.allow)

    def _remedy(self) -> str:
        also = "".join(f", {name}" for name in self.allow)
        return f": networks come from {', '.join(ROOMS[:-1])}{also}. If you trust its code, allow=(PACKAGE,) lets it."


def _is_in(name: str, packages: Sequence[str]) -> bool:
    return any(name.startswith(f"{package}.") for package in packages)


def _is_harmless(found: Any, home: str) -> bool:
    if isinstance(found, type):
        homes = (ENUMS, *HOMES) if issubclass(found, Enum) else HOMES if issubclass(found, nn.Module) else ()
        return _is_in(home, homes)
    return callable(found) and found is getattr(torch.nn.functional, home.rpartition(".")[2], None)


def _imported(target: str) -> Any:
    """What a dotted name means; None if there is no such thing."""
    parts = target.split(".")
    for length in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:length])
        try:
            found: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise CheckpointRefused(
                    f"{quoted(target)} needs the package {quoted(error.name)}: {shown(error, LONGEST_ERROR)}."
                ) from error
            continue
        for part in parts[length:]:
            found = getattr(found, part, None)
        return found
    return None


def _text(value: str, place: str) -> Any:
    """A text, or the literal or the type of torch that it stands for."""
    if value[:1] in ("@", "%"):
        raise CheckpointRefused(f"{quoted(place)} is {quoted(value)}: references are not resolved; write its value.")
    if value[:1] != "$":
        return _short(value, place)
    dtype = getattr(torch, value.removeprefix("$torch."), None) if value.startswith("$torch.") else None
    if isinstance(dtype, torch.dtype):
        return dtype
    try:
        found = ast.literal_eval(value[1:])
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise CheckpointRefused(
            f"{quoted(place)} is {quoted(value)}: expressions are not run, other than literals of Python and types of "
            "torch; write its value."
        ) from None
    return _short(found, place)


def _short(value: Any, place: str) -> Any:
    """A value, if no text in it is too long."""
    if isinstance(value, (str, bytes)) and len(value) > MAX_TEXT:
        raise CheckpointRefused(f"{quoted(place)} has {len(value):,} characters; at most {MAX_TEXT:,} are taken.")
    items = [*value, *value.values()] if isinstance(value, dict) else value
    for item in items if isinstance(items, (list, tuple, set)) else ():
        _short(item, place)
    return value


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)
