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

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn as nn

__all__ = ["OldCheckpoints", "SafeLoading", "rename_prefix"]

WITHOUT_PROJECTION = "That network's attention had no output projection: build this one with use_proj_attn=False."
WITH_PROJECTION = (
    "That network's attention had an output projection: build this one with use_proj_attn=True. Only if MONAI 1.4 "
    "wrote the file with include_fc=False was the projection never used: then remove these keys."
)


class SafeLoading(nn.Module):
    """
    A module that adapts older checkpoints when it loads, and refuses a misfit before it changes a weight.

    Plain ``load_state_dict`` does it, whatever the module is nested in: before its part of a checkpoint is loaded,
    every submodule with a method ``adapt_state_dict(state_dict, prefix)`` rewrites its keys, and shapes are compared.
    Missing and unexpected keys are found beforehand where the module itself is the one that loads; torch does not tell
    nested modules whether the load is strict. The caller's dictionary stays as it is: torch hands its hooks a copy.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(_before_load)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False):
        """
        Load a state dict of this or an older release, see :meth:`torch.nn.Module.load_state_dict`.

        Raises:
            RuntimeError: if the state dict does not fit; the module is left as it is.
        """
        if strict and isinstance(state_dict, Mapping):
            adapted = dict(state_dict)
            _adapt(self, adapted, "")
            _refuse(self, list(_misfits(self, adapted, "")) + list(_strays(self, adapted)))
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


class OldCheckpoints(SafeLoading):
    """A network with upstream's loader of older checkpoints."""

    def load_old_state_dict(self, old_state_dict: dict[str, torch.Tensor], verbose: bool = False) -> None:
        """
        Load a checkpoint that an older release wrote; plain ``load_state_dict`` does the same.

        Args:
            old_state_dict: the older network's state dict, which is left as it is.
            verbose: whether to print the keys that the two networks do not share. Defaults to False.

        Raises:
            RuntimeError: if the checkpoint does not fit this network; the network is left as it is.
        """
        if verbose:
            own = self.state_dict().keys()
            print("Keys of the network that the checkpoint lacks:", sorted(own - old_state_dict.keys()) or "none")
            print("Keys of the checkpoint that the network lacks:", sorted(old_state_dict.keys() - own) or "none")
        self.load_state_dict(old_state_dict)


def rename_prefix(state_dict: dict[str, Any], old: str, new: str) -> None:
    """Let the keys of ``state_dict`` that begin with ``old`` begin with ``new``. Changes ``state_dict``."""
    for key in [key for key in state_dict if key.startswith(old)]:
        state_dict[new + key[len(old) :]] = state_dict.pop(key)


def _before_load(module, state_dict, prefix, *_) -> None:
    _adapt(module, state_dict, prefix)
    _refuse(module, list(_misfits(module, state_dict, prefix)))


def _adapt(module: nn.Module, state_dict: dict[str, Any], prefix: str) -> None:
    for name, child in module.named_modules():
        adapt = getattr(child, "adapt_state_dict", None)
        if adapt is not None:
            adapt(state_dict, f"{prefix}{name}." if name else prefix)


def _refuse(module: nn.Module, problems: list[str]) -> None:
    if problems:
        lines = "\n\t".join(problems)
        raise RuntimeError(
            f"Error(s) in loading state_dict for {type(module).__name__}, which is left unchanged:\n\t{lines}"
        )


def _misfits(module: nn.Module, state_dict: dict[str, Any], prefix: str) -> Iterator[str]:
    """Say, a line each, which tensors of ``state_dict`` cannot take their place in ``module``."""
    expected, _ = _plain_tensors(module, prefix)
    for key in sorted(state_dict.keys() & expected.keys()):
        have, want = state_dict[key], expected[key]
        if not torch.is_tensor(have):
            yield f"{key} is a {type(have).__name__}, not a tensor: pass the state dict itself, without its wrapper."
        elif have.shape != want.shape and not (have.numel() == 1 and have.dim() == 1 and want.dim() == 0):
            yield f"size mismatch for {key}: {list(have.shape)} in the checkpoint, {list(want.shape)} in the network."


def _strays(module: nn.Module, state_dict: dict[str, Any]) -> Iterator[str]:
    """Say which keys ``state_dict`` and ``module`` do not share."""
    expected, opaque = _plain_tensors(module, "")
    missing = sorted(expected.keys() - state_dict.keys())
    unexpected = sorted(key for key in state_dict.keys() - expected.keys() if not key.startswith(opaque))
    if missing:
        yield f"Missing key(s) in state_dict: {', '.join(missing)}.{_remedy(missing, WITHOUT_PROJECTION)}"
    if unexpected:
        yield f"Unexpected key(s) in state_dict: {', '.join(unexpected)}.{_remedy(unexpected, WITH_PROJECTION)}"


def _remedy(keys: list[str], remedy: str) -> str:
    return f" {remedy}" if any("out_proj." in key for key in keys) else ""


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
        if own_methods or any(hook is not _before_load for hook in hooks):
            opaque.append(path)
            continue
        if path.startswith(tuple(opaque)):
            continue
        transient = child._non_persistent_buffers_set
        tensors = {**child._parameters, **{k: v for k, v in child._buffers.items() if k not in transient}}
        expected.update({path + key: value for key, value in tensors.items() if value is not None})
    return expected, tuple(opaque)
