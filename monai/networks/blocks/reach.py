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
How far a layer looks: which positions of its input its outputs need, along one spatial axis.

A volume that is computed in parts, one after another or on several devices, is exact where every layer gets the
neighbors of a part that it reaches. Only layers that are known to be local have a reach: a layer of another kind says
its own in a method ``spatial_reach(axis)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any

import torch.nn as nn

__all__ = ["Reach", "computes_as", "computes_as_declared", "reach_of", "replaced_method"]

COMPUTING = ("forward", "_conv_forward", "_output_padding")
"""Methods by which layers compute; what is known of a class holds for those that it was written with."""
CHANGE_NOTHING = ("torch._dynamo.", "torch.amp.autocast_mode", "torch.utils._contextlib")
"""Where decorators come from that leave what a function computes: compilation, autocast, no_grad."""


@dataclass(frozen=True)
class Reach:
    """
    Which positions of its input a layer's outputs need, along one axis.

    A part of the output, [begin, end), needs the inputs from begin * down // up - before on, up to the one before
    end * down / up + after, rounded up, as far as there are any. They begin at a multiple of ``down``.

    Args:
        before: how many inputs before those that lie at the same place, a multiple of ``down``. Defaults to 0.
        after: how many inputs after them. Defaults to 0.
        down: how many inputs lie beside one output: the stride. Defaults to 1.
        up: how many outputs lie beside one input: the stride of a transposed convolution. Defaults to 1.
        offset: a whole axis of n inputs has (n * up + offset) // down outputs. Defaults to 0.

    Raises:
        ValueError: if a number is out of range, or ``before`` is no multiple of ``down``.
    """

    before: int = 0
    after: int = 0
    down: int = 1
    up: int = 1
    offset: int = 0

    def __post_init__(self) -> None:
        if min(self.before, self.after) < 0 or min(self.down, self.up) < 1:
            raise ValueError(f"{self} should reach no less than 0 positions, in strides of at least 1.")
        if self.down > 1 and self.up > 1:
            raise ValueError(f"{self} should have a stride, or repeat its inputs, not both.")
        if self.before % self.down:
            raise ValueError(f"{self} should reach back a multiple of down={self.down} positions, to stay in step.")

    def output_size(self, size: int) -> int:
        """How many outputs a whole axis of ``size`` inputs has."""
        return (size * self.up + self.offset) // self.down

    def needed(self, begin: int, end: int, size: int) -> tuple[int, int]:
        """
        Which inputs the outputs [begin, end) need.

        Args:
            begin: the first output.
            end: where the outputs end.
            size: number of inputs of the whole axis. The last outputs get all that is left, and those that see nothing
                but what pads it the last inputs.
        """
        first = max(0, min(begin * self.down // self.up - self.before, (size - 1) // self.down * self.down))
        last = -(-end * self.down // self.up) + self.after
        return first, size if end >= self.output_size(size) else min(size, last)

    def skipped(self, begin: int, first: int) -> int:
        """How many outputs of the inputs from ``first`` on, which :meth:`needed` names, lie before ``begin``."""
        return begin - first * self.up // self.down

    @property
    def is_local(self) -> bool:
        """Whether every output needs the inputs at its own place alone."""
        return self.before == 0 and self.after == 0


POINTWISE = (
    nn.Identity,
    nn.Dropout,
    nn.AlphaDropout,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Sigmoid,
    nn.LogSigmoid,
    nn.Tanh,
    nn.Softplus,
    nn.Softsign,
    nn.Hardtanh,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Threshold,
)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


def reach_of(module: nn.Module, axis: int) -> Reach | None:
    """
    How far a layer looks along an axis.

    Args:
        module: the layer.
        axis: number of the spatial axis, from 0.

    Returns:
        its reach, or None if it is not known to be local: it holds other layers, looks at the whole volume, pads by
        what lies inside of the volume, or computes in a way of its own without a method ``spatial_reach``.
    """
    if computes_as_declared(module, "spatial_reach"):
        declared: Reach | None = module.spatial_reach(axis)  # type: ignore[operator]
        return declared
    for kinds, reach in _LAYERS:
        if computes_as(module, kinds):
            return reach(module, axis)
    return None


def computes_as_declared(module: nn.Module, declaration: str) -> bool:
    """
    Tell whether what a class says of its computation holds for a module.

    Args:
        module: the module.
        declaration: name of the method that says it. A subclass with another ``forward`` says it anew, and nobody has
            replaced the one that it was written for.
    """
    for cls in type(module).__mro__:
        if declaration in cls.__dict__:
            return replaced_method(module) is None
        if "forward" in cls.__dict__:
            return False
    return False


def computes_as(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether a module is of one of these classes, or of a subclass that computes in the same way."""
    return any(isinstance(module, kind) and _same_methods(type(module), kind) for kind in kinds) and (
        replaced_method(module) is None
    )


def replaced_method(module: nn.Module, names: Iterable[str] = COMPUTING) -> str | None:
    """
    The first method that is not the one with which a module's class was written; None if all are.

    Args:
        module: the module.
        names: which methods. Defaults to those by which layers compute.
    """
    for name in names:
        if name in module.__dict__ or not _is_as_written(type(module), name):
            return name
    return None


def _same_methods(cls: type[nn.Module], kind: type[nn.Module]) -> bool:
    return all(getattr(cls, name, None) is getattr(kind, name, None) for name in COMPUTING)


def _is_as_written(cls: type, name: str) -> bool:
    """Whether the method of a class, or of the base that it has it from, was written in the body of that class."""
    owner = next((each for each in cls.__mro__ if name in each.__dict__), None)
    if owner is None or owner is nn.Module:  # which has none: an attribute stands for it
        return True
    function = _undecorated(owner.__dict__[name])
    if not isinstance(function, FunctionType):
        return False
    homes = {owner.__module__, getattr(owner.__dict__.get("__init__"), "__module__", None)}
    # a decorator copies the names of what it stands for, but neither its globals nor its code
    return (
        function.__qualname__ == f"{owner.__qualname__}.{name}"
        and function.__globals__.get("__name__") in homes
        and function.__code__.co_name == name
        and not hasattr(function, "__wrapped__")
    )


def _undecorated(function: Any) -> Any:
    """What a decorator of torch that changes nothing stands for."""
    while hasattr(function, "__wrapped__") and _home(function).startswith(CHANGE_NOTHING):
        function = function.__wrapped__
    return function


def _home(function: Any) -> str:
    """The module in which a function was written."""
    return str(getattr(function, "__globals__", {}).get("__name__", ""))


def _along(values: Any, axis: int) -> int:
    return int(values if isinstance(values, int) else values[axis])


def _pointwise(module: Any, axis: int) -> Reach:
    return Reach()


def _window(kernel: int, stride: int, before: int, after: int) -> Reach:
    """
    A window of ``kernel`` positions at every ``stride``-th one, on an axis with ``before`` and ``after`` added to it:
    output j needs the inputs from stride * j - before on.
    """
    back = -(-before // stride) * stride  # whole strides, so that the windows of a part are those of the volume
    ahead = max(0, kernel - before - stride)
    return Reach(back, ahead, down=stride, offset=before + after - kernel + stride)


def _convolution(module: Any, axis: int) -> Reach | None:
    kernel = module.dilation[axis] * (module.kernel_size[axis] - 1) + 1
    if module.padding_mode != "zeros" and kernel > 1:
        return None
    if module.padding == "same":
        return _window(kernel, 1, (kernel - 1) // 2, kernel - 1 - (kernel - 1) // 2)
    before = 0 if module.padding == "valid" else module.padding[axis]
    return _window(kernel, module.stride[axis], before, before)


def _transposed_convolution(module: Any, axis: int) -> Reach:
    """Output j gets input i where j + padding - stride * i lies in the kernel."""
    stride, padding = module.stride[axis], module.padding[axis]
    kernel = module.dilation[axis] * (module.kernel_size[axis] - 1) + 1
    before = max(0, (kernel - 1 - padding) // stride)
    offset = kernel - stride - 2 * padding + module.output_padding[axis]
    # with so many inputs a part has all of its outputs
    after = max(-(-padding // stride), -(offset // stride), 0)
    return Reach(before, after, up=stride, offset=offset)


def _pool(module: Any, axis: int) -> Reach | None:
    if module.ceil_mode or getattr(module, "return_indices", False):
        return None
    kernel = _along(module.kernel_size, axis)
    stride = _along(module.kernel_size if module.stride is None else module.stride, axis)
    dilation = _along(getattr(module, "dilation", 1), axis)
    padding, span = _along(module.padding, axis), dilation * (kernel - 1) + 1
    window = _window(span, stride, padding, padding)
    # pools refuse what is shorter than their kernel, without what is added to it: a part at an end has to be as long
    return replace(window, before=-(-(span - 1) // stride) * stride, after=max(window.after, span - 1))


def _upsampling(module: Any, axis: int) -> Reach | None:
    """Nearest or linear interpolation by a whole number, which begins at the corner of the first position."""
    if module.scale_factor is None or module.align_corners:
        return None
    scale = module.scale_factor if isinstance(module.scale_factor, (int, float)) else module.scale_factor[axis]
    if scale != int(scale) or module.mode not in ("nearest", "nearest-exact", "linear", "bilinear", "trilinear"):
        return None
    reached = 1 if module.mode.endswith("linear") else 0
    return Reach(reached, reached, up=int(scale))


_LAYERS: tuple[tuple[tuple[type[nn.Module], ...], Callable[[Any, int], Reach | None]], ...] = (
    (POINTWISE, _pointwise),
    (CONVOLUTIONS, _convolution),
    (TRANSPOSED_CONVOLUTIONS, _transposed_convolution),
    (POOLS, _pool),
    ((nn.Upsample,), _upsampling),
)
