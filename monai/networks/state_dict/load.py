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

"""One load of a checkpoint into a module: what is adapted, completed and refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn as nn

from monai.networks.state_dict.hooks import OWN_VERSION, CheckpointFacts, Request, SafeLoading, before_load
from monai.networks.state_dict.layouts import ALWAYS, LAYOUTS, Layout, recognize_layouts, rivals
from monai.networks.state_dict.projections import Attention, attention_in, drop_unused, identity, notes_on_unused
from monai.networks.state_dict.refusals import PLAIN, misfit, refuse, remedy_for_unexpected
from monai.networks.state_dict.rules import MERGED, Misfit, Part, Rule, recording
from monai.networks.state_dict.torch_private import children_by_key, loads_in_its_own_way, metadata_of, own_tensors

__all__ = ["Load", "adapt_load"]

NAMED_AT_MOST = 5
NESTED_WITHOUT = (
    "the file has everything but output projections, as a network without them writes it. Inside another module they "
    "are not replaced: build this network with use_proj_attn=False, or load it on its own, by load_checkpoint or its "
    "load_state_dict."
)


def adapt_load(
    module: nn.Module,
    state_dict: MutableMapping[str, Any],
    prefix: str,
    local_metadata: Mapping[str, Any],
    request: Request,
) -> list[nn.Module]:
    """
    Adapt what a module is about to load, or refuse it: what :mod:`monai.networks.state_dict.hooks` calls.

    Args:
        module: the module.
        state_dict: the checkpoint, which is adapted in place.
        prefix: of the module's keys.
        local_metadata: what the module that wrote these keys said of itself.
        request: what the caller of the load says.

    Returns:
        the modules inside that need not be asked again, as their keys are their own and fit.

    Raises:
        RuntimeError: if the checkpoint does not fit; it is then as it was.
    """

    def metadata(path: str) -> Mapping[str, Any]:
        return local_metadata if path == prefix[:-1] else metadata_of(state_dict, path)

    return Load(module, state_dict, prefix, metadata, request).run()


@dataclass
class Load:
    """
    One load of a checkpoint into a module.

    Args:
        module: the module.
        state: the checkpoint, which is adapted in place.
        prefix: of the module's keys.
        metadata: what the module at a path wrote about itself, as far as it is known.
        request: what the caller says.
    """

    module: nn.Module
    state: MutableMapping[str, Any]
    prefix: str
    metadata: Callable[[str], Mapping[str, Any]]
    request: Request
    own: dict[str, Any] = field(default_factory=dict)
    opaque: list[str] = field(default_factory=list)
    nested: list[nn.Module] = field(default_factory=list)
    layouts: list[Layout] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._collect(self.module, self.prefix)

    def run(self) -> list[nn.Module]:
        """
        Adapt what has to be, and refuse what cannot be loaded.

        Returns:
            the modules inside that need not be asked again; none where somebody else may change keys on their way.

        Raises:
            RuntimeError: if it cannot; the checkpoint is then as it was.
        """
        foreign = self.foreign()
        if not foreign and self.own.keys() <= self.state.keys() and not self.request.careful:
            refuse(self.module, self.misfits())
            return [] if self.opaque else self.nested
        written = dict(self.state)
        try:
            self.adapt()
            problems = list(self.misfits())
            if self.request.strict:
                problems += self.missing_and_unexpected()
            refuse(self.module, problems, self.layouts, self.own, written)
        except RuntimeError:
            self.state.clear()
            self.state.update(written)
            raise
        if not self.request.strict:
            self._give_names_back(written, foreign)
        self.warn()
        return []

    def foreign(self) -> list[str]:
        """Keys of the checkpoint that are not the module's own, nor of a layer that loads in its own way."""
        opaque, own, prefix = tuple(self.opaque), self.own, self.prefix
        keys = [key for key in self.state if key not in own and key.startswith(prefix)]
        return [key for key in keys if not key.startswith(opaque)] if opaque else keys

    def adapt(self) -> None:
        """
        Translate keys, and settle what became of output projections. Changes the checkpoint.

        Raises:
            RuntimeError: if the keys are those of two layouts, or a rule refuses them.
        """
        if self.foreign():
            mixed = rivals(self._written())
            if len(mixed) > 1:
                line = f"keys of two layouts are mixed, which no release wrote: {', '.join(mixed)}. {MERGED}"
                refuse(self.module, [line])
            self.layouts = recognize_layouts(self._written())
            try:
                self._apply_rules()
            except Misfit as error:
                refuse(self.module, [str(error)], self.layouts, self.own, self.state)
        with recording(self.state, "what became of the output projections, and of what no output depends on"):
            self._settle_projections()

    def is_of_an_older_layout(self) -> bool:
        """Whether the checkpoint has keys that are not the module's, and that an older layout is known by."""
        return bool(self.foreign()) and any(
            layout.is_old and layout.rules for layout in recognize_layouts(self._written())
        )

    def left_unused(self) -> Iterator[str]:
        """Say which output projections the checkpoint says were never used, and would be in this network."""
        for path in self.unused:
            if f"{path}.weight" in self.own and f"{path}.weight" not in self.state:
                yield (
                    f"{path}: the checkpoint's network never used this projection, and only a part of the checkpoint "
                    "is here. Copy the whole, or build this network with use_proj_attn=False."
                )

    def misfits(self) -> Iterator[str]:
        """Say, a line each, which tensors of the checkpoint cannot take their place."""
        for key, want in self.own.items():
            have = self.state.get(key, want)
            if have is not want and not (type(have) in PLAIN and have.shape == want.shape):
                line = misfit(key, have, want)
                if line:
                    yield line
        for name, value in self._facts_of_the_module().items():
            known = self._known(name)
            if known not in (None, value):
                yield f"the checkpoint's network was built with {name}={known}, this one with {value}: build it alike."

    def missing_and_unexpected(self) -> Iterator[str]:
        """Say which keys checkpoint and module do not share, and what to do where attention is concerned."""
        missing = [key for key in self.own if key not in self.state]
        unexpected = self.foreign()
        if missing:
            yield f"Missing key(s) in state_dict: {_quoted(missing)}."
        if unexpected:
            remedy = remedy_for_unexpected(unexpected, self.projections_used())
            yield f"Unexpected key(s) in state_dict: {_quoted(unexpected)}.{remedy}"

    def idle_keys(self) -> Iterator[str]:
        """Keys of parameters that no output depends on."""
        for name, module in self.module.named_modules(remove_duplicate=False):
            keys = getattr(module, "idle_keys", None)
            if keys is not None:
                path = f"{self.prefix}{name}." if name else self.prefix
                yield from (path + key for key in keys())

    def projections_used(self) -> bool:
        """Whether every output projection in the checkpoint is known to have been used."""
        wrote_itself = int(self.metadata(self.prefix[:-1]).get("version") or 1) >= OWN_VERSION
        known = self.request.facts.projection_used
        return bool(known) or wrote_itself or any(layout.projections_used for layout in self.layouts)

    def warn(self) -> None:
        """Warn of everything that was noted, each text once."""
        for text, keys in self.notes.items():
            more = f" and {len(keys) - NAMED_AT_MOST} more" if len(keys) > NAMED_AT_MOST else ""
            named = ", ".join(keys[:NAMED_AT_MOST])
            warnings.warn(f"{type(self.module).__name__}: {text} ({named}{more})", stacklevel=2)

    def _note(self, text: str, key: str) -> None:
        """Have the user warned of ``text``, which concerns ``key`` and maybe others."""
        self.notes.setdefault(text, []).append(key)

    def _collect(self, module: nn.Module, prefix: str) -> None:
        """
        Collect the tensors of a module and its children, by key, and the prefixes of those that load in a way of their
        own, whose keys nobody else can judge.
        """
        if loads_in_its_own_way(module, before_load):
            if any(True for _ in module.state_dict()):
                self.opaque.append(prefix)
            return
        if isinstance(module, SafeLoading) and not module.state_dict_facts():
            self.nested.append(module)
        for name, tensor in own_tensors(module):
            self.own[prefix + name] = tensor
        for name, child in children_by_key(module):
            self._collect(child, f"{prefix}{name}.")

    def _written(self) -> list[str]:
        """Keys of the checkpoint as the module's own would be."""
        return [key[len(self.prefix) :] for key in self.state if key.startswith(self.prefix)]

    def _apply_rules(self) -> None:
        waiting: list[tuple[Rule, Part]] = []
        known = {**vars(self.request.facts), "transposed_upsampling": self._known("use_convtranspose")}
        facts = CheckpointFacts(**known)
        for name, module in self.module.named_modules(remove_duplicate=False):
            part = Part(
                module, f"{self.prefix}{name}." if name else self.prefix, self.state, self.own, facts, self.unused
            )
            adapt = getattr(module, "adapt_state_dict", None)
            if adapt is not None:
                with recording(self.state, "as its module adapts it"):
                    adapt(part)
            for rule in _rules_of(module, is_root=not name):
                if rule.comes_last:
                    waiting.append((rule, part))
                else:
                    self._apply(rule, part)
        for rule, part in waiting:
            self._apply(rule, part)

    def _apply(self, rule: Rule, part: Part) -> None:
        with recording(self.state, rule.does):
            rule.apply(part)

    def _known(self, name: str) -> Any:
        """What the user or else the file says about how the network was built; None where neither does."""
        known = self.request.facts.transposed_upsampling if name == "use_convtranspose" else None
        return self.metadata(self.prefix[:-1]).get(name) if known is None else known

    def _facts_of_the_module(self) -> dict[str, bool]:
        facts = getattr(self.module, "state_dict_facts", None)
        out: dict[str, bool] = {} if facts is None else facts()
        return out

    def _settle_projections(self) -> None:
        attentions = attention_in(self.module, self.prefix)
        known, used, strict = self.request.facts.projection_used, self.projections_used(), self.request.strict
        if known is False and not any(layout.projections_used for layout in self.layouts):
            self._take_for_unused(attentions)
        elif known is None and not used and strict is not False:
            if any(key in self.state and key not in self.own for one in attentions for key in one.keys):
                drop_unused(attentions, self.module, self.prefix, self.state, self._note)
        if strict is not False:
            self._complete(attentions)
        if self.request.careful and known is None and not used:
            for text, key in notes_on_unused(attentions, self.module, self.prefix, self.state):
                self._note(text, key)

    def _take_for_unused(self, attentions: list[Attention]) -> None:
        """The user says that the projections of self attention were never used."""
        for one in attentions:
            if one.may_be_unused and one.projection(self.state):
                for key in one.keys:
                    self.state.pop(key, None)
                if one.projects:
                    self.state.update(identity(one, self.state))

    def _complete(self, attentions: list[Attention]) -> None:
        """
        Write what the whole checkpoint shows that its network did not have: an identity for each output projection
        that is absent or was never used, and the parameters that no output depends on. Where anything else is missing,
        nothing is written: it may be a part of a checkpoint, or a damaged one.
        """
        missing = {key for key in self.own if key not in self.state}
        if not missing or not all(any(key.startswith(path) for key in self.state) for path in self.opaque):
            return
        idle = missing & set(self.idle_keys())
        never_used = [one for one in attentions if f"{one.prefix}out_proj" in self.unused and one.projects]
        absent = self._without_projection(attentions, missing)
        if missing - idle != {key for one in [*never_used, *absent] for key in one.keys}:
            return
        if absent and self.request.strict is None:
            if hasattr(self.module, "load_old_state_dict"):  # of nested modules, the networks speak
                self._note(NESTED_WITHOUT, absent[0].keys[0])
            return
        for one in [*never_used, *absent]:
            self.state.update(identity(one, self.state))
        for key in idle:
            self.state[key] = _idle_value(self.own[key], key)

    def _without_projection(self, attentions: list[Attention], missing: set[str]) -> list[Attention]:
        """
        The blocks whose projection the checkpoint lacks, of groups in which it has none: their network had none, unless
        it says otherwise of itself, or is of a layout in which all projections were used.
        """
        if any(layout.projections_used for layout in self.layouts):
            return []
        held = {one.group for one in attentions if one.projection(self.state)}
        lacking = [one for one in attentions if one.group not in held and one.projects and missing.issuperset(one.keys)]
        lost = any(self.metadata(one.prefix[:-1]).get("use_proj_attn") for one in lacking)
        return [] if lost else lacking

    def _give_names_back(self, written: Mapping[str, Any], foreign: list[str]) -> None:
        """Give keys that found no place their names back, so that what torch reports are the user's."""
        names = {id(written[key]): key for key in foreign if key not in self.state}
        for key in self.foreign():
            if key not in written and id(self.state[key]) in names:
                value = self.state.pop(key)
                self.state[names[id(value)]] = value


def _rules_of(module: nn.Module, is_root: bool) -> Iterator[Rule]:
    """The rules of all layouts for a module, by its role, and those for the keys of any network as a whole."""
    for role in (getattr(module, "layout_role", None), "" if is_root else None):
        if role is not None:
            for layout in LAYOUTS:
                yield from layout.rules.get(role, ())
            yield from ALWAYS.get(role, ())


def _idle_value(own: torch.Tensor, key: str) -> torch.Tensor:
    """What stands in for a parameter that no output depends on: itself, or what a norm begins with."""
    if not own.is_meta:
        return own.detach()
    return torch.full(own.shape, float(key.endswith("weight")), dtype=own.dtype, device="cpu")


def _quoted(keys: list[str]) -> str:
    return ", ".join(f'"{key}"' for key in keys)
