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
from functools import lru_cache
from typing import Any

import torch

from fork.referee import Referee
from fork.referee import RefereeError as ReleaseError
from tests.differences import energy, max_difference

__all__ = [
    "ReleaseError",
    "assert_equal_to_release",
    "assert_initialized_like_the_release",
    "release_run",
]


@lru_cache(maxsize=1)
def _referee() -> Referee:
    referee = Referee("tests.parity.release_worker:Worker")
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


def assert_initialized_like_the_release(
    net: torch.nn.Module, target: str, kwargs: dict[str, Any], seed: int = 0
) -> None:
    """
    Compare the keys, their order and the initial weights of ``net`` with those of the release's ``target``.

    Args:
        net: the fork's module, as it was built with that seed.
        target: dotted name of the release's class.
        kwargs: arguments of the release's class.
        seed: of torch.
    """
    expected, own = release_run(target, kwargs, seed=seed, call=None), net.state_dict()
    if list(own) != list(expected):
        raise AssertionError(f"keys differ: {sorted(own.keys() ^ expected.keys()) or 'in their order'}")
    differing = [key for key in own if not torch.equal(own[key], expected[key])]
    if differing:
        raise AssertionError(f"initial weights differ: {differing}")


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
