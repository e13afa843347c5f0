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


"""Runs in the process of a package: writes checkpoints, or loads them into the pristine release."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from tests.parity.references.cases import Case
from tests.parity.references.elders import renamed_back
from tests.parity.references.loading import Result, attempt
from tests.parity.references.networks import arguments_taken, find_class, inputs, outputs
from tests.parity.references.weights import filled

__all__ = ["Worker"]


class Worker:
    """Answers of a package; a :class:`fork.referee.Referee` holds its process."""

    def __init__(self) -> None:
        torch.set_num_threads(1)

    def write(self, cases: Sequence[Case], place: Path) -> None:
        """Build, fill and run the networks of some cases, and save what comes of them by their names."""
        torch.save({case.name: _reference(case) for case in cases}, place)

    def load(
        self, place: Path, name: str, networks: Sequence[tuple[str, Mapping[str, Any]]]
    ) -> list[tuple[Result, Result]]:
        """
        Load a checkpoint into networks of the release.

        Args:
            place: what :meth:`write` has saved.
            name: of the case.
            networks: the name of the class, and its arguments in the fork's words.

        Returns:
            for each network a strict load, and one with the release's loader of older checkpoints
        """
        reference = _saved(place)[name]
        done: dict[str, tuple[Result, Result]] = {}
        results = []
        for network, kwargs in networks:
            key = f"{network} {_told(network, kwargs)}"  # the release has fewer options than the fork
            if key not in done:
                done[key] = attempt(network, kwargs, reference), attempt(network, kwargs, reference, "old")
            results.append(done[key])
        return results


def _told(network: str, kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        return arguments_taken(find_class(network), kwargs)
    except LookupError:
        return None


@lru_cache(maxsize=1)
def _saved(place: Path) -> dict[str, dict[str, Any]]:
    return torch.load(place, weights_only=True)


def _reference(case: Case) -> dict[str, Any]:
    """
    Build the network of a case, fill it and run it.

    Returns:
        ``state_dict``, ``inputs`` by the names of the arguments, and ``output``
    """
    package = case.writer.partition("==")[0]
    torch.manual_seed(case.seed)
    if package == "stable-diffusion-sdkit":
        net = _latent_diffusion(case.kwargs)
    else:
        cls = find_class(case.network, "generative" if package == "monai-generative" else "monai")
        net = cls(**arguments_taken(cls, {**case.kwargs, **case.options}))
    state = net.state_dict()
    state = filled(state, case.seed, keep=[key for key in state if case.untrained and _unused(case.network, key)])
    net.load_state_dict(state)
    if case.kwargs.get("norm_float16"):  # changes no weight, and convolutions on a CPU do not take it
        for module in net.modules():
            module.norm_float16 = False
    values = inputs(case.network, case.kwargs)
    output = outputs(net, case.network, values)
    if case.layout:
        width = case.kwargs.get("num_head_channels", 0)
        state = renamed_back(case.layout, case.network, state, width if isinstance(width, int) else 0)
    return {"state_dict": state, "inputs": values, "output": output}


def _unused(network: str, key: str) -> bool:
    """Whether a key of MONAI 1.4 belongs to an output projection that ``include_fc=False`` leaves out."""
    heeded = network != "SPADEDiffusionModelUNet" or "up_blocks" not in key  # those never see the option
    return heeded and (".attn.out_proj." in key or ".attn1.out_proj." in key)


def _latent_diffusion(kwargs: Mapping[str, Any]) -> torch.nn.Module:
    """The ancestor of all these U-Nets, of the same sizes."""
    omegaconf = types.ModuleType("omegaconf.listconfig")  # it is asked whether the context's width is such a list
    omegaconf.ListConfig = type("ListConfig", (), {})  # type: ignore[attr-defined]
    sys.modules.setdefault("omegaconf", types.ModuleType("omegaconf"))
    sys.modules.setdefault("omegaconf.listconfig", omegaconf)
    width, heads = kwargs["channels"][0], kwargs["num_head_channels"]
    return find_class("UNetModel", "ldm")(
        image_size=8,
        in_channels=kwargs["in_channels"],
        model_channels=width,
        out_channels=kwargs["out_channels"],
        num_res_blocks=list(kwargs["num_res_blocks"]),
        attention_resolutions=[2**level for level, attends in enumerate(kwargs["attention_levels"]) if attends],
        channel_mult=[channels // width for channels in kwargs["channels"]],
        num_head_channels=heads if isinstance(heads, int) else heads[-1],
        legacy=False,
        resblock_updown=kwargs.get("resblock_updown", False),
        use_spatial_transformer=kwargs.get("with_conditioning", False),
        context_dim=kwargs.get("cross_attention_dim"),
        use_checkpoint=False,
    )
