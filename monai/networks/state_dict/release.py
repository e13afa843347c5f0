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

"""
The layout of the pristine release MONAI 1.6, for those who do not run the fork: its table of rules read backwards.

What the release builds otherwise, a network declares itself:

- ``built_by_release``: options with which the release always builds attention, by the path of the part, ``""`` for the
  whole network. Then the release does not take these options.
- ``release_dims``: how many axes its images may have there, or the grids of positions, where the release is wrong, or
  raises, with others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn as nn

from monai.networks.state_dict.layouts import ALWAYS, LAYOUTS
from monai.networks.state_dict.projections import Attention, identity
from monai.networks.state_dict.rules import Part, Rule, Together

__all__ = ["release_arguments", "release_state_dict"]

UNKNOWN_THERE = ("use_combined_linear", "use_flash_attention", "norm_eps", "dynamic_size")
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
LINEARS = ("qkv", "to_q", "to_k", "to_v")


def release_state_dict(net: nn.Module, state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Bring a state dict to the layout that MONAI 1.6 loads strictly, to the same outputs.

    The release saves causal masks; where it builds a projection or a linear
    that ``net`` lacks, an identity and the split or joined weights stand in, which compute the same.

    Args:
        net: the network; its weights are not read, so that it may lie on the meta device.
        state_dict: its weights in the fork's layout.

    Returns:
        a new dictionary. The release's network takes it when it is built from :func:`release_arguments`.

    Raises:
        ValueError: if the release cannot compute what ``net`` does.
    """
    _refuse(net)
    adapted, own = dict(state_dict), dict(state_dict)
    options = dict(_options_there(net))
    for prefix, (block, combined, projects) in options.items():
        if projects and not block.use_proj_attn:
            adapted.update(identity(Attention(block, prefix), adapted))
        if block.attention_kind == "self":
            _expect_linears(own, prefix, combined)
    backwards = _rules_backwards()
    for path, module in net.named_modules(remove_duplicate=False):
        for rule in backwards.get(getattr(module, "layout_role", ""), ()):
            rule.apply(Part(module, f"{path}." if path else "", adapted, own))
    return adapted


def release_arguments(net: nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
    """
    Arguments from which the release builds the network that takes :func:`release_state_dict`.

    Args:
        net: the fork's network.
        arguments: what it was built from.
    """
    kept = {name: value for name, value in arguments.items() if name != "use_proj_attn"}
    if "" in getattr(net, "built_by_release", {}):
        return {name: value for name, value in kept.items() if name not in UNKNOWN_THERE}
    if arguments.get("use_proj_attn") is not None:
        kept["include_fc"] = arguments["use_proj_attn"]
    return kept


def _rules_backwards() -> dict[str, tuple[Rule, ...]]:
    """By the role of a module, how today's keys become those of the release: none is older than the saved masks."""
    saved = next(layout.rules for layout in LAYOUTS if layout.name == "saved mask")
    roles = dict.fromkeys([*ALWAYS, *saved])
    return {role: Together((*saved.get(role, ()), *ALWAYS.get(role, ()))).inverse().rules for role in roles}


def _options_there(net: nn.Module) -> Iterator[tuple[str, tuple[Any, bool, bool]]]:
    """
    Prefix and attention block, whether the release computes q, k and v of it by one linear, and whether it builds an
    output projection in any case.
    """
    declared = {
        f"{path}.{part}.".lstrip(".") if part else f"{path}.".lstrip("."): options
        for path, module in net.named_modules(remove_duplicate=False)
        for part, options in getattr(module, "built_by_release", {}).items()
    }
    for path, block in net.named_modules(remove_duplicate=False):
        if hasattr(block, "attention_kind"):
            prefix = f"{path}." if path else ""
            found = (options for part, options in declared.items() if prefix.startswith(part))
            always: Mapping[str, bool] = next(found, {})
            combined = always.get("use_combined_linear", getattr(block, "use_combined_linear", False))
            yield prefix, (block, combined, "include_fc" in always or block.attention_kind == "cross")


def _expect_linears(own: dict[str, Any], prefix: str, combined: bool) -> None:
    """Let the keys of the release's network be those of its linears."""
    kinds = [kind for kind in ("weight", "bias") if any(f"{prefix}{name}.{kind}" in own for name in LINEARS)]
    for name in LINEARS:
        for kind in kinds:
            own.pop(f"{prefix}{name}.{kind}", None)
            if (name == "qkv") == combined:
                own[f"{prefix}{name}.{kind}"] = None


def _refuse(net: nn.Module) -> None:
    """
    Raise where the release raises, or computes something else with the same weights.

    Raises:
        ValueError: if it does.
    """
    kinds = ((module, dims, kind) for module in net.modules() for dims, kind in CONVOLUTIONS.items())
    dims = next((dims for module, dims, kind in kinds if isinstance(module, kind)), None)
    if dims not in getattr(net, "release_dims", (dims,)):
        raise ValueError(
            f"MONAI 1.6 cannot run {type(net).__name__} with spatial_dims={dims}: keep this checkpoint for the fork."
        )
    for path, module in net.named_modules(remove_duplicate=False):
        norm = module.norm1 if getattr(module, "layout_role", "") == "transformer block" else None
        eps = getattr(norm, "eps", 1e-5)
        if eps != 1e-5:
            raise ValueError(
                f"{path} has layer norms with norm_eps={eps}, and those of MONAI 1.6 have 1e-5: it would not reproduce "
                "the outputs. Keep this checkpoint for the fork."
            )
        positions: Any = getattr(module, "rel_positional_embedding", None)
        if hasattr(positions, "release_dims") and len(positions.token_grid() or ()) not in positions.release_dims:
            raise ValueError(
                f"{path} has decomposed relative positions in 3-D, which MONAI 1.6 computes wrongly: it would not "
                "reproduce the outputs. Keep this checkpoint for the fork."
            )
