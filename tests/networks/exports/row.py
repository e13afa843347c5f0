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

"""What a row of the grid is: a network, how it is built and what it is called with."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Container
from dataclasses import dataclass, field, replace
from typing import Any

import torch

__all__ = ["FIRST", "OTHER", "SINGLE", "MissingOptionError", "Row", "Tensor", "rows_of"]

# what the letters in a tensor's size stand for: B is the batch, h, w and d are axes of an image, n and k count tokens
FIRST = {"B": 2, "h": 2, "w": 3, "d": 2, "n": 6, "k": 5}
OTHER = {"B": 3, "h": 3, "w": 2, "d": 3, "n": 9, "k": 3}
SINGLE = {**FIRST, "B": 1}


class MissingOptionError(Exception):
    """The class has no such option, as in the release."""


@dataclass(frozen=True)
class Tensor:
    """
    An argument of a network, random numbers.

    Args:
        size: each dimension a number, or a letter after a factor, as "B" and "4h": those are left open by exports.
        below: take integers below this number.
        mask: take zeros and ones, the first of each row a one.
    """

    size: tuple[int | str, ...]
    below: int | None = None
    mask: bool = False

    def make(self, letters: dict[str, int], generator: torch.Generator) -> torch.Tensor:
        """The tensor, with numbers in place of the letters."""
        size = [_number(item, letters) for item in self.size]
        if self.mask:
            mask = torch.randint(0, 2, size, generator=generator).float()
            mask[..., 0] = 1
            return mask
        if self.below is not None:
            return torch.randint(0, self.below, size, generator=generator)
        return torch.randn(size, generator=generator)

    def dynamic(self, dims: dict[str, Any]) -> dict[int, Any]:
        """The dimensions with letters, as ``torch.export`` wants them; ``dims`` gives or takes those of the letters."""
        return {axis: _dim(item, dims) for axis, item in enumerate(self.size) if isinstance(item, str)}


def _number(item: int | str, letters: dict[str, int]) -> int:
    if isinstance(item, int):
        return item
    factor, letter = _split(item)
    return factor * letters[letter]


def _dim(item: str, dims: dict[str, Any]) -> Any:
    factor, letter = _split(item)
    dim = dims.setdefault(letter, torch.export.Dim(letter))
    return dim if factor == 1 else factor * dim


def _split(item: str) -> tuple[int, str]:
    factor, letter = re.fullmatch(r"(\d*)(\w)", item).groups()  # type: ignore[union-attr]
    return int(factor or 1), letter


@dataclass(frozen=True)
class Row:
    """
    A network with options, and its arguments.

    Args:
        network: name of the class.
        options: name of the option set.
        module: module of the class.
        kwargs: what the class is built from.
        inputs: arguments of a call by name: tensors, or lists of them.
        deterministic: method, and further arguments of the call, that ONNX gets where ``forward`` draws from torch's
            random numbers.
        cannot: column to the sentence that tells why torch, or the runtime, cannot; the test wants the column to fail
            then.
    """

    network: str
    options: str
    module: str
    kwargs: dict[str, Any]
    inputs: dict[str, Tensor | list[Tensor]]
    deterministic: tuple[str, dict[str, Any]] | None = None
    cannot: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.network}/{self.options}"

    def build(self) -> torch.nn.Module:
        """
        The network in evaluation mode, none of its parameters zero.

        Raises:
            MissingOptionError: if the class lacks one of the options.
        """
        cls = getattr(importlib.import_module(self.module), self.network)
        torch.manual_seed(0)
        net = cls(**_accepted(self.kwargs, inspect.signature(cls).parameters)).eval()
        with torch.no_grad():  # a zero would hide what comes before it
            for parameter in net.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
        return net

    def arguments(self, letters: dict[str, int]) -> dict[str, Any]:
        """Arguments of a call by name."""
        generator = torch.Generator().manual_seed(letters["B"])
        return _each(self.inputs, lambda tensor: tensor.make(letters, generator))

    def dynamic_shapes(self) -> dict[str, Any]:
        """What an export leaves open: the dimensions with letters."""
        dims: dict[str, Any] = {}
        return _each(self.inputs, lambda tensor: tensor.dynamic(dims), constant=lambda _: None)

    def drawless(self, net: torch.nn.Module) -> Row:
        """Make the call of ``net`` draw no random numbers; returns the row with the arguments for it."""
        if self.deterministic is None:
            return self
        method, further = self.deterministic
        net.forward = getattr(net, method)
        return replace(self, inputs={**self.inputs, **further})


def _each(value: Any, function: Callable, constant: Callable = lambda value: value) -> Any:
    """``value`` with ``function`` of every tensor inside, and ``constant`` of every other value."""
    if isinstance(value, dict):
        return {name: _each(item, function, constant) for name, item in value.items()}
    if isinstance(value, list):
        return [_each(item, function, constant) for item in value]
    return function(value) if isinstance(value, Tensor) else constant(value)


def _accepted(kwargs: dict[str, Any], parameters: Container[str]) -> dict[str, Any]:
    """``kwargs`` for a class that may be the release's, where ``include_fc`` is the choice of projection, if any."""
    if "use_proj_attn" not in parameters and "use_proj_attn" in kwargs:
        kwargs = {**kwargs, "include_fc": kwargs["use_proj_attn"]}
        del kwargs["use_proj_attn"]
    for name in kwargs:
        if name not in parameters:
            raise MissingOptionError(f"no option {name}")
    return kwargs


def rows_of(network: str, module: str, **sets: tuple) -> list[Row]:
    """Rows of one network; an underscore in the name of an option set stands for a space."""
    rows = []
    for options, (kwargs, inputs, *rest) in sets.items():
        rows.append(Row(network, options.replace("_", " "), module, kwargs, inputs, **(rest[0] if rest else {})))
    return rows
