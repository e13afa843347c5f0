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


"""Converts a checkpoint of any age to the layout of the fork, or of MONAI 1.6."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

from monai.networks.checkpoints.load import SOURCE_CONFIG, adapted_checkpoint
from monai.networks.checkpoints.untrusted import refusing
from monai.networks.checkpoints.unwrap import with_versions
from monai.networks.checkpoints.write import check_target, write_checkpoint
from monai.networks.state_dict.hooks import CheckpointFacts
from monai.networks.state_dict.layouts import Layout, recognize_layouts
from monai.networks.state_dict.release import release_arguments, release_state_dict
from monai.networks.state_dict.torch_private import all_metadata
from monai.networks.weights.report import LoadReport
from monai.networks.weights.source import translate_back
from monai.networks.weights.sources import SOURCES, source_called
from monai.utils.whole_files import check_place, replacing

from .network_config import NetworkConfig
from .progress import bar

__all__ = ["LAYOUTS", "TARGETS", "Conversion", "convert_checkpoint"]

LAYOUTS = ("fork", "monai-1.6")
TARGETS = (*LAYOUTS, *(source.name for source in SOURCES if source.reversible))
"""What a checkpoint is converted to: MONAI's layouts, and those of other packages that there is a way back to."""


@dataclass(frozen=True)
class Conversion:
    """
    What a conversion did.

    Args:
        source: the file that was read.
        target: the file that was written.
        layout: of the target, one of :data:`TARGETS`.
        network: name of the class.
        written_by: who wrote the source, by its keys.
        wrappers: what was around the network there.
        scale_factor: the latent scale factor beside it, which the target has, too.
        keys_read: number of keys in the source.
        keys_written: number of keys in the target.
        parameters: number of values in the target.
        size: bytes of the target.
        arguments: what a network that takes the target is built from.
        account: what became of every parameter of the network and of every tensor of the source.
        config: the configuration that another package keeps beside its weights, which was written, too.
    """

    source: str
    target: str
    layout: str
    network: str
    written_by: list[Layout]
    wrappers: tuple[str, ...]
    scale_factor: float | None
    keys_read: int
    keys_written: int
    parameters: int
    size: int
    arguments: dict[str, Any]
    account: LoadReport
    config: str | None = None


def convert_checkpoint(
    path: str | Path,
    target: str | Path,
    config: NetworkConfig,
    layout: str = "fork",
    name: str | None = None,
    facts: CheckpointFacts | None = None,
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Conversion:
    """
    Convert a checkpoint file, tensor by tensor; the target is written whole or not at all.

    The network is built without memory for its weights, and those of the file are memory-mapped where its format
    allows, so that the file may be larger than the memory.

    Args:
        path: the checkpoint, see :func:`monai.networks.checkpoints.read.read_checkpoint`.
        target: the file to write, ``.safetensors`` or one of torch, by its suffix.
        config: the network that is to load it.
        layout: "fork", "monai-1.6" for the pristine release, or the name of another package's layout, see
            :data:`monai.networks.weights.sources.SOURCES`.
        name: which network to convert where the file holds several.
        facts: what the keys cannot tell.
        options: further arguments of ``load_checkpoint``, as ``source``; what ``allow`` leaves is not in the target.
        overwrite: whether the target may exist; it may be ``path`` then.
        progress: see :func:`monai.apps.checkpoints.progress.bar`.

    Raises:
        CheckpointRefused: if the checkpoint is damaged or not to be trusted.
        ValueError: if an argument is out of range, or the layout cannot express the network.
        OSError: if the target cannot be written.
        RuntimeError: if the checkpoint does not fit the network.
    """
    if layout not in TARGETS:
        raise ValueError(f"layout should be one of {', '.join(TARGETS)}, got {layout!r}.")
    source = None if layout in LAYOUTS else source_called(layout)
    target = Path(target)
    check_target(target, overwrite)
    beside = target.parent / SOURCE_CONFIG if source is not None and source.written_config is not None else None
    if beside is not None:
        check_place(beside, overwrite)
    net = config.build("meta")
    with refusing():
        adapted, checkpoint = adapted_checkpoint(net, path, name, facts, **(options or {}))
    assert checkpoint.report is not None  # it was adapted to the network
    _refuse_gaps(net, adapted, checkpoint.report.left)
    arguments = config.arguments
    if source is not None:
        adapted = translate_back(net, adapted, source)
    elif layout == "monai-1.6":
        adapted, arguments = release_state_dict(net, adapted), release_arguments(net, arguments)
    else:  # what the network's own state dict tells beside its tensors, so that nothing has to be asked again
        adapted = with_versions(adapted, all_metadata(net.state_dict()))
    name_there = next(
        (part for part in reversed(checkpoint.wrappers) if part.endswith("state_dict")), "unet_state_dict"
    )
    scale_factor = checkpoint.scale_factor if source is None else None  # other packages keep it elsewhere
    tensors = [value for value in adapted.values() if torch.is_tensor(value)]
    total = sum(value.numel() * value.element_size() for value in tensors)
    with bar(f"writing {target.name}", total, progress) as advance:
        write_checkpoint(target, adapted, scale_factor, name_there, overwrite, advance)
    if source is not None and source.written_config is not None and beside is not None:
        with replacing(beside, overwrite) as partial:
            partial.write_text(json.dumps(source.written_config(net), indent=2), encoding="utf-8")
    return Conversion(
        source=str(path),
        target=str(target),
        layout=layout,
        network=config.cls.__name__,
        written_by=recognize_layouts(checkpoint.state_dict),
        wrappers=checkpoint.wrappers,
        scale_factor=scale_factor,
        keys_read=len(checkpoint.state_dict),
        keys_written=len(adapted),
        parameters=sum(value.numel() for value in tensors),
        size=target.stat().st_size,
        arguments=arguments,
        account=checkpoint.report,
        config=None if beside is None else str(beside),
    )


def _refuse_gaps(net: nn.Module, adapted: Mapping[str, torch.Tensor], left: Collection[str]) -> None:
    """
    Raise if a tensor is missing that torch would only find missing when it loads, as the state of a batch norm.

    Raises:
        RuntimeError: if one is.
    """
    keys = [key for key in net.state_dict() if key not in adapted and key not in left]
    missing = [key for key in keys if not key.endswith("num_batches_tracked")]
    if missing:
        raise RuntimeError(
            f"the checkpoint lacks {len(missing)} tensors of {type(net).__name__}: {', '.join(missing)}."
        )
