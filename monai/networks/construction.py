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
What a network was built from: its arguments, kept at construction in the language of MONAI's bundles.

The arguments are seen by ``__new__``, which Python hands those of the outermost class, whatever a subclass passes on to
its bases. ``__init__`` stays as it is, for TorchScript reads its source. What is kept are JSON values in a dictionary:
a pickle of the module needs no other class than without it, and later changes of a list that was passed do not reach
it.
"""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn as nn

__all__ = ["RECORD", "bound_arguments", "encoded", "record_classes", "record_construction", "target_of", "without_form"]

RECORD = "_built_from"
"""Name in the ``__dict__`` of a module."""
NO_FORM = "_without_form_"
"""Marks, in what :func:`encoded` gives, a value that the language cannot express."""
MARKS = "$@%#"  # what gives a text of a bundle another meaning
Class = TypeVar("Class", bound=type)


def record_construction(cls: Class) -> Class:
    """
    Let the modules of a class and of its subclasses remember the arguments that they are built from.

    Args:
        cls: a class of modules; its ``__init__`` and its signature stay as they are.

    Returns:
        the class, so that this is a decorator.

    Example::

        @record_construction
        class MyNet(nn.Module):
            def __init__(self, channels: int): ...

    """
    if _records(inspect.getattr_static(cls, "__new__")):
        return cls

    def build(kind: type, /, *args: Any, **kwargs: Any) -> Any:
        new = super(cls, kind).__new__  # type: ignore[arg-type,misc]
        if torch.compiler.is_dynamo_compiling():  # which takes object's for another one, and traces no record
            return new(kind)
        module = new(kind) if new is object.__new__ else new(kind, *args, **kwargs)
        vars(module)[RECORD] = {
            "class": _name_of(kind),
            "args": [_kept(value) for value in args],
            "kwargs": {name: _kept(value) for name, value in kwargs.items()},
        }
        return module

    build.records_construction = True  # type: ignore[attr-defined]
    build.__wrapped__ = _Signature(cls)  # type: ignore[attr-defined]  # inspect.signature(cls) follows it
    build.__name__, build.__qualname__ = "__new__", f"{cls.__qualname__}.__new__"
    cls.__new__ = staticmethod(build)  # type: ignore[assignment,method-assign]
    return cls


class _Signature:
    """
    The signature of a class's ``__init__``, also where that is replaced later.

    Args:
        cls: the class.
    """

    def __init__(self, cls: type) -> None:
        self.cls = cls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.cls.__init__(*args, **kwargs)  # type: ignore[misc]

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.cls.__init__)  # type: ignore[misc]


def record_classes(names: Mapping[str, Any]) -> tuple[type[nn.Module], ...]:
    """
    Apply :func:`record_construction` to the networks of a package.

    Args:
        names: those of the package; of each of its modules in it, the public classes are taken, too.

    Returns:
        the classes
    """
    package = names["__name__"]
    inside = [value for value in names.values() if isinstance(value, ModuleType) and _is_in(package, value.__name__)]
    values = [*names.values(), *(value for module in inside for value in vars(module).values())]
    found = [value for value in values if isinstance(value, type) and issubclass(value, nn.Module)]
    own = [cls for cls in dict.fromkeys(found) if _is_in(package, cls.__module__) and not cls.__name__.startswith("_")]
    return tuple(record_construction(cls) for cls in sorted(own, key=lambda cls: len(cls.__mro__)))


def bound_arguments(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    The arguments that a module was built from, by name, as a bundle has them.

    Args:
        module: a module of a class that :func:`record_construction` was applied to.

    Returns:
        those that were passed, and the defaults of the others as far as they have a form in the language

    Raises:
        ValueError: if they were not recorded, or a bundle cannot express how they were passed.
    """
    cls, record = type(module), vars(module).get(RECORD)
    first_new = next((vars(base)["__new__"] for base in cls.__mro__ if "__new__" in vars(base)), None)
    if record is None or not _records(first_new):
        raise ValueError(f"what {cls.__name__} was built from was not recorded")
    record = record if isinstance(record, dict) else vars(record)  # of an earlier pickle, without the class
    if record.get("class", _name_of(cls)) != _name_of(cls):
        raise ValueError(f"the network was built as {record['class']}, and is a {_name_of(cls)} now")
    signature = inspect.signature(module.__init__)  # type: ignore[misc]
    try:
        bound = signature.bind(*record["args"], **record["kwargs"])
    except TypeError as error:  # as of a network that comes from a pickle without a record
        raise ValueError(f"what {cls.__name__} was built from was not recorded ({error})") from None
    passed: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY):
            raise ValueError(f"{cls.__name__} takes {name!r} by position alone, and a configuration has names")
        passed.update(value if kind is inspect.Parameter.VAR_KEYWORD else {name: value})
    others = {name: encoded(each.default) for name, each in signature.parameters.items() if _has_default(each)}
    return passed, {n: value for n, value in others.items() if n not in passed and not any(without_form(value))}


def target_of(cls: type) -> str:
    """
    The name by which a class is imported, the shortest one for the networks of MONAI.

    Raises:
        ValueError: if nothing imports it by name, as of a class inside of a function, or of ``__main__``.
    """
    public = getattr(importlib.import_module("monai.networks.nets"), cls.__name__, None)
    if public is cls:
        return f"monai.networks.nets.{cls.__name__}"
    name = _import_name(cls)
    if name is None:
        raise ValueError(
            f"{cls.__module__}.{cls.__qualname__} cannot be imported by that name: define the class at the top of a "
            "module"
        )
    return name


def encoded(value: Any) -> Any:
    """
    Express a value by JSON, as a MONAI bundle has it, so that ``ConfigParser`` gives back the same value.

    Tuples and whatever else is made of plain values alone are literals of Python (``"$(1, 2)"``); types of torch are
    ``"$torch.float16"``; classes, functions and ``functools.partial`` name their ``_target_``; modules and enums are
    built from it.

    Args:
        value: any value; scalars of numpy become those of Python.

    Returns:
        JSON; what has no form is marked, see :func:`without_form`
    """
    kind = type(value)
    if value is None or kind in (bool, int) or (kind is str and not any(mark in value for mark in MARKS)):
        return value
    if kind is float and math.isfinite(value):
        return value
    if kind is list:
        return [encoded(item) for item in value]
    if kind is dict and all(_is_plain_name(name) for name in value):
        return {name: encoded(item) for name, item in value.items()}
    if isinstance(value, np.generic):
        return encoded(value.item())
    literal = _literal(value)
    return f"${literal}" if literal is not None else _component(value)


def without_form(tree: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """
    What of a value :func:`encoded` could not express.

    Yields:
        where it is, and what
    """
    if isinstance(tree, dict) and NO_FORM in tree:
        yield place, tree[NO_FORM]
        return
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for name, value in items:
        yield from without_form(value, f"{place}::{name}" if place else str(name))


def _kept(value: Any) -> Any:
    """What :func:`encoded` gives; a network is built all the same where a value of a user cannot even be looked at."""
    try:
        return encoded(value)
    except Exception as error:
        return {NO_FORM: f"a value of type {type(value).__name__} ({type(error).__name__}: {error})"}


def _component(value: Any) -> dict[str, Any] | str:
    if isinstance(value, torch.dtype):
        return f"${value}"
    if isinstance(value, Enum) and _import_name(type(value)):
        return {"_target_": _import_name(type(value)), "value": encoded(value.value)}
    if isinstance(value, partial) and not value.args and _import_name(value.func) and value.keywords:
        return {**_callable(value.func), **{name: encoded(item) for name, item in value.keywords.items()}}
    if _import_name(value):
        return _callable(value)
    if isinstance(value, nn.Module):
        try:
            return {"_target_": target_of(type(value)), **bound_arguments(value)[0]}
        except ValueError as error:
            return {NO_FORM: f"a module: {error}"}
    return {NO_FORM: f"a value of type {type(value).__name__}"}


def _callable(value: Any) -> dict[str, Any]:
    return {"_target_": _import_name(value), "_mode_": "callable"}


def _literal(value: Any) -> str | None:
    """Python that writes a value down, without the characters that mean something in a bundle."""
    source = _source(value)
    if source is None:
        return None
    for mark in MARKS:
        source = source.replace(mark, f"\\x{ord(mark):02x}")
    return source


def _source(value: Any) -> str | None:
    kind = type(value)
    if value is None or kind in (bool, int, str, bytes):
        return repr(value)
    if kind is float:
        return repr(value) if math.isfinite(value) else None if math.isnan(value) else f"{'-' * (value < 0)}1e999"
    if kind is dict:
        pairs = [(_source(key), _source(item)) for key, item in value.items()]
        whole = all(key is not None and item is not None for key, item in pairs)
        return f"{{{', '.join(f'{key}: {item}' for key, item in pairs)}}}" if whole else None
    if kind not in (list, tuple, torch.Size):
        return _source(value.item()) if isinstance(value, np.generic) else None
    items = [_source(item) for item in value]
    if any(item is None for item in items):
        return None
    inside = ", ".join(item for item in items if item is not None)
    return f"[{inside}]" if kind is list else f"({inside},)" if len(items) == 1 else f"({inside})"


def _import_name(value: Any) -> str | None:
    """The name that imports a class or a function, if that gives the same object."""
    if not isinstance(value, (type, FunctionType, BuiltinFunctionType)):
        return None
    public = getattr(value, "__name__", "")
    if not isinstance(value, type) and value is getattr(nn.functional, public, None):
        # torch defines some elsewhere, as torch._C._nn.gelu
        return f"torch.nn.functional.{public}"
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    if not isinstance(module, str) or module == "__main__" or not all(part.isidentifier() for part in name.split(".")):
        return None
    found: Any = sys.modules.get(module)  # not imported: a value of a user may say that it is from anywhere
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}.{name}" if found is value else None


def _is_plain_name(name: Any) -> bool:
    return type(name) is str and not name.startswith("_") and "::" not in name and not any(m in name for m in MARKS)


def _has_default(parameter: inspect.Parameter) -> bool:
    return parameter.default is not inspect.Parameter.empty


def _name_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _records(new: Any) -> bool:
    return getattr(getattr(new, "__func__", new), "records_construction", False)


def _is_in(package: str, module: str) -> bool:
    return module.startswith(f"{package}.")
