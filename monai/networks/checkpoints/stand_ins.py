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
from typing import Any

import numpy as np
import torch

__all__ = ["StandIn", "stand_in", "stand_in_class"]

# Classes of harmless values that trainers save. None of them is imported: a stand-in takes its place.
HARMLESS = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|uuid\.UUID|decimal\.Decimal|datetime\.\w+|typing\.\w+"
    r"|pathlib(\._local)?\.\w*Path|builtins\.(bool|bytes|dict|float|frozenset|int|list|object|str|tuple)"
    r"|omegaconf\.[\w.]+|monai\.utils\.enums\.\w+|numpy\.(ndarray|dtypes\.\w+)|torch\.torch_version\.TorchVersion"
)
DICTIONARIES = re.compile(r"(pytorch_lightning|lightning(_fabric|\.pytorch|\.fabric)?)\.utilities\.\w+\.AttributeDict")
NUMBER = re.compile(r"[biufc]\d+")  # numpy's codes of numbers


class StandIn:
    """An object that keeps what it was given and does nothing, in place of one whose class is not imported."""

    def __new__(cls, *args: Any) -> StandIn:
        instance = super().__new__(cls)
        instance.args = args
        instance.state = None
        return instance

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state

    args: tuple
    state: Any


class _Dtype(StandIn):
    """numpy.dtype(code, align, copy); its state begins with a version and the byte order."""

    def number(self, data: Any) -> Any:
        """The number that ``data`` holds, or a stand-in where it is none."""
        code = self.args[0] if self.args else None
        if not (isinstance(code, str) and NUMBER.fullmatch(code) and isinstance(data, bytes)):
            return StandIn(data)
        order = ">" if isinstance(self.state, tuple) and self.state[1:2] == (">",) else "<"
        return np.frombuffer(data, np.dtype(order + code), count=1)[0].item()


class _Scalar:
    """numpy's function that makes a scalar; here a number of Python's comes out."""

    def __new__(cls, dtype: Any = None, data: Any = b"") -> Any:
        return dtype.number(data) if isinstance(dtype, _Dtype) else StandIn(dtype, data)


class _Array:
    """numpy's function that makes an empty array."""

    def __new__(cls, kind: Any = StandIn, *args: Any) -> Any:
        return kind() if isinstance(kind, type) and issubclass(kind, StandIn) else StandIn(kind, *args)


class _Dictionary:
    """collections.defaultdict; here a plain dictionary comes out."""

    def __new__(cls, *args: Any) -> Any:
        return {}


EXACT: dict[str, type] = {
    "collections.defaultdict": _Dictionary,
    "monai.data.meta_tensor.MetaTensor": torch.Tensor,
    "numpy.dtype": _Dtype,
    **{f"numpy.{core}.multiarray.scalar": _Scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": _Array for core in ("core", "_core")},
}


def stand_in(name: str) -> type | None:
    """What takes the place of the global ``name`` of a pickle; None where that is not known to be harmless."""
    if DICTIONARIES.fullmatch(name):
        return dict
    if HARMLESS.fullmatch(name):
        return stand_in_class(name)
    return EXACT.get(name)


def stand_in_class(name: str) -> type[StandIn]:
    """A new stand-in for the class ``name``; it is called like that class, for error messages."""
    return type(name.split(".")[-1], (StandIn,), {})
