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
"""Objects that a checkpoint may hold beside its tensors, without importing or running what made them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .pickles import Known, Record

__all__ = ["StandIn", "kind_of", "known_stand_in", "named_stand_in"]

# Classes of harmless values that trainers save. None of them is imported: a stand-in takes its place.
HARMLESS = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|uuid\.UUID|decimal\.Decimal|datetime\.\w+|typing\.\w+"
    r"|pathlib(\._local)?\.\w*Path|builtins\.(bool|dict|float|frozenset|int|list|object|str|tuple)"
    r"|omegaconf\.[\w.]+|monai\.utils\.enums\.\w+|numpy\.(ndarray|dtypes\.\w+)|numpy\._?core\.numeric\._frombuffer"
    r"|torch\.torch_version\.TorchVersion"
)
DICTIONARIES = re.compile(r"(pytorch_lightning|lightning(_fabric|\.pytorch|\.fabric)?)\.utilities\.\w+\.AttributeDict")
NUMBER = re.compile(r"[biufc]\d+")  # numpy's codes of numbers


class StandIn:
    """
    An object that keeps what it was given and does nothing, in place of one whose class is not imported.

    Args:
        args: what it was made from.
    """

    name = "object"
    """Of the class."""

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: Any = None

    def take_state(self, state: Any) -> None:
        """Keep what the pickle gives the object after it was made."""
        self.state = state


class _Dtype(StandIn):
    """numpy.dtype(code, align, copy); its state begins with a version and the byte order."""

    def number(self, data: Any) -> Any:
        """The number that ``data`` holds, or a stand-in where it is none."""
        code = self.args[0] if self.args else None
        if not (isinstance(code, str) and NUMBER.fullmatch(code) and isinstance(data, bytes)):
            return StandIn(data)
        order = ">" if isinstance(self.state, tuple) and self.state[1:2] == (">",) else "<"
        return np.frombuffer(data, np.dtype(order + code), count=1)[0].item()


def _scalar(dtype: Any = None, data: Any = b"") -> Any:
    """numpy's function that makes a scalar; here a number of Python's comes out."""
    return dtype.number(data) if isinstance(dtype, _Dtype) else StandIn(dtype, data)


def _bytes(content: Any = b"", encoding: Any = None) -> Any:
    """How protocol 2 writes bytes. A number is how many zeros to make, and a stand-in needs none."""
    if isinstance(content, str) and encoding in ("latin1", "latin-1"):
        return content.encode("latin1")
    return content if isinstance(content, bytes) else StandIn(content)


EXACT: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _bytes,
    "builtins.bytearray": _bytes,
    "builtins.bytes": _bytes,
    "builtins.complex": lambda real=0.0, imaginary=0.0: complex(float(real), float(imaginary)),
    "builtins.set": lambda items=(): items,
    "collections.Counter": lambda items=(): Record(items),
    "collections.OrderedDict": lambda items=(): Record(items),
    "collections.defaultdict": lambda *args: Record(),
    "numpy.dtype": _Dtype,
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": StandIn for core in ("core", "_core")},
}


def known_stand_in(name: str) -> Known | None:
    """What takes the place of the global ``name`` of a pickle; None where that is not known to be harmless."""
    if name in EXACT:
        return Known(name, EXACT[name])
    if DICTIONARIES.fullmatch(name):
        return Known(name, lambda *args: Record())
    return named_stand_in(name) if HARMLESS.fullmatch(name) else None


def named_stand_in(name: str) -> Known:
    """What takes the place of the class ``name``: it makes stand-ins that have its name, for error messages."""

    def make(*args: Any) -> StandIn:
        made = StandIn(*args)
        made.name = name.rpartition(".")[2]
        return made

    return Known(name, make)


def kind_of(value: Any) -> str:
    """The name of a value's class, also where a stand-in took its place."""
    return value.name if isinstance(value, StandIn) else type(value).__name__
