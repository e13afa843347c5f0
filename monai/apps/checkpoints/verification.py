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


"""Runs a checkpoint on seeded inputs, here and in the package that wrote it."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

from monai.networks.checkpoints.load import load_checkpoint
from monai.networks.checkpoints.untrusted import refusing
from monai.networks.state_dict.hooks import CheckpointFacts
from monai.networks.state_dict.layouts import Layout, recognize_layouts
from monai.networks.weights.report import LoadReport

from .network_config import NetworkConfig
from .reference_process import reference_command, run_reference
from .reference_worker import flat
from .sample_inputs import Call, read_inputs, sample_calls

__all__ = ["Comparison", "OutputReport", "Verification", "verify_checkpoint"]


@dataclass(frozen=True)
class OutputReport:
    """
    The outputs of one call.

    Args:
        method: what was called.
        inputs: shape of each argument.
        shapes: shape of each output.
        sha256: of the outputs' bytes as float32, one after the other. The same weights give another one on other
            hardware or with another torch: compare the statistics there.
        mean, std, min, max: over all values.
    """

    method: str
    inputs: dict[str, list[int]]
    shapes: list[list[int]]
    sha256: str
    mean: float
    std: float
    min: float
    max: float


@dataclass(frozen=True)
class Comparison:
    """
    The outputs against those of an older package.

    Args:
        package: its name and version.
        target: the class that took the file.
        torch: version of torch beside it.
        dropped: arguments of the configuration that the class does not have, and does without.
        max_difference: largest absolute difference; infinite where shapes differ or one side is not a number.
        scale: largest absolute output there, or 1 if that is larger.
        tolerance: the difference allowed, relative to ``scale``.
    """

    package: str
    target: str
    torch: str
    dropped: list[str]
    max_difference: float
    scale: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.max_difference <= self.tolerance * self.scale


@dataclass(frozen=True)
class Verification:
    """
    What running a checkpoint gave.

    Args:
        path: the file.
        network: name of the class.
        parameters: number of its parameters.
        written_by: who wrote the file, by its keys.
        wrappers: what was around the network there.
        seed: of the inputs.
        outputs: of each call.
        fresh: what the same calls gave before the checkpoint was loaded, of a network that was never trained.
        account: what became of every parameter of the network and of every tensor of the file.
        comparison: with an older package, if one was given.
    """

    path: str
    network: str
    parameters: int
    written_by: list[Layout]
    wrappers: tuple[str, ...]
    seed: int
    outputs: list[OutputReport]
    fresh: list[OutputReport]
    account: LoadReport
    comparison: Comparison | None = None


def verify_checkpoint(
    path: str | Path,
    config: NetworkConfig,
    name: str | None = None,
    facts: CheckpointFacts | None = None,
    options: Mapping[str, Any] | None = None,
    size: Sequence[int] = (),
    batch: int = 2,
    seed: int = 0,
    inputs: str | None = None,
    against: str | None = None,
    against_config: tuple[str, Mapping[str, Any]] | None = None,
    tolerance: float = 1e-4,
) -> Verification:
    """
    Build a network, load a checkpoint and run it.

    Args:
        path: the checkpoint, see :func:`monai.networks.checkpoints.read.load_checkpoint`.
        config: the network.
        name: which network to load where the file holds several.
        facts: what the keys cannot tell.
        options: further arguments of ``load_checkpoint``, as ``allow``.
        size: of the image's axes, see :func:`monai.apps.checkpoints.sample_inputs.sample_calls`.
        batch: number of images or sequences.
        seed: of the inputs, and of torch before each call.
        inputs: a file with the arguments of ``forward``, instead of seeded ones.
        against: where an older package is, see
            :func:`monai.apps.checkpoints.reference_process.reference_command`.
        against_config: class and arguments there, where they do not follow from ``config``.
        tolerance: largest difference allowed, relative to the largest output or 1.

    Raises:
        CheckpointRefused: if the checkpoint is damaged or not to be trusted.
        FileNotFoundError, ValueError: if a file, an argument or the older package is not as it should be.
        RuntimeError: if the checkpoint does not fit the network.
    """
    if against is not None:
        reference_command(against)  # says what is wrong before the work
    torch.manual_seed(seed)  # of the weights that are not trained
    net = config.build()
    calls = read_inputs(inputs) if inputs else sample_calls(config.cls, config.arguments, size, batch, seed)
    fresh = [_run(net, call, seed) for call in calls]
    with refusing():
        checkpoint = load_checkpoint(net, path, name, facts, **(options or {}))
    assert checkpoint.report is not None  # it was loaded
    outputs = [_run(net, call, seed) for call in calls]
    if not any(bool(tensor.any()) for tensors in outputs for tensor in tensors):
        warnings.warn("Every output is zero, as of a network that was never trained: it proves nothing.", stacklevel=2)
    comparison = None
    if against is not None:
        used = facts.projection_used if facts is not None else None
        reference = run_reference(against, against_config or config, checkpoint.state_dict, calls, seed, used)
        difference, scale = _difference(outputs, reference.outputs)
        comparison = Comparison(
            package=reference.package,
            target=reference.target,
            torch=reference.torch,
            dropped=reference.dropped,
            max_difference=difference,
            scale=scale,
            tolerance=tolerance,
        )
    return Verification(
        path=str(path),
        network=config.cls.__name__,
        parameters=sum(parameter.numel() for parameter in net.parameters()),
        written_by=recognize_layouts(checkpoint.state_dict),
        wrappers=checkpoint.wrappers,
        seed=seed,
        outputs=[_report(call, tensors) for call, tensors in zip(calls, outputs)],
        fresh=[_report(call, tensors) for call, tensors in zip(calls, fresh)],
        account=checkpoint.report,
        comparison=comparison,
    )


def _run(net: nn.Module, call: Call, seed: int) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    try:
        with torch.no_grad():
            out: list[torch.Tensor] = flat(getattr(net, call.method)(**call.inputs))
            return out
    except Exception as error:  # whatever a network raises about the inputs that it was given
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in call.inputs.items())
        raise ValueError(f"{type(net).__name__}.{call.method} fails with {shapes}: {error}") from error


def _report(call: Call, tensors: list[torch.Tensor]) -> OutputReport:
    values = torch.cat([tensor.float().flatten() for tensor in tensors])
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.float().contiguous().numpy().tobytes())
    return OutputReport(
        method=call.method,
        inputs={name: list(value.shape) for name, value in call.inputs.items()},
        shapes=[list(tensor.shape) for tensor in tensors],
        sha256=digest.hexdigest(),
        mean=float(values.double().mean()),
        std=float(values.double().std(correction=0)),
        min=float(values.min()),
        max=float(values.max()),
    )


def _difference(outputs: list[list[torch.Tensor]], references: list[list[torch.Tensor]]) -> tuple[float, float]:
    """Largest absolute difference, and the largest absolute reference or 1."""
    worst, scale = 0.0, 1.0
    for own, other in zip(outputs, references):
        if [tensor.shape for tensor in own] != [tensor.shape for tensor in other]:
            return math.inf, scale
        for a, b in zip(own, other):
            difference = float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
            worst = max(worst, math.inf if math.isnan(difference) else difference)
            scale = max(scale, float(b.double().abs().max()) if b.numel() else 0.0)
    return worst, scale
