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

"""From a checkpoint file to a loaded network, with an account of every parameter and tensor."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch.nn.parameter import is_lazy

from monai.networks.state_dict.adapting import adapted_state_dict
from monai.networks.state_dict.hooks import CheckpointFacts, OldCheckpoints
from monai.networks.state_dict.sharded import is_sharded, load_into_sharded
from monai.networks.state_dict.torch_private import all_metadata
from monai.networks.weights.journal import Journal
from monai.networks.weights.load import WeightOptions, account_of_partial, adapt_weights, tied_keys, weight_options
from monai.networks.weights.report import UNJUDGED, LoadReport, account

from .load_checks import compare_with_folder, refuse_other_kinds, saved_config, warn_not_finite, warn_of_early_merging
from .read import Checkpoint, inside_of_wrappers, read_checkpoint
from .untrusted import listed
from .unwrap import with_versions

__all__ = ["SOURCE_CONFIG", "adapted_checkpoint", "config_beside", "load_checkpoint"]

SOURCE_CONFIG = "config.json"  # as transformers and diffusers save it beside their weights


def load_checkpoint(
    net: nn.Module,
    path: str | os.PathLike,
    name: str | None = None,
    facts: CheckpointFacts | None = None,
    strict: bool = True,
    *,
    weights: str | None = None,
    into: str = "",
    source: str | None = None,
    source_config: Mapping[str, Any] | str | os.PathLike | None = None,
    allow: Sequence[str] = (),
    ignore: Sequence[str] = (),
    resample: str | Sequence[str] = (),
    grid: Sequence[int] | None = None,
    spacings: tuple[Sequence[float], Sequence[float]] | None = None,
    in_channels: str | Sequence[int] | None = None,
    out_channels: Sequence[int | None] | None = None,
    inflate: str | None = None,
) -> Checkpoint:
    """
    Read a checkpoint file of any age and load it into a network, which then gives the outputs of the one that wrote it.

    Nothing is guessed: every parameter of the network is loaded, or named by ``allow``; every tensor of the file is
    used, or named by ``ignore``, or of no use to any output. The ``report`` of what comes back has a line for each.
    Weights that are NaN or infinite are loaded as they are, with a warning that names them; those of a SwinUNETR in
    3-D, which gave other outputs before MONAI 1.5, with a warning that says so.

    Args:
        net: the network; DataParallel, DistributedDataParallel and torch.compile around it are looked through. Where
            its parameters are DTensors, every process calls this with the same file, and keeps its part.
        path: the file or folder, see :func:`read_checkpoint`.
        name: which network to load where the file holds several, see :func:`networks_in`.
        facts: what the keys cannot tell.
        strict: whether every key has to fit; with False, torch's meaning of it, and none of the arguments below.
        weights: "ema" for the moving average that a file holds beside the weights of the last step, "raw" for those.
        into: name of the submodule that the file is for, as "vit" of UNETR; the rest of the network stays as it is.
        source: who wrote the file, where its keys are not MONAI's: one of
            :data:`monai.networks.weights.sources.SOURCES`; None lets the keys tell.
        source_config: the configuration that such a package saves beside its weights, or its path; None takes
            ``config.json`` from the folder of the file, where there is one.
        allow: patterns of the parameters that may stay as they are, as ``("classification_head.*",)``.
        ignore: patterns of the tensors of the file that are not wanted.
        resample: "position" for position embeddings of another grid, "patch" for patches of another size, or both.
        grid: the grid of the file's position embeddings; None where their number tells it.
        spacings: how far apart tokens are in the file's images and in the network's, along each axis.
        in_channels: how the file's input channels become the network's: "mean", "repeat", or the file's number of each.
        out_channels: the file's number of each output channel of the network, as of the classes of its head; None for
            one that stays as it is.
        inflate: how a 2-D file becomes a 3-D network: "average" or "center".

    Returns:
        what was read, with the account of it.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_checkpoint` does; or if arguments do not go together.
        RuntimeError: if the checkpoint does not fit; the network is left as it is.

    Example::

        net = DiffusionModelUNet(spatial_dims=2, in_channels=1, out_channels=1, ...)
        load_checkpoint(net, "generative_models_0.2.3.pt")

        net = ViT(in_channels=1, img_size=96, patch_size=16, classification=True, norm_eps=1e-6, qkv_bias=True)
        options = {"inflate": "average", "resample": "position", "in_channels": "mean"}
        loaded = load_checkpoint(net, "dino_vitbase16.pth", allow=("classification_head.*",), **options)
        print(loaded.report)
    """
    options = weight_options(
        source=source,
        allow=allow,
        ignore=ignore,
        resample=resample,
        grid=grid,
        spacings=spacings,
        in_channels=in_channels,
        out_channels=out_channels,
        inflate=inflate,
    )
    if not strict and facts is not None:
        raise ValueError(f"{facts} need strict=True: a partial load leaves out what they are about.")
    if not strict and options != WeightOptions():
        raise ValueError(
            "strict=False is torch's partial load, which tells nothing: name what may stay by allow=, and what is not "
            "wanted by ignore=, and leave strict=True."
        )
    whole = inside_of_wrappers(net)
    into, bare = _part_of(whole, into)
    own = bare.state_dict(keep_vars=True)
    _refuse_without_memory(bare, own)
    checkpoint = read_checkpoint(path, bare, name, weights)
    saved = saved_config(checkpoint.path)
    if saved is not None:
        compare_with_folder(bare, saved, checkpoint.path)
    config = partial(config_beside, Path(path), source_config)
    report = _load(bare, own, checkpoint, facts, strict, options, config)
    warn_not_finite(checkpoint.path, own, checkpoint.state_dict)
    if source is None and saved is None:  # either knows how the network was built
        warn_of_early_merging(bare, checkpoint.path, report)
    if into:
        every = whole.state_dict(keep_vars=True)
        ties = {
            key: other for keys in tied_keys(every) for key in keys for other in keys if other.startswith(f"{into}.")
        }
        report = report.inside(type(whole).__name__, every, into, ties)
    return replace(checkpoint, report=report)


def adapted_checkpoint(
    net: nn.Module,
    path: str | os.PathLike,
    name: str | None = None,
    facts: CheckpointFacts | None = None,
    *,
    weights: str | None = None,
    source_config: Mapping[str, Any] | str | os.PathLike | None = None,
    **options: Any,
) -> tuple[dict[str, Any], Checkpoint]:
    """
    Bring a checkpoint file to the keys and sizes of a network, which is left as it is and may lie on the meta device.

    Args:
        net, path, name, facts, weights, source_config, options: see :func:`load_checkpoint`.

    Returns:
        the tensors by the keys of the network, without those that ``allow`` leaves; and what was read, with its report

    Raises:
        FileNotFoundError, ValueError, RuntimeError: as :func:`load_checkpoint`.
    """
    checkpoint = read_checkpoint(path, net, name, weights)
    config = partial(config_beside, Path(path), source_config)
    adapted, report = adapt_weights(net, checkpoint.state_dict, weight_options(**options), facts, config)
    return adapted, replace(checkpoint, report=report)


def _load(
    net: nn.Module,
    own: Mapping[str, Any],
    checkpoint: Checkpoint,
    facts: CheckpointFacts | None,
    strict: bool,
    options: WeightOptions,
    config: Callable[[], Mapping[str, Any]],
) -> LoadReport:
    """Load what was read, and give the account of it."""
    state_dict = checkpoint.state_dict
    if not strict:
        if is_sharded(net):
            load_into_sharded(net, state_dict, strict)
        else:
            net.load_state_dict(state_dict, strict=False)
        return account_of_partial(net, state_dict)
    if options == WeightOptions() and _fits_as_it_is(own, state_dict) and not tied_keys(own):
        refuse_other_kinds(net, own, state_dict)
        _load_own(net, state_dict, facts)
        return account(type(net).__name__, own, Journal(state_dict))
    adapted, report = adapt_weights(net, state_dict, options, facts, config)
    refuse_other_kinds(net, own, adapted)
    whole = with_versions({**adapted, **{key: own[key] for key in report.left}}, all_metadata(state_dict))
    if is_sharded(net):
        load_into_sharded(net, whole)
    elif UNJUDGED in report.counts:
        _load_or_restore(net, own, whole)
    else:
        net.load_state_dict(whole)  # adapted and judged already
    return report


def _fits_as_it_is(own: Mapping[str, Any], state_dict: Mapping[str, Any]) -> bool:
    """Whether a file has the network's keys and shapes, and no others. torch finds a wrong shape in the middle."""
    if state_dict.keys() != own.keys():
        return False
    pairs = ((value, state_dict[key]) for key, value in own.items() if not is_lazy(value))
    return all(getattr(value, "shape", None) == getattr(have, "shape", None) for value, have in pairs)


def _load_or_restore(net: nn.Module, own: Mapping[str, Any], whole: Mapping[str, Any]) -> None:
    """Load a network with modules that load in a way of their own, and may refuse when others are loaded already."""
    before = {key: value.detach().clone() for key, value in own.items() if isinstance(value, torch.Tensor)}
    try:
        net.load_state_dict(whole)
    except Exception:
        with torch.no_grad():
            for key, value in before.items():
                own[key].copy_(value)
        raise


def _load_own(net: nn.Module, state_dict: Mapping[str, Any], facts: CheckpointFacts | None) -> None:
    """Load a file that has the network's own keys, and no others."""
    if is_sharded(net):
        load_into_sharded(net, state_dict, True, facts)
    elif isinstance(net, OldCheckpoints):
        net.load_old_state_dict(state_dict, facts=facts)
    elif facts is not None:
        net.load_state_dict(adapted_state_dict(net, state_dict, facts))
    else:
        net.load_state_dict(state_dict)


def _part_of(net: nn.Module, into: str) -> tuple[str, nn.Module]:
    """
    The submodule that a file is for, inside of whatever is wrapped around it, and its name.

    Raises:
        ValueError: if there is none of that name.
    """
    if not into:
        return into, net
    try:
        part = net.get_submodule(into)
    except AttributeError:
        names = listed([name for name, _ in net.named_children()])
        raise ValueError(f"into={into!r} is no submodule of {type(net).__name__}: it has {names}.") from None
    bare = inside_of_wrappers(part)
    return next(f"{into}.{name}".rstrip(".") for name, module in part.named_modules() if module is bare), bare


def _refuse_without_memory(net: nn.Module, own: Mapping[str, Any]) -> None:
    """
    Args:
        net: the network.
        own: its state dict.

    Raises:
        RuntimeError: if the network lies on the meta device, where nothing can be loaded.
    """
    empty = [key for key, value in own.items() if getattr(value, "is_meta", False)]
    if empty and not is_sharded(net):
        raise RuntimeError(
            f"{listed(empty)}: on the meta device, where there is no memory for weights. Call "
            "net.to_empty(device='cpu') first; what the file does not hold has no values then."
        )


def config_beside(path: Path, config: Mapping[str, Any] | str | os.PathLike | None) -> Mapping[str, Any]:
    """
    The configuration that another package saved beside its weights; empty where there is none.

    Raises:
        FileNotFoundError: if the file that was named is not there.
        ValueError: if it is not JSON.
    """
    if isinstance(config, Mapping):
        return config
    place = Path(config) if config is not None else path.parent / SOURCE_CONFIG
    if config is None and not place.is_file():
        return {}
    try:
        values = json.loads(place.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{place} should be the JSON that a package saves beside its weights: {error}.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{place} should hold a JSON object, got a {type(values).__name__}.")
    return values
