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
Output projections of attention: which a checkpoint lacks because its network had none, which it holds unused, and which
it has lost.

An attention block says by ``attention_kind`` whether it attends to its own tokens ("self") or to a context ("cross").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn

from monai.networks.state_dict.torch_private import own_tensors
from monai.networks.state_dict.untrained import FEWEST_VALUES, departure, only_one_untrained

__all__ = ["Attention", "attention_in", "drop_unused", "identity", "notes_on_unused", "plain"]

DROPPED = (
    "output projections were dropped. They were never trained: their weights still have torch's initial distribution, "
    "uniform within 1/sqrt(width), and those of q, k and v beside them no longer do. So MONAI 1.4 writes them with "
    "include_fc=False, and does not use them. If that network did use them, build this one with use_proj_attn=True."
)
KEPT = (
    "output projections were loaded that were never trained: their weights still have torch's initial distribution, "
    "uniform within 1/sqrt(width), and those of q, k and v beside them no longer do. So MONAI 1.4 writes them with "
    "include_fc=False, and does not use them: then the outputs differ, and this network should be built with "
    "use_proj_attn=False."
)
STALE = (
    "cross attentions were loaded that were never trained. MONAI 1.4 and 1.5 wrote them without using them: then the "
    "outputs differ, and this network should be built with with_cross_attention=False."
)
NORMS_ASKED = 8
"""Among so many norms a trained network has one that was trained."""
NORMS = (nn.LayerNorm, nn.GroupNorm)
PARAMETERS = ["weight", "bias"]


@dataclass(frozen=True)
class Attention:
    """
    An attention block of the network that loads.

    Args:
        block: the block.
        prefix: of its keys.
        group: its kind, and the part of the network, if any, that is built in a way of its own. Blocks of one group are
            built alike: either all of them have an output projection, or none.
    """

    block: Any
    prefix: str
    group: tuple[str, str] = ("", "")

    @property
    def may_be_unused(self) -> bool:
        """Whether MONAI 1.4 may have saved the output projection without using it."""
        return self.group == ("self", "")

    @property
    def keys(self) -> list[str]:
        """Keys of the output projection."""
        return [f"{self.prefix}out_proj.weight", f"{self.prefix}out_proj.bias"]

    @property
    def projects(self) -> bool:
        """Whether the block ends in a linear of torch's that can be an identity."""
        linear = self.block.out_proj
        if not isinstance(linear, nn.Linear) or type(linear).forward is not nn.Linear.forward:
            return False
        return linear.in_features == linear.out_features and [name for name, _ in own_tensors(linear)] == PARAMETERS

    @property
    def has_none(self) -> bool:
        """Whether the block was built without an output projection."""
        return isinstance(self.block.out_proj, nn.Identity)

    def inputs(self, state: Mapping[str, Any]) -> list[torch.Tensor]:
        """Weights of q, k and v in a checkpoint; empty where they are not all there."""
        if f"{self.prefix}qkv.weight" in state:
            return list(state[f"{self.prefix}qkv.weight"].chunk(3))
        separate = [f"{self.prefix}to_{name}.weight" for name in "qkv"]
        return [state[key] for key in separate] if all(key in state for key in separate) else []

    def projection(self, state: Mapping[str, Any]) -> list[torch.Tensor]:
        """Weight and bias of the output projection in a checkpoint, as far as they are there."""
        return [state[key] for key in self.keys if key in state]


def attention_in(module: nn.Module, prefix: str) -> list[Attention]:
    """
    The attention blocks of a network. A network whose blocks in some part are built in another way than the others says
    so by ``projection_groups``, the paths of such parts.
    """
    parts: tuple[str, ...] = getattr(module, "projection_groups", ())
    found = []
    for name, block in module.named_modules(remove_duplicate=False):
        kind = getattr(block, "attention_kind", None)
        if kind is not None:
            part = next((part for part in parts if name.startswith(f"{part}.")), "")
            found.append(Attention(block, f"{prefix}{name}." if name else prefix, (kind, part)))
    return found


def plain(value: Any) -> bool:
    """Whether something is an ordinary floating tensor with values: nothing else is asked for them."""
    return (
        type(value) in (torch.Tensor, nn.Parameter)
        and value.is_floating_point()
        and value.layout == torch.strided
        and not value.is_meta
    )


def identity(attention: Attention, state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Weight and bias of a projection that changes nothing, typed like the block's queries; empty without these."""
    inputs = attention.inputs(state)
    if not inputs or type(inputs[0]) not in (torch.Tensor, nn.Parameter):
        return {}
    width: int = attention.block.inner_dim
    weight = torch.eye(width, dtype=inputs[0].dtype, device=inputs[0].device)
    return dict(zip(attention.keys, (weight, weight.new_zeros(width))))


def drop_unused(
    attentions: list[Attention], module: nn.Module, prefix: str, state: MutableMapping[str, Any], note: Callable
) -> None:
    """
    Leave out output projections that a MONAI 1.4 network did not use, where the network has none. Changes ``state``.

    All of them have to look untrained, the linears of q, k and v beside them trained, and the rest of the network, too:
    where only q, k and v were trained, an untrained projection may have been in use.

    Args:
        attentions: the network's attention blocks.
        module: the network.
        prefix: of its keys.
        state: the checkpoint.
        note: called with a text and a key that the user is to be warned of.
    """
    held = [one for one in attentions if one.may_be_unused and one.projection(state)]
    if not any(one.has_none for one in held) or not _all_untrained(held, module, prefix, state):
        return
    for one in held:
        if one.has_none:
            note(DROPPED, one.keys[0])
            for key in one.keys:
                state.pop(key, None)


def notes_on_unused(
    attentions: list[Attention], module: nn.Module, prefix: str, state: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Texts, each with a key, on what a load puts to use that the network which wrote it may not have used."""
    held = [one for one in attentions if one.may_be_unused and one.projection(state)]
    if held and _all_untrained(held, module, prefix, state):
        yield from ((KEPT, one.keys[0]) for one in held if not one.has_none)
    own = {one.prefix: one for one in attentions}
    for one in attentions:
        beside = own.get(one.prefix.removesuffix("cross_attn.") + "attn.")
        if one.prefix.endswith("cross_attn.") and beside is not None:
            cross, trained = one.inputs(state), beside.inputs(state)
            if cross and trained and all(map(plain, cross + trained)) and only_one_untrained(cross, trained):
                yield STALE, one.prefix.rstrip(".")


def _all_untrained(held: list[Attention], module: nn.Module, prefix: str, state: Mapping[str, Any]) -> bool:
    """Block by block, and no further than to the first one that was trained; then all of them together."""
    projections: list[torch.Tensor] = []
    inputs: list[torch.Tensor] = []
    for one in held:
        own = one.projection(state)
        if not all(map(plain, own)) or _was_trained(own):
            return False
        projections += own
        inputs += [value for value in one.inputs(state) if plain(value)]
    if not projections or not inputs or not only_one_untrained(projections, inputs):
        return False
    return _others_were_trained(module, prefix, state)


def _was_trained(tensors: list[torch.Tensor]) -> bool:
    """Whether a linear has surely left its initial weights; of few values, nothing is sure."""
    found = departure(*tensors)
    return found is not None and found.count >= FEWEST_VALUES and not found.is_none


def _others_were_trained(module: nn.Module, prefix: str, state: Mapping[str, Any]) -> bool:
    """
    Whether a network was trained outside of its attention, too: by its norms, which begin as ones and zeros, or where
    it has none by the linears of its cross attention.
    """
    norms = 0
    for name, layer in module.named_modules(remove_duplicate=False):
        if isinstance(layer, NORMS) and norms < NORMS_ASKED:
            values = {f"{prefix}{name}.weight": 1.0, f"{prefix}{name}.bias": 0.0}
            known = [(state[key], start) for key, start in values.items() if plain(state.get(key))]
            norms += bool(known)
            if any(bool(torch.any(value != start)) for value, start in known):
                return True
    if norms:
        return False
    cross = [one.inputs(state) for one in attention_in(module, prefix) if one.block.attention_kind == "cross"]
    return any(bool(inputs) and all(map(plain, inputs)) and _was_trained(inputs) for inputs in cross)
