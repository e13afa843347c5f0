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


"""A network of the diffusion family beside the release's: how it is built, and what it computes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn

from tests.networks.nets.diffusion_cases import inputs, randomized
from tests.parity.release import assert_equal_to_release, assert_initialized_like_the_release, release_run

__all__ = ["assert_built_and_computing_like_the_release"]


def assert_built_and_computing_like_the_release(
    cls: type[nn.Module], target: str, kwargs: dict[str, Any], **call_kwargs: Any
) -> None:
    """Compare keys, their order, initial weights, outputs and gradients."""
    torch.manual_seed(0)
    net = cls(**kwargs)
    assert_initialized_like_the_release(net, target, kwargs)
    own, values = randomized(net), {**inputs(kwargs), **call_kwargs}
    strides = _strides(release_run(target, kwargs, (), state=own.state_dict(), call_kwargs=values))
    if _strides(own(**values)) != strides:
        raise AssertionError("the layout in memory differs, which noise made like the output would follow")
    assert_equal_to_release(own, target, kwargs, (), **values)


def _strides(out: Any) -> list:
    return [out.stride()] if torch.is_tensor(out) else [stride for part in out for stride in _strides(part)]
