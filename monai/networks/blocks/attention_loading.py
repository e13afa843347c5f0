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


from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
import torch.nn as nn

from monai.networks.checkpoints.facts import CheckpointFacts
from monai.networks.checkpoints.layouts import recognize_layouts, rivals
from monai.networks.checkpoints.untrained import only_one_untrained

__all__ = [
    "Loading",
    "OldCheckpoints",
    "SafeLoading",
    "adapted_state_dict",
    "input_weights",
    "projection_weights",
    "rename_prefix",
]

WITH_PROJECTION = " That network's attention had an output projection: build this one with use_proj_attn=True."
MAYBE_NOT_USED = (
    " Only if MONAI 1.4 wrote the file with include_fc=False was the projection never used: then load it by "
    "load_old_state_dict(state_dict, facts=CheckpointFacts(projection_used=False))."
)
OLD_ATTENTION = {"input_blocks", "query", "q.conv", "ff.net", "to_q", "to_out", "norm3"}
NAMED_AT_MOST = 5


class Loading:
    """
    One load of a checkpoint into a module: what the adapters of its submodules may ask and tell.

    Args:
        module: the outermost module that adapts the checkpoint.
        state_dict: the checkpoint as it was written.
        prefix: of the module's keys.
        facts: what the caller knows.

    Raises:
        RuntimeError: if the keys are those of two layouts, which no network wrote, or a weight is no tensor.
    """

    def __init__(self, module: nn.Module, state_dict: Mapping[str, Any], prefix: str, facts: CheckpointFacts) -> None:
        self.facts = facts
        written = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
        _refuse(module, list(_not_tensors(written)))
        keys = list(written)
        self.layouts = {layout.name: layout for layout in recognize_layouts(keys)}
        mixed = rivals(keys)
        if len(mixed) > 1:
            _refuse(module, [f"keys of two layouts are mixed, which no release wrote: {', '.join(mixed)}."])
        self.is_old = not OLD_ATTENTION.isdisjoint(self.layouts)
        """Whether GenerativeModels wrote the attention."""
        self._projections = {
            kind: [weights for path in paths if (weights := projection_weights(written, path))]
            for kind, paths in _attention_blocks(module).items()
        }
        self._inputs = [
            input_weights(written, path)
            for path in _attention_blocks(module)["self"]
            if projection_weights(written, path)
        ]
        self._notes: dict[str, list[str]] = {}

    def holds_projections(self, kind: str) -> bool:
        """Whether any attention block of a kind has an output projection in the checkpoint."""
        return bool(self._projections[kind])

    @cached_property
    def projections_were_never_trained(self) -> bool:
        """
        Whether the output projections of self attention still have torch's initial distribution, all of them, and the
        linears of q, k and v beside them no longer do, as where MONAI 1.4 writes projections that it does not use.
        """
        return only_one_untrained(sum(self._projections["self"], []), sum(self._inputs, []))

    def note(self, text: str, key: str) -> None:
        """Have the user warned of ``text``, which concerns ``key`` and maybe others."""
        self._notes.setdefault(text, []).append(key)

    def warn(self, module: nn.Module) -> None:
        """Warn of everything that was noted, each text once."""
        for text, keys in self._notes.items():
            more = f" and {len(keys) - NAMED_AT_MOST} more" if len(keys) > NAMED_AT_MOST else ""
            warnings.warn(f"{type(module).__name__}: {text} ({', '.join(keys[:NAMED_AT_MOST])}{more})", stacklevel=2)


class SafeLoading(nn.Module):
    """
    A module that adapts older checkpoints when it loads, and refuses a misfit before it changes a weight.

    Plain ``load_state_dict`` does it, whatever the module is nested in: before its part of a checkpoint is loaded,
    every submodule with a method ``adapt_state_dict(state_dict, prefix, loading)`` rewrites its keys, and shapes are
    compared. Missing and unexpected keys are found beforehand where the module itself is the one that loads; torch does
    not tell nested modules whether the load is strict. The caller's dictionary stays as it is: torch hands its hooks a
    copy.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(_BeforeLoad())

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False):
        """
        Load a state dict of this or an older release, see :meth:`torch.nn.Module.load_state_dict`.

        Raises:
            RuntimeError: if the state dict does not fit; the module is left as it is.
        """
        with _hook_of(self).told(strict=strict):
            return super().load_state_dict(state_dict, strict=strict, assign=assign)


class OldCheckpoints(SafeLoading):
    """A network with upstream's loader of older checkpoints."""

    def load_old_state_dict(
        self, old_state_dict: Mapping[str, torch.Tensor], verbose: bool = False, facts: CheckpointFacts | None = None
    ) -> None:
        """
        Load a checkpoint that an older release wrote; plain ``load_state_dict`` does the same, but for ``facts``.

        Args:
            old_state_dict: the older network's state dict, which is left as it is.
            verbose: whether to print the keys that the two networks do not share. Defaults to False.
            facts: what the keys cannot tell; None leaves everything open.

        Raises:
            RuntimeError: if the checkpoint does not fit this network; the network is left as it is.
        """
        if verbose:
            own = self.state_dict().keys()
            print("Keys of the network that the checkpoint lacks:", sorted(own - old_state_dict.keys()) or "none")
            print("Keys of the checkpoint that the network lacks:", sorted(old_state_dict.keys() - own) or "none")
        with _hook_of(self).told(facts=facts or CheckpointFacts()):
            self.load_state_dict(old_state_dict)


def adapted_state_dict(
    net: nn.Module, state_dict: Mapping[str, torch.Tensor], facts: CheckpointFacts | None = None
) -> dict[str, torch.Tensor]:
    """
    Bring a checkpoint of any age to the layout of a network, which is left as it is and may lie on the meta device.

    Args:
        net: the network.
        state_dict: the checkpoint, which is left as it is.
        facts: what its keys cannot tell; None leaves everything open.

    Returns:
        what ``net.load_state_dict`` takes as it is, in the order of ``net.state_dict()``

    Raises:
        RuntimeError: if the checkpoint does not fit the network.
    """
    adapted = dict(state_dict)
    loads = [
        (module, _adapt(module, adapted, prefix, facts or CheckpointFacts())) for prefix, module in _outermost(net, "")
    ]
    is_old = any(loading.is_old for _, loading in loads)
    _refuse(net, [*_misfits(net, adapted, ""), *_strays(net, adapted, is_old)], state_dict)
    for module, loading in loads:
        loading.warn(module)
    own = [key for key in net.state_dict() if key in adapted]
    return {key: adapted[key] for key in own + [key for key in adapted if key not in set(own)]}


def rename_prefix(state_dict: dict[str, Any], old: str, new: str) -> None:
    """Let the keys of ``state_dict`` that begin with ``old`` begin with ``new``. Changes ``state_dict``."""
    for key in [key for key in state_dict if key.startswith(old)]:
        state_dict[new + key[len(old) :]] = state_dict.pop(key)


def input_weights(state_dict: Mapping[str, torch.Tensor], prefix: str) -> list[torch.Tensor]:
    """Weights of q, k and v of the attention block at ``prefix``; empty where they are not all there."""
    if f"{prefix}qkv.weight" in state_dict:
        return list(state_dict[f"{prefix}qkv.weight"].chunk(3))
    separate = [f"{prefix}to_{name}.weight" for name in "qkv"]
    return [state_dict[key] for key in separate] if all(key in state_dict for key in separate) else []


def projection_weights(state_dict: Mapping[str, torch.Tensor], prefix: str) -> list[torch.Tensor]:
    """Weight and bias of the output projection of the attention block at ``prefix``, as far as they are there."""
    keys = (f"{prefix}out_proj.weight", f"{prefix}out_proj.bias")
    return [state_dict[key] for key in keys if key in state_dict]


class _BeforeLoad:
    """
    The hook that a module runs before it loads.

    Of nested modules the outermost one does the work for all of them. It shows their hooks the list in which torch
    collects the errors of this load, by which they know the load again when their turn comes.
    """

    def __init__(self) -> None:
        self.done: list[str] | None = None
        self.facts = CheckpointFacts()
        self.strict = False

    @contextmanager
    def told(self, **values: Any) -> Iterator[None]:
        """Tell the hook what torch does not, for the time of one load."""
        before = {name: getattr(self, name) for name in values}
        vars(self).update(values)
        try:
            yield
        finally:
            vars(self).update(before)

    def __call__(self, module, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, errors):
        if self.done is errors:
            return
        written = dict(state_dict)
        loading = _adapt(module, state_dict, prefix, self.facts)
        _note_not_finite(loading, state_dict, prefix)
        problems = list(_misfits(module, state_dict, prefix))
        if self.strict:
            problems += _strays(module, state_dict, loading.is_old)
        _refuse(module, problems, written)
        loading.warn(module)
        for child in module.modules():
            if isinstance(child, SafeLoading) and child is not module:
                _hook_of(child).done = errors


def _outermost(module: nn.Module, prefix: str) -> Iterator[tuple[str, SafeLoading]]:
    """The modules that adapt a checkpoint, each with the prefix of its keys, without those inside of others."""
    if isinstance(module, SafeLoading):
        yield prefix, module
        return
    for name, child in module.named_children():
        yield from _outermost(child, f"{prefix}{name}.")


def _hook_of(module: SafeLoading) -> _BeforeLoad:
    hooks = (getattr(hook, "hook", hook) for hook in module._load_state_dict_pre_hooks.values())
    return next(hook for hook in hooks if isinstance(hook, _BeforeLoad))


def _adapt(module: nn.Module, state_dict: dict[str, Any], prefix: str, facts: CheckpointFacts) -> Loading:
    loading = Loading(module, state_dict, prefix, facts)
    for name, child in module.named_modules():
        adapt = getattr(child, "adapt_state_dict", None)
        if adapt is not None:
            adapt(state_dict, f"{prefix}{name}." if name else prefix, loading)
    return loading


def _attention_blocks(module: nn.Module) -> dict[str, list[str]]:
    """Prefixes of the keys of all attention blocks, by kind."""
    paths: dict[str, list[str]] = {"self": []}
    for name, child in module.named_modules():
        if hasattr(child, "attention_kind"):
            paths.setdefault(child.attention_kind, []).append(f"{name}." if name else "")
    return paths


def _note_not_finite(loading: Loading, state_dict: Mapping[str, Any], prefix: str) -> None:
    for key, value in state_dict.items():
        if key.startswith(prefix) and torch.is_tensor(value) and _has_nan_or_inf(value):
            loading.note("the checkpoint holds weights that are NaN or infinite; they were loaded as they are.", key)


def _has_nan_or_inf(value: torch.Tensor) -> bool:
    if not value.is_floating_point() or value.is_meta or value.numel() == 0 or value.dtype.itemsize < 2:
        return False
    # the extremes show a NaN, too, and need no memory
    return not bool(torch.stack(torch.aminmax(value.detach())).isfinite().all())


def _refuse(module: nn.Module, problems: list[str], written: Mapping[str, Any] | None = None) -> None:
    if not problems:
        return
    layouts = [layout for layout in recognize_layouts(written or {}) if layout.source.startswith("Gen")]
    problems = [*problems, *([] if layouts else _wrapper_hint(module, written or {}))]
    problems += [f"The keys are those of {one.source} ({one.evidence}): {one.meaning}." for one in layouts]
    lines = "\n\t".join(problems)
    raise RuntimeError(
        f"Error(s) in loading state_dict for {type(module).__name__}, which is left unchanged:\n\t{lines}"
    )


def _not_tensors(written: Mapping[str, Any]) -> Iterator[str]:
    for key, value in written.items():
        if key.endswith(("weight", "bias")) and not torch.is_tensor(value):
            yield f"{key} is a {type(value).__name__}, not a tensor: pass the state dict itself, without its wrapper."


def _wrapper_hint(module: nn.Module, written: Mapping[str, Any]) -> Iterator[str]:
    own = {key.partition(".")[0] for key in module.state_dict()}
    first = {str(key).partition(".")[0] for key in written}
    if written and own.isdisjoint(first) and len(first) < 5:
        yield (
            f"All keys begin with {' or '.join(sorted(first))}, as wrappers and trainers save them: read the file by "
            "monai.networks.read_checkpoint."
        )


def _misfits(module: nn.Module, state_dict: dict[str, Any], prefix: str) -> Iterator[str]:
    """Say, a line each, which tensors of ``state_dict`` cannot take their place in ``module``."""
    expected, _ = _plain_tensors(module, prefix)
    for key in sorted(state_dict.keys() & expected.keys()):
        have, want = state_dict[key], expected[key]
        if not torch.is_tensor(have):
            yield f"{key} is a {type(have).__name__}, not a tensor."
        elif have.shape != want.shape and not (have.numel() == 1 and have.dim() == 1 and want.dim() == 0):
            yield f"size mismatch for {key}: {list(have.shape)} in the checkpoint, {list(want.shape)} in the network."


def _strays(module: nn.Module, state_dict: dict[str, Any], is_old: bool) -> Iterator[str]:
    """Say which keys ``state_dict`` and ``module`` do not share, and what to do where attention is concerned."""
    expected, opaque = _plain_tensors(module, "")
    missing = sorted(expected.keys() - state_dict.keys())
    unexpected = sorted(str(key) for key in state_dict.keys() - expected.keys() if not str(key).startswith(opaque))
    if missing:
        yield f"Missing key(s) in state_dict: {', '.join(missing)}."
    if unexpected:
        remedy = WITH_PROJECTION + ("" if is_old else MAYBE_NOT_USED)
        about_projection = any("out_proj." in key for key in unexpected)
        yield f"Unexpected key(s) in state_dict: {', '.join(unexpected)}.{remedy if about_projection else ''}"


def _plain_tensors(module: nn.Module, prefix: str) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """
    Tensors of the submodules that load in torch's ordinary way, by key, and the prefixes of those that do not (they
    override the loading or have hooks of their own), whose keys nobody else can judge.
    """
    expected: dict[str, torch.Tensor] = {}
    opaque: list[str] = []
    for name, child in module.named_modules(remove_duplicate=False):
        path = f"{prefix}{name}." if name else prefix
        hooks = [getattr(hook, "hook", hook) for hook in child._load_state_dict_pre_hooks.values()]
        own_methods = any(
            getattr(type(child), method) is not getattr(nn.Module, method)
            for method in ("_load_from_state_dict", "set_extra_state")
        )
        if own_methods or not all(isinstance(hook, _BeforeLoad) for hook in hooks):
            opaque.append(path)
            continue
        if path.startswith(tuple(opaque)):
            continue
        transient = child._non_persistent_buffers_set
        tensors = {**child._parameters, **{k: v for k, v in child._buffers.items() if k not in transient}}
        expected.update({path + key: value for key, value in tensors.items() if value is not None})
    return expected, tuple(opaque)
