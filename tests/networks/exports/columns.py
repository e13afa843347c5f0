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

"""The grid's columns: the ways in which a network leaves Python."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

from tests.differences import max_difference
from tests.networks.exports.row import FIRST, OTHER, SINGLE, MissingOptionError, Row

__all__ = ["COLUMNS", "TOLERANCE", "UnavailableError", "run_cell"]

TOLERANCE = 1e-5


class UnavailableError(Exception):
    """A package that the column needs is not installed."""


def script(row: Row, net: nn.Module) -> float:
    """torch.jit.script, saved and loaded."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(net), buffer)
    buffer.seek(0)
    run = torch.jit.load(buffer)
    # more than once: the second call of a kind runs the optimized graph
    return max(difference(row, net, run) for _ in range(2))


def trace(row: Row, net: nn.Module) -> float:
    """torch.jit.trace."""
    with torch.no_grad():
        run = torch.jit.trace(net, example_kwarg_inputs=row.arguments(FIRST), check_trace=False)
    return difference(row, net, run)


def compiled(row: Row, net: nn.Module, backend: str = "aot_eager") -> float:
    """torch.compile(fullgraph=True), forward and backward."""
    run = torch.compile(net, fullgraph=True, backend=backend)
    expected, found = trained(net, net, row), trained(run, net, row)
    return max(relative(*pair) for pair in zip(found, expected))


def export(row: Row, net: nn.Module, strict: bool = False) -> float:
    """torch.export with dynamic sizes, without strictness."""
    return difference(row, net, exported(row, net, strict).module())


def strict_export(row: Row, net: nn.Module) -> float:
    """torch.export with dynamic sizes, strict."""
    return export(row, net, strict=True)


def onnx(row: Row, net: nn.Module) -> float:
    """torch.onnx.export(dynamo=True), run by onnxruntime."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UnavailableError(f"{package} is not installed")
    row = row.drawless(net)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "net.onnx"
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            torch.onnx.export(
                net,
                kwargs=row.arguments(FIRST),
                dynamo=True,
                dynamic_shapes=row.dynamic_shapes(),
                verbose=False,
                external_data=False,
            ).save(file)
        return difference(row, net, onnx_runner(file))


COLUMNS: dict[str, Callable[[Row, nn.Module], float]] = {
    "script": script,
    "trace": trace,
    "compile": compiled,
    "export": export,
    "strict export": strict_export,
    "onnx": onnx,
}


def exported(row: Row, net: nn.Module, strict: bool) -> torch.export.ExportedProgram:
    """The program that ``torch.export`` makes of a network."""
    with torch.no_grad():
        return torch.export.export(net, (), row.arguments(FIRST), dynamic_shapes=row.dynamic_shapes(), strict=strict)


def onnx_runner(file: Path) -> Callable:
    """A function of named tensors that runs an ONNX file; lists of tensors count as further arguments."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]

    def run(**arguments: Any) -> list[torch.Tensor]:
        feed = {name: tensor.numpy() for name, tensor in zip(names, flat(arguments))}
        return [torch.from_numpy(out) for out in session.run(None, feed)]

    return run


def flat(value: Any) -> list[torch.Tensor]:
    """Every tensor inside ``value``, in order."""
    if torch.is_tensor(value):
        return [value]
    if not isinstance(value, (dict, list, tuple)):
        return []
    items = value.values() if isinstance(value, dict) else value
    return [tensor for item in items for tensor in flat(item)]


def call(run: Callable, row: Row, letters: dict[str, int]) -> list[torch.Tensor]:
    """The tensors that a call returns, after seeding the random numbers that it may draw."""
    torch.manual_seed(3)
    return finite(flat(run(**row.arguments(letters))), "output")


def finite(tensors: list[torch.Tensor], kind: str) -> list[torch.Tensor]:
    """
    The tensors themselves.

    Raises:
        AssertionError: if there is none, or a number is not finite.
    """
    if not tensors:
        raise AssertionError(f"no {kind}")
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise AssertionError(f"some {kind} is not finite")
    return tensors


def difference(row: Row, net: nn.Module, run: Callable) -> float:
    """Largest difference between what ``run`` and ``net`` return, over several sizes, see :func:`relative`."""
    worst = 0.0
    for letters in (FIRST, OTHER, SINGLE, FIRST):
        with torch.no_grad():
            worst = max(worst, relative(call(run, row, letters), call(net, row, letters)))
    return worst


def relative(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """
    Largest difference, relative to the largest number where that exceeds 1.

    Raises:
        AssertionError: if the numbers are too small to tell, or shapes or types differ.
    """
    scale = max(float(tensor.detach().abs().max()) for tensor in expected)
    if scale < 1e-3:
        raise AssertionError(f"the numbers are almost zero, {scale:.1e}: that they are equal would prove nothing")
    return max_difference(found, expected) / max(scale, 1.0)


def trained(run: Callable, net: nn.Module, row: Row) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Outputs of ``run``, which is made from ``net``, and gradients of the parameters of ``net`` after its call."""
    net.zero_grad()
    outs = call(run, row, FIRST)
    torch.stack([out.pow(2).mean() for out in outs if out.requires_grad]).sum().backward()
    return outs, finite([p.grad.clone() for p in net.parameters() if p.grad is not None], "gradient")


def run_cell(row: Row, column: str) -> dict[str, Any]:
    """
    Try a way out.

    Returns:
        one of ``{"difference": …}``, ``{"error": …}``, ``{"missing": …}`` (the class has no such option) and
        ``{"unavailable": …}`` (a package is not installed).
    """
    torch.set_num_threads(1)
    torch._dynamo.reset()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # exporters warn of much
            net = row.build()
            check_eager(row, net)
            return {"difference": COLUMNS[column](row, net)}
    except MissingOptionError as error:
        return {"missing": str(error)}
    except UnavailableError as error:
        return {"unavailable": str(error)}
    except Exception as error:
        return {"error": reason(error)}


def check_eager(row: Row, net: nn.Module) -> None:
    """
    Call a network before it leaves Python.

    Raises:
        MissingOptionError: if it has no such argument.
        RuntimeError: if the call fails.
    """
    try:
        for letters in (FIRST, OTHER, SINGLE):
            call(net, row, letters)
    except Exception as error:
        if "unexpected keyword argument" in str(error):
            raise MissingOptionError(str(error)) from None
        raise RuntimeError(f"in eager Python, too: {reason(error)}") from None


def reason(error: BaseException) -> str:
    """The first line of what went wrong at first."""
    while error.__cause__ is not None:
        error = error.__cause__
    # some errors hold the representation of a text
    lines = [line.strip() for line in str(error).replace("\\n", "\n").splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200].rstrip(":, ")
