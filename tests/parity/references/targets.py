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


"""Into which networks a checkpoint is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.parity.references.cases import EVERYWHERE, MAISI, NOWHERE, WHOLE, Case

__all__ = ["Target", "targets"]


@dataclass(frozen=True)
class Target:
    """
    A network that a checkpoint is loaded into.

    Args:
        network: name of the class.
        kwargs: its arguments.
        options: those of them that need not agree with the network that wrote the checkpoint.
    """

    network: str
    kwargs: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> dict[str, Any]:
        return {**self.kwargs, **self.options}

    @property
    def name(self) -> str:
        return ", ".join([self.network, *(f"{name}={value}" for name, value in self.options.items())])


def targets(case: Case) -> list[Target]:
    """The networks of a case's own class with every set of options, and those of other classes that people try."""
    own = [Target(case.network, case.kwargs, options) for options in _attention(case.network)]
    return own + list(_other_upsampling(case)) + list(_maisi(case))


def _attention(network: str) -> list[dict[str, Any]]:
    if network == "VQVAE":
        return [{}]
    projections: list[dict[str, Any]] = [{}, {"use_proj_attn": True}, {"use_proj_attn": False}]
    if not network.startswith(("ViT", "UNETR", "Masked")):
        projections.append({"include_fc": network in MAISI})  # the choice that is not its default
    return [{**projection, "use_combined_linear": combined} for projection in projections for combined in (False, True)]


def _other_upsampling(case: Case) -> Iterator[Target]:
    if case.network in ("AutoencoderKL", "AutoencoderKlMaisi"):
        other = {"use_convtranspose": not case.kwargs.get("use_convtranspose", False)}
        for projection in (None, True, False):
            yield Target(case.network, case.kwargs, {"use_proj_attn": projection, **other})


def _maisi(case: Case) -> Iterator[Target]:
    """The network for large volumes of the same sizes."""
    if case.network in ("DiffusionModelUNet", "ControlNet"):
        more = {"use_checkpointing": False} if case.network == "ControlNet" else {}
        for options in _attention(case.network + "Maisi")[::2]:
            yield Target(case.network + "Maisi", _renamed({**case.kwargs, **more}), options)
    if case.network == "AutoencoderKL" and case.kwargs["spatial_dims"] == 3:
        nonlocal_attention = NOWHERE if case.kwargs.get("with_encoder_nonlocal_attn") is False else EVERYWHERE
        for projection in (None, True):
            for transposed in (False, True):
                options = {"use_proj_attn": projection, "use_convtranspose": transposed}
                yield Target("AutoencoderKlMaisi", _renamed({**case.kwargs, **nonlocal_attention, **WHOLE}), options)


def _renamed(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {{"channels": "num_channels"}.get(name, name): value for name, value in kwargs.items()}
