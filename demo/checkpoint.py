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

"""The checkpoints that older packages wrote."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

from demo.checks import DemoError
from demo.make_checkpoint import RECIPES

__all__ = ["AutoencoderCheckpoint", "Checkpoints", "ViTCheckpoint", "as_in_monai", "read_checkpoints"]


@dataclass(frozen=True)
class OldCheckpoint:
    """What :mod:`demo.make_checkpoint` wrote.

    ``input`` is made of slice ``slice`` of the scan, ``output`` what the package that wrote the file gives for it.
    """

    file: Path
    monai: str
    torch_version: str
    network: str
    options: dict[str, Any]
    state_dict: dict[str, torch.Tensor]
    slice: int
    input: torch.Tensor
    output: torch.Tensor

    @property
    def writer(self) -> str:
        """The package that trained the network."""
        return f"MONAI {self.monai}"

    def load_into(self, net: nn.Module) -> None:
        """Load the network's weights, strictly.

        Raises:
            DemoError: when the network refuses them.
        """
        try:
            net.load_state_dict(self.state_dict, strict=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise DemoError(f"the checkpoint of {self.writer} does not load: {reason[:1000]}") from error


@dataclass(frozen=True)
class ViTCheckpoint(OldCheckpoint):
    """A ViT that fills in hidden patches.

    In ``input`` the patches of the mask ``hidden`` are hidden; ``head`` is the linear layer that turns the tokens of
    ``output`` into pixels.
    """

    head: dict[str, torch.Tensor]
    hidden: torch.Tensor

    def head_layer(self) -> nn.Linear:
        """The linear layer from tokens to pixels."""
        pixels, width = self.head["weight"].shape
        head = nn.Linear(width, pixels)
        head.load_state_dict(self.head)
        return head


@dataclass(frozen=True)
class AutoencoderCheckpoint(OldCheckpoint):
    """An AutoencoderKL of the GenerativeModels of version ``generative``; ``output`` is its reconstruction."""

    generative: str

    @property
    def writer(self) -> str:
        """The package that trained the network."""
        return f"GenerativeModels {self.generative}"


def as_in_monai(options: dict[str, Any]) -> dict[str, Any]:
    """Arguments of GenerativeModels' AutoencoderKL, as MONAI's spells them."""
    return {"channels" if name == "num_channels" else name: value for name, value in options.items()}


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run."""

    vit: ViTCheckpoint
    autoencoder: AutoencoderCheckpoint


KINDS: dict[str, type[OldCheckpoint]] = {"ViT": ViTCheckpoint, "AutoencoderKL": AutoencoderCheckpoint}


def read_checkpoints(others: Iterable[Path] = ()) -> Checkpoints:
    """Read the repository's checkpoints; one of ``others`` takes the place of the one of the same network.

    Raises:
        DemoError: when one is missing or is something else.
    """
    found: dict[str, Any] = {checkpoint.network: checkpoint for checkpoint in map(read_checkpoint, others)}
    for network in KINDS.keys() - found.keys():
        found[network] = read_checkpoint(RECIPES[network].file)
    return Checkpoints(found["ViT"], found["AutoencoderKL"])


def read_checkpoint(path: Path) -> OldCheckpoint:
    """Read a file of :mod:`demo.make_checkpoint`.

    Raises:
        DemoError: when it is missing or is something else.
    """
    remedy = f"make it with: python -m demo.make_checkpoint {' or '.join(RECIPES)}"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return KINDS[content["network"]](file=path, **content)
    except FileNotFoundError:
        raise DemoError(f"{path} is missing, {remedy}") from None
    except (OSError, TypeError, LookupError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DemoError(f"{path} is no checkpoint of the demo ({reason}), {remedy}") from error
