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


"""Checks that a module leaves Python through TorchScript unchanged."""

from __future__ import annotations

import io
from typing import Any

import torch

from tests.differences import max_difference

__all__ = ["assert_scripts"]


def assert_scripts(net: torch.nn.Module, *inputs: tuple[Any, ...], tolerance: float = 1e-5) -> torch.jit.ScriptModule:
    """
    Script ``net``, save and load it, and compare it with the module itself on every tuple of arguments.

    Args:
        net: module in evaluation mode.
        inputs: tuples of positional arguments, of different batch sizes say.
        tolerance: largest difference allowed.

    Returns:
        the reloaded script.
    """
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(net), buffer)
    buffer.seek(0)
    reloaded = torch.jit.load(buffer)
    for arguments in inputs:
        with torch.no_grad():
            difference = max_difference(reloaded(*arguments), net(*arguments))
        if not difference <= tolerance:
            raise AssertionError(f"the script of {type(net).__name__} differs by {difference:.3g}")
    return reloaded
