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

"""What is looked at around the load of a file: types, numbers, and what the folder of the file says of its network."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

from monai.networks.state_dict.refusals import PLAIN, refuse
from monai.networks.weights.early_merging import unsure_mergings
from monai.networks.weights.report import LoadReport

from .read import ATTENTION, CONFIG, NETWORK, SAVED, WEIGHTS
from .untrusted import MAX_HEADER, listed

__all__ = [
    "compare_with_folder",
    "has_nan_or_inf",
    "refuse_other_kinds",
    "saved_config",
    "warn_not_finite",
    "warn_of_early_merging",
]

BUILT = ("kind", "heads", "head_width", "causal", "rel_pos")  # what of attention_config the outputs depend on


def refuse_other_kinds(net: nn.Module, own: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """
    Args:
        net: the network.
        own: its state dict with ``keep_vars=True``.
        tensors: what is loaded into it, by its keys.

    Raises:
        RuntimeError: if a parameter would be made of numbers of another kind: floating-point ones of integers, which
            are a quantized weight without its scale, or real ones of complex ones.
    """
    problems = []
    for key, value in own.items():
        have = tensors.get(key)
        if not isinstance(value, nn.Parameter) or not isinstance(have, torch.Tensor) or have.dtype == value.dtype:
            continue
        if value.is_floating_point() and not have.is_floating_point():
            problems.append(f"{key}: the file has {have.dtype}, which does not become {value.dtype}: convert it first.")
    if problems:
        refuse(net, problems)


def warn_not_finite(path: Path, own: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """
    Name the weights of a file that are NaN or infinite, and those that became infinite in the network.

    Args:
        path: the file.
        own: the state dict of the network, which was loaded.
        tensors: those of the file.
    """
    found = _not_finite(tensors)
    if found:
        warnings.warn(
            f"{path} holds weights that are NaN or infinite; they were loaded as they are: {listed(found)}.",
            stacklevel=3,
        )
        return
    # a shard is left out: to look at it, its processes would have to meet
    plain = {key: value for key, value in own.items() if type(value) in PLAIN and not value.is_meta}
    large = _not_finite({key: value for key, value in plain.items() if value.dtype == torch.half})
    if large and any(value.dtype != torch.half for value in tensors.values() if torch.is_tensor(value)):
        warnings.warn(
            f"{path} holds weights beyond the numbers of torch.float16, which are infinite now: {listed(large)}. Load "
            "them into a network of float32 or bfloat16.",
            stacklevel=3,
        )


def _not_finite(tensors: Mapping[str, object]) -> list[str]:
    """Keys of the tensors that hold a NaN or an infinite value, told without memory."""
    return [key for key, value in tensors.items() if torch.is_tensor(value) and has_nan_or_inf(value)]


def has_nan_or_inf(value: torch.Tensor) -> bool:
    """Whether a tensor holds a NaN or an infinite value."""
    if value.is_complex():
        value = torch.view_as_real(value.resolve_conj())
    if not value.is_floating_point() or not value.numel() or value.dtype.itemsize < 2:
        return False
    return not bool(torch.stack(torch.aminmax(value)).isfinite().all())  # the extremes show a NaN, too


def saved_config(path: Path) -> dict[str, Any] | None:
    """The configuration beside a file of ``save_pretrained``; None for any other file."""
    if not path.is_dir() and path.name != WEIGHTS:
        return None
    place = (path if path.is_dir() else path.parent) / CONFIG
    try:
        if place.stat().st_size > MAX_HEADER:
            return None
        content = json.loads(place.read_bytes().decode())
    except (OSError, ValueError, RecursionError):
        return None
    parts = {SAVED: dict, NETWORK: dict, ATTENTION: list}
    is_one = isinstance(content, dict) and all(isinstance(content.get(name), kind) for name, kind in parts.items())
    return content if is_one else None


def compare_with_folder(net: nn.Module, config: Mapping[str, Any], path: Path) -> None:
    """
    Compare the attention of a network with that of the same network in the file's folder; no weight tells heads.

    Args:
        net: the network.
        config: of :func:`saved_config`.
        path: the file.

    Raises:
        RuntimeError: if it was saved with other heads, another mask or other relative positions.
    """
    from monai.networks.blocks.attention.config import attention_config  # blocks import monai.networks, and so this

    if str(config[NETWORK].get("_target_")).rpartition(".")[2] != type(net).__name__:
        return
    now = {row["path"]: row for row in attention_config(net)}
    problems = []
    for row in config[ATTENTION]:
        mine = now.get(str(row.get("path"))) if isinstance(row, dict) else None
        if mine is None:
            continue
        for name in BUILT:
            if name in row and row[name] != mine[name]:
                problems.append(f"{row['path']} was saved with {name}={row[name]!r}, the network has {mine[name]!r}.")
    if problems:
        remedy = "Build it so, or use from_pretrained; a weight file outside of its folder is taken as it is."
        refuse(net, [*problems, f"{path} lies beside the {CONFIG} that says so. {remedy}"])


def warn_of_early_merging(net: nn.Module, path: Path, report: LoadReport) -> None:
    """Say that weights of a Swin transformer may be older than its patch merging, which nothing in them tells."""
    loaded: Collection[str] = {line.key for line in report.parameters if line.tensors}
    if any(f"{name}.reduction.weight" in loaded for name in unsure_mergings(net)):
        warnings.warn(
            f"{path}: if MONAI 1.4 or older wrote it, {type(net).__name__} now gives other outputs than it did there, "
            "for MONAI 1.5 merges other patches in 3-D under the same name (downsample='merging'), and nothing in a "
            "file tells which. Then build the network with downsample=EarlyPatchMerging (of monai.networks.weights).",
            stacklevel=3,
        )
