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

"""The checkpoint that an older MONAI release wrote."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

from demo.checks import DemoError
from demo.make_checkpoint import CHECKPOINT

__all__ = ["CHECKPOINT", "OldCheckpoint", "read_checkpoint"]


@dataclass(frozen=True)
class OldCheckpoint:
    """What ``demo/train_checkpoint.py`` wrote.

    ``input`` is slice ``slice`` of the scan with the patches of the mask ``hidden`` hidden, ``output`` what the
    release that wrote the file gives for it, ``head`` the linear layer that turns its tokens into pixels.
    """

    monai: str
    torch_version: str
    network: str
    options: dict[str, Any]
    state_dict: dict[str, torch.Tensor]
    head: dict[str, torch.Tensor]
    slice: int
    hidden: torch.Tensor
    input: torch.Tensor
    output: torch.Tensor

    def load_into(self, net: nn.Module) -> None:
        """Load the network's weights, strictly.

        Raises:
            DemoError: when the network refuses them.
        """
        try:
            net.load_state_dict(self.state_dict, strict=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise DemoError(f"the checkpoint of MONAI {self.monai} does not load: {reason[:300]}") from error

    def head_layer(self) -> nn.Linear:
        """The linear layer from tokens to pixels."""
        pixels, width = self.head["weight"].shape
        head = nn.Linear(width, pixels)
        head.load_state_dict(self.head)
        return head


def read_checkpoint(path: Path) -> OldCheckpoint:
    """Read a file of ``demo/train_checkpoint.py``.

    Raises:
        DemoError: when it is missing or is something else.
    """
    remedy = "make it with: python -m demo.make_checkpoint"
    try:
        return OldCheckpoint(**torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        raise DemoError(f"{path} is missing, {remedy}") from None
    except (OSError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise DemoError(f"{path} is no checkpoint of the demo ({str(error).splitlines()[0]}), {remedy}") from error
