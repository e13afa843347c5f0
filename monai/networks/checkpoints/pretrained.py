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

"""Folders that hold a network: its configuration as a MONAI bundle has it, and its weights."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

from monai.networks.construction import bound_arguments, encoded, target_of, without_form
from monai.networks.state_dict.sharded import is_sharded

from .load import load_checkpoint
from .network_def import NetworkBuilder, fetching
from .read import WEIGHTS, inside_of_wrappers, read_checkpoint
from .rebuilt import differences, has_values_beside, hidden_modules, misfits, silent_buffers
from .saved_folder import (
    ATTENTION,
    LAYOUT,
    NETWORK,
    SAVED,
    check_folder,
    check_weights,
    find_folder,
    read_config,
    write_folder,
)
from .untrusted import CheckpointRefused, listed, shown
from .write import as_scale_factor

__all__ = ["from_pretrained", "save_pretrained"]

FOR_ALL = {"torch", *sys.builtin_module_names, *sys.stdlib_module_names}
"""Packages that nobody should have to allow for the sake of one function: they run anything."""


def save_pretrained(
    net: nn.Module,
    folder: str | os.PathLike,
    *,
    config: Mapping[str, Any] | None = None,
    scale_factor: float | torch.Tensor | None = None,
    overwrite: bool = False,
) -> Path:
    """
    Save a network so that :func:`from_pretrained` gives it back bit for bit, where there is nothing but the folder.

    The folder holds ``model.safetensors`` and ``config.json``, which is a MONAI bundle's configuration: ``network_def``
    has the class and what it was built from, which the networks of MONAI and their subclasses remember. Before anything
    is written, the network is built from it once more, and compared: where it was changed since its construction, it is
    refused. Whether it trains, which parameters are frozen, and hooks are not saved.

    Args:
        net: the network; DataParallel, DistributedDataParallel and torch.compile around it are looked through.
        folder: a folder, which is made if it does not exist. Other files in it stay.
        config: the class and its arguments, as ``network_def`` of a bundle has them, if the network does not know them,
            or was changed; ``_target_`` may be left out. Its modules have to be those of the network, their settings
            are taken on trust.
        scale_factor: the latent scale factor that belongs to a diffusion network, a number or a tensor with one
            element, see :attr:`monai.networks.Checkpoint.scale_factor`.
        overwrite: whether the two files may exist.

    Returns:
        the folder

    Raises:
        ValueError: if the network is not what its configuration builds, an argument has no form in a bundle, or the
            scale factor is not finite and positive.
        TypeError: if the scale factor is no number.
        OSError: if the files exist and ``overwrite`` is not set, or cannot be written; nothing is then kept.

    Example::

        save_pretrained(UNETR(in_channels=1, out_channels=14, img_size=(96, 96, 96)), "unetr")
        net = from_pretrained("unetr")
    """
    net, folder, scale_factor = inside_of_wrappers(net), Path(folder), as_scale_factor(scale_factor)
    _refuse_without_values(net)
    check_folder(folder, overwrite)
    network_def, defaults = _described(net) if config is None else (_given(net, config), {})
    buffers = _check(net, network_def, defaults, trusted=config is not None)
    content: dict[str, Any] = {
        NETWORK: network_def,
        ATTENTION: _attention(net),
        SAVED: {"layout": LAYOUT, "versions": _versions(), "defaults": defaults, "buffers": buffers},
    }
    write_folder(folder, content, net.state_dict(), scale_factor, overwrite)
    return folder


def from_pretrained(
    folder: str | os.PathLike,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    allow: Sequence[str] = (),
    **download: Any,
) -> nn.Module:
    """
    Build the network that :func:`save_pretrained` saved. No code of the folder runs, and expressions are refused.

    Args:
        folder: the folder, or a repository of the Hugging Face Hub, as ``"organization/name"``, which
            ``huggingface_hub`` then downloads.
        device: where the network is put.
        dtype: type of its floating-point values; None keeps that of each.
        allow: packages beside MONAI whose classes may be built, as ``("mypackage",)``; they are imported.
        download: ``revision``, ``token``, ``cache_dir``, ``local_files_only`` and others of
            ``huggingface_hub.snapshot_download``, for a repository.

    Returns:
        the network in evaluation mode, whatever it was in: ``train()`` it for fine-tuning

    Raises:
        FileNotFoundError: if there is no such folder, or a file is missing in it.
        CheckpointRefused: if the files do not belong to one another, are damaged or of a newer layout, or describe what
            is not built without running code.
        RuntimeError: if the class builds another network today.

    Example::

        net = from_pretrained("unetr", device="cuda")
    """
    folder = find_folder(folder, download)
    content = read_config(folder)
    saved = content[SAVED]
    check_weights(folder / WEIGHTS, saved["weights"])
    with _alike():
        net = NetworkBuilder(allow).build(content[NETWORK], saved["defaults"])
    now = _attention(net)
    if now != content[ATTENTION]:
        row = next((row for row in content[ATTENTION] if row not in now), content[ATTENTION])
        raise CheckpointRefused(
            f"{folder}: {type(net).__name__} is built with other attention than was saved, see {shown(row, 200)}. "
            f"It was saved by {shown(saved['versions'], 200)}: load it there."
        )
    _cast(net, {key: value.dtype for key, value in read_checkpoint(folder / WEIGHTS, net).state_dict.items()})
    _cast(net, {key: getattr(torch, str(name), None) for key, name in saved["buffers"].items()})
    load_checkpoint(net, folder / WEIGHTS)
    return net.to(device=device, dtype=dtype).eval()


def _described(net: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Class and arguments of a network, as it remembers them, and the plain ones of its defaults."""
    try:
        target = target_of(type(net))
        passed, defaults = bound_arguments(net)
    except ValueError as error:
        raise ValueError(
            f"{error}: pass config={{...}}, the arguments as network_def of a bundle has them. To have them recorded, "
            "build the network from a class of monai.networks.nets, or one with the decorator "
            "monai.networks.construction.record_construction."
        ) from None
    without = list(without_form(passed))
    if without:
        shown = listed([f"{place} is {what}" for place, what in without])
        raise ValueError(
            f"{type(net).__name__} was built from what a bundle has no form for: {shown}. Pass config={{...}}, with "
            "what builds the same by a name or by a class (_target_)."
        )
    return {"_target_": target, **_without_fetching(passed, defaults)}, _plain(_without_fetching(defaults, passed))


def _given(net: nn.Module, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that a caller gives, whose texts are a bundle's, and whose other values are Python's."""
    given = {name: _in_bundle(value) for name, value in config.items()}
    without = list(without_form(given))
    if without:
        raise ValueError(f"config holds what a bundle has no form for: {without[0][0]} is {without[0][1]}.")
    target = given.pop("_target_", None) or target_of(type(net))
    return {"_target_": target, **given}


def _in_bundle(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if type(value) is list:
        return [_in_bundle(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _in_bundle(item) for name, item in value.items()}
    return encoded(value)


def _without_fetching(arguments: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """Arguments without weights from elsewhere: those in the folder take their place."""
    names = {**others, **arguments}
    kept = {name: value for name, value in arguments.items() if not (fetching(name, names) and value)}
    if names.get("pretrained"):
        kept["pretrained"] = False
    return kept


def _plain(defaults: dict[str, Any]) -> dict[str, Any]:
    """Defaults that are no classes: a configuration describes one network."""
    return {name: value for name, value in defaults.items() if "_target_" not in json.dumps(value)}


def _refuse_without_values(net: nn.Module) -> None:
    if isinstance(net, torch.jit.ScriptModule):
        raise ValueError("a scripted network is saved by torch.jit.save; or pass the network that was scripted.")
    if is_sharded(net):
        raise ValueError(
            "the network's parameters are spread over processes: gather them, and load them into a whole network."
        )
    empty = [key for key, value in net.state_dict().items() if not torch.is_tensor(value) or value.is_meta]
    if empty:
        raise ValueError(
            f"{listed(empty)}: no values of a tensor, which could be saved. Load or initialize them first."
        )


def _check(net: nn.Module, network_def: dict, defaults: dict, trusted: bool) -> dict[str, str]:
    """
    Refuse a network that its configuration does not build.

    Returns:
        types of the buffers that are not saved, by key, where they are others than are built
    """
    packages = {target.partition(".")[0] for target in _targets(network_def)} - FOR_ALL
    builder = NetworkBuilder(tuple(packages))
    with _remedy(net, "The arguments do not build a network"):
        built = _rebuilt(builder, network_def, defaults, "cpu" if has_values_beside(net) else "meta")
    problems = list(misfits(net, built))
    if type(built) is not type(net):
        problems.insert(0, f"its class is {type(net).__name__}, built is {type(built).__name__}")
    problems += [f"weights inside of {name} are not in its state dict" for name in hidden_modules(net)]
    if not problems and not trusted:
        problems = list(differences(net, built))
    if problems:
        raise ValueError(
            f"{type(net).__name__} is not what its configuration builds, so the folder would give another network: "
            f"{listed(problems, 4)}. Build it that way from the start (a subclass that does so in its __init__ is "
            "one), or pass config={...}, the arguments that build it."
        )
    types = {key: value.dtype for key, value in silent_buffers(built).items()}
    return {
        key: str(value.dtype).removeprefix("torch.")
        for key, value in silent_buffers(net).items()
        if value.dtype != types.get(key)
    }


def _rebuilt(builder: NetworkBuilder, network_def: dict, defaults: dict, device: str) -> nn.Module:
    try:
        with _alike(), torch.device(device):
            return builder.build(network_def, defaults)
    except (CheckpointRefused, NotImplementedError):
        if device == "cpu":
            raise
        # some constructors compute with their weights, which meta tensors do not have
        return _rebuilt(builder, network_def, defaults, "cpu")


@contextmanager
def _alike() -> Iterator[None]:
    """Build a network the same way whatever the process has set, and leave its random numbers as they are."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng(devices=[]):
            # what a constructor draws is compared when it is saved, and so has to be the same when it comes back
            torch.default_generator.manual_seed(0)
            yield
    finally:
        torch.set_default_dtype(dtype)


@contextmanager
def _remedy(net: nn.Module, problem: str) -> Iterator[None]:
    try:
        yield
    except CheckpointRefused as error:
        raise ValueError(f"{problem} like this {type(net).__name__}: {error} Pass config={{...}} that does.") from error


def _targets(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict):
        if isinstance(tree.get("_target_"), str):
            yield tree["_target_"]
        yield from (target for value in tree.values() for target in _targets(value))
    elif isinstance(tree, list):
        yield from (target for value in tree for target in _targets(value))


def _attention(net: nn.Module) -> list[dict[str, Any]]:
    from monai.networks.blocks.attention.config import attention_config  # blocks import monai.networks, and so this

    rows: list[dict[str, Any]] = json.loads(json.dumps(attention_config(net)))
    return rows


def _versions() -> dict[str, str]:
    import monai  # which imports this package

    return {"monai": monai.__version__, "torch": str(torch.__version__)}


def _cast(net: nn.Module, dtypes: Mapping[str, Any]) -> None:
    """Give tensors of a network other types; their values are those of the network, in the new type."""
    tensors = {**dict(net.named_parameters(remove_duplicate=False)), **dict(net.named_buffers(remove_duplicate=False))}
    for key, dtype in dtypes.items():
        tensor = tensors.get(key)
        if not isinstance(dtype, torch.dtype) or tensor is None or tensor.dtype == dtype:
            continue
        if isinstance(tensor, nn.Parameter):
            tensor.requires_grad_(tensor.requires_grad and (dtype.is_floating_point or dtype.is_complex))
            tensor.data = tensor.data.to(dtype)
        else:
            owner, _, name = key.rpartition(".")
            setattr(net.get_submodule(owner), name, tensor.to(dtype))
