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


"""Runs a network of an older package in a process of its own, to compare outputs with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch

from monai.networks.checkpoints.write import standalone

from . import reference_worker
from .network_config import NetworkConfig
from .sample_inputs import Call

__all__ = ["Reference", "reference_command", "run_reference"]

PLACES = (
    "generative.networks.nets",
    "monai.networks.nets",
    "generative.networks.nets.diffusion_model_unet",
    "monai.networks.nets.diffusion_model_unet",
    "monai.apps.generation.maisi.networks.autoencoderkl_maisi",
    "monai.apps.generation.maisi.networks.controlnet_maisi",
    "monai.apps.generation.maisi.networks.diffusion_model_unet_maisi",
)
"""Modules in which the older packages keep their networks."""


@dataclass(frozen=True)
class Reference:
    """
    What an older package gives for the calls.

    Args:
        outputs: the tensors that each call returns, in order.
        target: dotted name of the class that took the file.
        package: its name and version.
        torch: version of torch beside it.
        dropped: arguments of the configuration that the class does not have.
    """

    outputs: list[list[torch.Tensor]]
    target: str
    package: str
    torch: str
    dropped: list[str]


def reference_command(environment: str) -> tuple[str, dict[str, str]]:
    """
    Interpreter and environment variables of a process with an older package.

    Args:
        environment: a Python interpreter; a virtual environment; or a folder with packages for this interpreter, or
            several, separated as in PATH.

    Raises:
        ValueError: if it is none of them.
    """
    path = Path(environment)
    for python in (path, path / "bin" / "python", path / "Scripts" / "python.exe"):
        if python.is_file():
            # packages that are on the path of this process are not for another interpreter
            ours = ("PYTHONPATH", "PYTHONHOME")
            return str(python.absolute()), {key: value for key, value in os.environ.items() if key not in ours}
    folders = [Path(part).absolute() for part in environment.split(os.pathsep) if part]
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"--against: there is no '{folder}'. {_FORMS}")
    if not any((folder / name).is_dir() for folder in folders for name in ("monai", "generative")):
        raise ValueError(f"--against: '{environment}' holds neither monai nor generative. {_FORMS}")
    inherited = [part for part in [os.environ.get("PYTHONPATH")] if part]
    return sys.executable, {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, folders), *inherited])}


_FORMS = (
    "Name a Python interpreter, a virtual environment, or a folder that holds monai/ or generative/ (several: "
    f"FOLDER{os.pathsep}FOLDER)."
)


def run_reference(
    environment: str,
    config: NetworkConfig | tuple[str, Mapping[str, Any]],
    state_dict: Mapping[str, torch.Tensor],
    calls: Sequence[Call],
    seed: int = 0,
    projection_used: bool | None = None,
) -> Reference:
    """
    Build the network in the older package, load the file's own state dict strictly and run the calls.

    Args:
        environment: where the package is, see :func:`reference_command`.
        config: the fork's network, whose class is looked up by its name and whose arguments are renamed; or the older
            package's own class, by its dotted name, and its arguments.
        state_dict: as the file holds it.
        calls: what to run.
        seed: torch's seed before each call.
        projection_used: whether that network used the output projections that it saved, None if unknown.

    Raises:
        ValueError: if the package cannot be run, or has no network that takes the state dict; the text says why.
    """
    python, variables = reference_command(environment)
    request = _request(config, calls)
    request.update(seed=seed, projection_used=projection_used)
    with tempfile.TemporaryDirectory(prefix="monai-verify-") as folder:
        # a copy, run from there: beside the original lie modules that would hide the older package's
        script = Path(shutil.copy(reference_worker.__file__, folder))
        torch.save(request, Path(folder, "request.pt"))
        torch.save({key: standalone(value) for key, value in state_dict.items()}, Path(folder, "state.pt"))
        done = subprocess.run(
            [python, "-W", "ignore", str(script), folder],
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
        if done.returncode:
            words = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise ValueError(f"--against {environment}: its process failed: {words[-1]}")
        reply = torch.load(Path(folder, "reply.pt"), map_location="cpu", weights_only=True)
    if "error" in reply:
        raise ValueError(f"--against {environment}: no network there takes this file. {_short(reply['error'])}")
    return Reference(**reply)


def _request(config: NetworkConfig | tuple[str, Mapping[str, Any]], calls: Sequence[Call]) -> dict[str, Any]:
    if isinstance(config, NetworkConfig):
        name = config.cls.__name__
        own = f"{config.cls.__module__}.{name}"
        targets = dict.fromkeys([*(f"{place}.{name}" for place in PLACES), own])
        arguments, defaults = dict(config.arguments), _plain_defaults(config.cls)
    else:
        targets, arguments, defaults = {config[0]: None}, dict(config[1]), None
    for key, value in arguments.items():
        if not _is_plain(value):
            raise ValueError(f"--against: the argument {key} is a {type(value).__name__}, which cannot be handed over.")
    inputs = [(call.method, call.inputs) for call in calls]
    return {"targets": list(targets), "arguments": arguments, "defaults": defaults, "calls": inputs}


def _plain_defaults(cls: type) -> dict[str, Any]:
    parameters = signature(cls).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not Parameter.empty and _is_plain(p.default)}


def _is_plain(value: Any) -> bool:
    """Whether ``torch.load`` reads it without running code."""
    if isinstance(value, dict):
        return all(_is_plain(item) for pair in value.items() for item in pair)
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype))


def _short(reasons: str) -> str:
    """The reasons, one a class, those that say no more than that a class is absent left out."""
    lines = [" ".join(reason.split()) for reason in reasons.splitlines() if not reason.startswith(("\t", " "))]
    absent = ("there is no such class", "there is no module")
    telling = [line for line in lines if not any(words in line for words in absent)] or lines
    return " ".join(line if len(line) < 400 else f"{line[:400]} ..." for line in telling)
