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


"""The pinned release as referee: builds and runs its networks in a process of their own."""

from __future__ import annotations

import atexit
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from fork.referee import Referee
from fork.referee import RefereeError as ReleaseError
from fork.referee import release_environment
from tests.release_worker import energy

__all__ = [
    "ReleaseError",
    "assert_equal_to_release",
    "energy",
    "max_difference",
    "release_run",
    "verdicts_on_release",
]


@lru_cache(maxsize=1)
def _referee() -> Referee:
    referee = Referee("tests.release_worker:Worker")
    atexit.register(referee.close)
    return referee


def release_run(
    target: str,
    kwargs: dict[str, Any],
    args: tuple = (),
    state: dict[str, torch.Tensor] | None = None,
    call_kwargs: dict[str, Any] | None = None,
    grad: bool = False,
    seed: int | None = None,
    strict: bool = True,
    fill: bool = True,
    train: bool = False,
    call: str | None = "__call__",
) -> Any:
    """
    Build a class of the release, load a state dict and call it.

    Args:
        target: dotted name of the class.
        kwargs: arguments of the class.
        args: positional arguments of the call.
        state: state dict to load; by default the network keeps its initial weights.
        call_kwargs: keyword arguments of the call.
        grad: whether to return the gradients of the sum of the outputs' squares as well.
        seed: torch's seed before building and again before calling.
        strict: strictness of the load.
        fill: whether the release's own values stand in for keys that ``state`` lacks.
        train: whether to call in training mode.
        call: method to call; None returns the state dict without a call.

    Returns:
        the outputs, or (outputs, gradients by parameter name) if ``grad``.

    Raises:
        ReleaseError: if the release raises.
    """
    return _referee().ask("run", **dict(locals(), call_kwargs=call_kwargs or {}))


def max_difference(a: Any, b: Any) -> float:
    """Largest absolute difference between two equally nested results; shapes and types must agree."""
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            raise AssertionError(f"{len(a)} results against {len(b)}")
        return max([max_difference(x, y) for x, y in zip(a, b)], default=0.0)
    if a.shape != b.shape or a.dtype != b.dtype:
        raise AssertionError(f"{a.dtype} {list(a.shape)} against {b.dtype} {list(b.shape)}")
    return float((a.detach().double() - b.detach().double()).abs().max()) if a.numel() else 0.0


def assert_equal_to_release(
    net: torch.nn.Module, target: str, kwargs: dict[str, Any], args: tuple, tolerance: float = 1e-5, **call_kwargs: Any
) -> None:
    """
    Compare outputs and gradients of ``net`` with those of the release's ``target``, given the same weights.

    Args:
        net: the fork's module, in evaluation mode.
        target: dotted name of the release's class.
        kwargs: arguments of the release's class.
        args: positional arguments of the call.
        tolerance: largest difference allowed, for gradients as a part of the network's largest gradient.
        call_kwargs: keyword arguments of the call.
    """
    expected, grads = release_run(target, kwargs, args, state=net.state_dict(), call_kwargs=call_kwargs, grad=True)
    net.zero_grad()
    result = net(*args, **call_kwargs)
    energy(result).backward()
    difference = max_difference(result, expected)
    if not difference <= tolerance:
        raise AssertionError(f"outputs differ from the release by {difference:.3g}")
    # some gradients are sums that cancel to zero (a bias of the keys): only the largest gradient tells the scale
    scale = max([float(grad.abs().max()) for grad in grads.values()], default=1.0)
    for name, parameter in net.named_parameters():
        difference = max_difference(parameter.grad, grads[name]) / scale if parameter.grad is not None else 0.0
        if not difference <= tolerance:
            raise AssertionError(f"gradient of {name} differs from the release by {difference:.3g} of the largest")


def verdicts_on_release(module: ModuleType) -> dict[str, str]:
    """
    Run the tests of a file on the release. A test of a defect that the release passes proves nothing.

    Args:
        module: a module of tests that imports nothing of this repository.

    Returns:
        "ok", "FAIL" or "ERROR" by the name of the test.
    """
    script = Path(str(module.__file__))
    command = [sys.executable, "-m", "unittest", "-v", script.stem]
    result = subprocess.run(command, cwd=script.parent, env=release_environment(), capture_output=True, text=True)
    return dict(re.findall(r"^(test_\w+) \(.*?(ok|FAIL|ERROR)$", result.stderr, re.MULTILINE | re.DOTALL))
