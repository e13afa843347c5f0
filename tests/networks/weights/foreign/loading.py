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

"""Loads what other packages wrote into our networks, by the rules of their layouts, and accounts for every tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn as nn

from monai.networks.nets import AutoencoderKL, DiffusionModelUNet, SwinUNETR
from monai.networks.weights import EarlyPatchMerging
from monai.networks.weights.report import LoadReport
from monai.networks.weights.source import Source
from monai.networks.weights.sources_diffusion import SOURCES as DIFFUSION
from monai.networks.weights.sources_swin import SOURCES as SWIN
from tests.networks.weights.foreign.rows import STAGES, Row
from tests.networks.weights.vit_files import load as load_file

__all__ = ["build", "difference", "load", "outputs", "source"]

_CLASSES = {cls.__name__: cls for cls in (AutoencoderKL, DiffusionModelUNet, SwinUNETR)}
_SOURCES = {one.name: one for one in (*DIFFUSION, *SWIN)}


def source(name: str) -> Source:
    """A layout by its name."""
    return _SOURCES[name]


def build(row: Row, **changes: Any) -> nn.Module:
    """Our network of a row."""
    arguments = {**row.arguments, **changes}
    if arguments.get("downsample") == "EarlyPatchMerging":
        arguments["downsample"] = EarlyPatchMerging
    return _CLASSES[row.network](**arguments).eval()


def load(
    net: nn.Module,
    state: Mapping[str, torch.Tensor],
    layout: Source,
    config: Mapping[str, Any] | None = None,
    allow: tuple[str, ...] = (),
) -> LoadReport:
    """
    Load weights of another package.

    Args:
        net: our network.
        state: the weights.
        layout: of their keys.
        config: the configuration beside them.
        allow: patterns of our keys that may stay as they are.

    Raises:
        RuntimeError: if the layout refuses them, or a tensor is missing, left over, or of another shape.
    """
    return load_file(net, state, layout.name, config, allow=allow)


@torch.no_grad()
def outputs(net: Any, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """All that our network computes, in the order of the writer's."""
    if isinstance(net, SwinUNETR):
        return torch.cat([stage.reshape(-1) for stage in net.swinViT(values["x"])[STAGES]])
    if isinstance(net, AutoencoderKL):
        mean, std = net.encode(values["x"])
        return torch.cat([part.reshape(-1) for part in (mean, std, net.decode(mean))])
    out: torch.Tensor = net(**values).reshape(-1)
    return out


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((found - wanted).abs().max() / wanted.abs().max())
