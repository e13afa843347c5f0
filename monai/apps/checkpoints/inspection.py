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


"""What a checkpoint file holds: its networks, who wrote them, and their attention."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from monai.networks.checkpoints.file_values import fetched
from monai.networks.checkpoints.load_checks import has_nan_or_inf
from monai.networks.checkpoints.read import Checkpoint, read_checkpoint, read_networks
from monai.networks.checkpoints.untrusted import refusing
from monai.networks.state_dict.layouts import Layout, recognize_layouts
from monai.networks.state_dict.torch_private import all_metadata
from monai.networks.state_dict.untrained import never_trained, only_one_untrained

from .progress import bar

__all__ = [
    "PROJECTION_STATES",
    "AttentionReport",
    "FileReport",
    "NetworkReport",
    "attention_in",
    "inspect_checkpoint",
]

USED, UNUSED, TRAINED, NEVER_TRAINED, PRESENT, ABSENT = (
    "used",
    "unused",
    "trained",
    "never trained",
    "present",
    "absent",
)
PROJECTION_STATES = {
    USED: "the package that wrote it used it",
    UNUSED: "saved, but the package that wrote it never used it",
    TRAINED: "its weights have left their initial distribution: it was trained",
    NEVER_TRAINED: "its weights never left their initial distribution, those of q, k and v did: so MONAI 1.4 writes it "
    "with include_fc=False, and does not use it",
    PRESENT: "saved; its weights do not tell more",
    ABSENT: "there is none",
}
"""What can be told of an output projection."""
OWN = Layout(
    "own",
    "this package",
    "",
    "this layout; its state dicts say so beside the tensors, and that every output projection in them was used",
    is_old=False,
)
# the name of the linear of q in each layout, and those of k and v
SEPARATE = {"to_q": ("to_k", "to_v"), "query": ("key", "value"), "q.conv": ("k.conv", "v.conv")}
COMBINED = "qkv"
PROJECTIONS = ("out_proj", "to_out.0", "proj_attn", "proj_out.conv", "proj_out", "proj")
SURELY_USED = ("to_out.0", "proj_attn", "proj_out.conv", "proj_out")  # by the layouts that have these names
CROSS = re.compile(r"(?:^|\.)(?:attn2|cross_attn)\.$")
REL_POS = "rel_positional_embedding.rel_pos_arr.0"


@dataclass(frozen=True)
class AttentionReport:
    """
    An attention block, as far as its keys and weights tell.

    Args:
        path: prefix of its keys.
        kind: "self" or "cross".
        width: of all heads together.
        input_width: of the tokens.
        context_width: of the tokens that are attended to.
        heads: their number; None where nothing tells.
        linears: "combined" if one linear computes q, k and v, else "separate".
        projection: of the output, a key of :data:`PROJECTION_STATES`.
        stale: whether it is a cross attention that was never trained, beside a self attention that was: MONAI 1.4 and
            1.5 saved such ones without using them.
    """

    path: str
    kind: str
    width: int
    input_width: int
    context_width: int
    heads: int | None
    linears: str
    projection: str
    stale: bool = False


@dataclass(frozen=True)
class NetworkReport:
    """
    A network of a checkpoint.

    Args:
        name: what tells it from the others.
        wrappers: what is around it, outermost first.
        scale_factor: the latent scale factor beside it.
        layouts: who may have written it, the most telling first.
        keys: number of tensors.
        parameters: number of values in them.
        size: bytes of the values.
        dtypes: number of values by type.
        attention: its attention blocks.
        not_finite: number of NaN and of infinite values by key, where there are any; None if they were not read.
    """

    name: str
    wrappers: tuple[str, ...]
    scale_factor: float | None
    layouts: list[Layout]
    keys: int
    parameters: int
    size: int
    dtypes: dict[str, int]
    attention: list[AttentionReport] = field(default_factory=list)
    not_finite: dict[str, dict[str, int]] | None = None


@dataclass(frozen=True)
class FileReport:
    """
    A checkpoint file.

    Args:
        path: the file or folder.
        container: its format.
        size: bytes on disk.
        names: the networks inside.
        networks: reports of them, or of the one asked for.
    """

    path: str
    container: str
    size: int
    names: list[str]
    networks: list[NetworkReport]


def inspect_checkpoint(
    path: str | Path, name: str | None = None, values: bool = True, progress: bool | None = None
) -> FileReport:
    """
    Tell what a checkpoint file holds, without a network to load it into.

    Args:
        path: the file or folder.
        name: a network of the file; by default all are reported.
        values: whether to read the values, which counts the NaN and tells which projections were never trained.
        progress: see :func:`monai.apps.checkpoints.progress.bar`.

    Raises:
        CheckpointRefused: if the file is damaged, no checkpoint, or not to be trusted.
        FileNotFoundError: if there is no such path.
        ValueError: if it has no network of that name.
    """
    path = Path(path)
    with refusing():
        checkpoints = read_networks(path, values=False)
        names = list(checkpoints)
        if name in checkpoints:
            checkpoints = {name: checkpoints[name]}
        elif name is not None or not names:  # reading a file without any network says what it holds instead
            checkpoints = {name or "": read_checkpoint(path, name=name)}
        tensors = {chosen: _tensors(checkpoint) for chosen, checkpoint in checkpoints.items()}
        size = sum(_bytes(value) for found in tensors.values() for value in found.values())
        with bar(f"reading {path.name}", size if values else 0, progress) as advance:
            networks = []
            for chosen, checkpoint in checkpoints.items():
                not_finite = _not_finite(tensors[chosen], advance) if values else None
                networks.append(_network(chosen, checkpoint, tensors[chosen], not_finite))
    container = next(iter(checkpoints.values())).container
    return FileReport(str(path), container, _size_on_disk(path), names, networks)


def attention_in(
    tensors: Mapping[str, torch.Tensor], values: bool = True, written: Mapping[str, Any] | None = None
) -> list[AttentionReport]:
    """
    Find the attention blocks of a state dict.

    Args:
        tensors: by key, in any layout.
        values: whether their values may be read.
        written: what the modules wrote about themselves, by their path; by default what torch keeps beside ``tensors``.
    """
    written = all_metadata(tensors) if written is None else written
    used = {f"{path}." if path else "" for path, facts in written.items() if _projects(facts)}
    return [_attention(tensors, path, linear, values, path in used) for path, linear in _blocks(tensors)]


def _network(
    name: str, checkpoint: Checkpoint, tensors: dict[str, torch.Tensor], not_finite: dict[str, dict[str, int]] | None
) -> NetworkReport:
    dtypes: dict[str, int] = {}
    for value in tensors.values():
        dtype = str(value.dtype).removeprefix("torch.")
        dtypes[dtype] = dtypes.get(dtype, 0) + value.numel()
    written = all_metadata(checkpoint.state_dict)
    is_own = any("use_proj_attn" in facts for facts in written.values() if isinstance(facts, Mapping))
    return NetworkReport(
        name=name,
        wrappers=checkpoint.wrappers,
        scale_factor=checkpoint.scale_factor,
        layouts=[OWN] if is_own else recognize_layouts(tensors),
        keys=len(tensors),
        parameters=sum(dtypes.values()),
        size=sum(map(_bytes, tensors.values())),
        dtypes=dtypes,
        attention=attention_in(tensors, not_finite is not None, written),
        not_finite=not_finite,
    )


def _projects(facts: Any) -> bool:
    """Whether an attention block of this package wrote that it has an output projection."""
    return isinstance(facts, Mapping) and facts.get("use_proj_attn") is True


def _tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {key: value for key, value in checkpoint.state_dict.items() if torch.is_tensor(value)}


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _size_on_disk(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _not_finite(tensors: Mapping[str, torch.Tensor], advance: Callable[[int], None]) -> dict[str, dict[str, int]]:
    counts = {}
    for key, tensor in tensors.items():
        value = fetched(tensor)
        if has_nan_or_inf(value):
            counts[key] = {"nan": int(value.isnan().sum()), "inf": int(value.isinf().sum())}
        advance(_bytes(value))
    return counts


def _blocks(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, str]]:
    """Prefix of each attention block, with its dot, and the name of the linear that gives q."""
    for key in tensors:
        match = re.fullmatch(r"((?:.*\.)?)(to_q|qkv|query|q\.conv)\.weight", key)
        if match and _is_block(tensors, *match.groups()):
            yield match[1], match[2]


def _is_block(tensors: Mapping[str, torch.Tensor], path: str, linear: str) -> bool:
    """Whether all linears are there that belong to the one of q, or to the combined one."""
    first = tensors.get(f"{path}{linear}.weight")
    if first is None or not _is_linear(first) or (linear == COMBINED and first.shape[0] % 3):
        return False
    return all(_is_linear(tensors.get(f"{path}{name}.weight")) for name in SEPARATE.get(linear, ()))


def _is_linear(value: torch.Tensor | None) -> bool:
    """Whether it may be the weight of a linear, or of a convolution in its place."""
    return value is not None and value.dim() > 1 and value.numel() > 0 and _is_common(value)


def _is_common(value: torch.Tensor) -> bool:
    """Whether it has real numbers of two bytes or more: of others torch does not tell the distribution."""
    return value.is_floating_point() and value.element_size() > 1


def _attention(
    tensors: Mapping[str, torch.Tensor], path: str, linear: str, values: bool, used: bool
) -> AttentionReport:
    weights = _inputs(tensors, path, linear, values)
    width, input_width, context_width = weights[0].shape[0], weights[0].shape[1], weights[1].shape[1]
    head = tensors.get(f"{path}{REL_POS}")
    is_cross = bool(CROSS.search(path)) or context_width != input_width
    return AttentionReport(
        path=path.rstrip("."),
        kind="cross" if is_cross else "self",
        width=width,
        input_width=input_width,
        context_width=context_width,
        heads=width // head.shape[-1] if head is not None and head.dim() and head.shape[-1] else None,
        linears="combined" if linear == COMBINED else "separate",
        projection=USED if used else _projection(tensors, path, linear, weights if values else []),
        stale=values and path.endswith("cross_attn.") and _is_stale(tensors, path, weights),
    )


def _inputs(tensors: Mapping[str, torch.Tensor], path: str, linear: str, values: bool = True) -> list[torch.Tensor]:
    """Weights of q, k and v, which have their values where these are to be read."""
    found = [tensors[f"{path}{name}.weight"] for name in (linear, *SEPARATE.get(linear, ()))]
    if values:
        found = list(map(fetched, found))
    return list(found[0].chunk(3)) if linear == COMBINED else found


def _projection(tensors: Mapping[str, torch.Tensor], path: str, linear: str, inputs: list[torch.Tensor]) -> str:
    """What became of the output projection; ``inputs`` are the weights of q, k and v where they may be read."""
    name = next((name for name in PROJECTIONS if f"{path}{name}.weight" in tensors), None)
    if name is None:
        return ABSENT
    if (linear, name) == ("to_q", "proj_attn"):
        return UNUSED
    if name in SURELY_USED:
        return USED
    if not inputs:
        return PRESENT
    weight, bias = tensors[f"{path}{name}.weight"], tensors.get(f"{path}{name}.bias")
    if not _is_linear(weight):
        return PRESENT
    own = [fetched(weight), *([fetched(bias)] if bias is not None and bias.dim() == 1 and _is_common(bias) else [])]
    if only_one_untrained(own, inputs):
        return NEVER_TRAINED
    return PRESENT if never_trained(*own) else TRAINED


def _is_stale(tensors: Mapping[str, torch.Tensor], path: str, weights: list[torch.Tensor]) -> bool:
    beside = path.removesuffix("cross_attn.") + "attn."
    linear = next((name for name in (COMBINED, "to_q") if _is_block(tensors, beside, name)), None)
    return linear is not None and only_one_untrained(weights, _inputs(tensors, beside, linear))
