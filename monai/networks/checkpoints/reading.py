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

"""One function from a checkpoint file to the state dict of a network."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn

from monai.networks.state_dict.adapting import adapted_state_dict
from monai.networks.state_dict.hooks import CheckpointFacts, OldCheckpoints
from monai.networks.state_dict.sharded import is_sharded, load_into_sharded
from monai.networks.state_dict.torch_private import inside_of_compiled

from .files import Contents, open_checkpoint
from .texts import listed
from .wrappers import Network, as_number, checked, choose_network, find_networks

__all__ = ["Checkpoint", "load_checkpoint", "networks_in", "read_checkpoint", "read_networks"]


@dataclass(frozen=True)
class Checkpoint:
    """
    One network's part of a checkpoint file.

    Args:
        path: the file or folder.
        state_dict: the network's tensors by key, without any wrapper's prefix, on the CPU. Where the format allows they
            are memory-mapped: their pages are read when they are used, and writing to them does not change the file.
        wrappers: what was unwrapped, outermost first, e.g. ``("lightning", "state_dict", "model.", "module.")``; a
            prefix ends with a dot, and ``"*._orig_mod."`` stands for a compiled submodule.
        scale_factor: the latent scale factor that the file holds beside the network, as MAISI's do.
        container: "torch zip", "torch legacy", "safetensors" or "distributed folder".
    """

    path: Path
    state_dict: dict[str, torch.Tensor]
    wrappers: tuple[str, ...]
    scale_factor: float | None
    container: str


def read_checkpoint(path: str | os.PathLike, net: nn.Module | None = None, name: str | None = None) -> Checkpoint:
    """
    Read the state dict of one network from a checkpoint file, without running code of the file.

    Takes what ``torch.save`` writes (state dicts, alone or inside the dictionaries of DataParallel, torch.compile,
    Lightning, Ignite and MAISI), safetensors files, and folders of torch.distributed.checkpoint. Optimizer and trainer
    states are left out. Keys keep the names that the writer gave them: :func:`load_checkpoint` translates old ones.

    Args:
        path: the file or folder; its format is told by its content.
        net: the network that the state dict is for. It decides which of several networks is read and which prefixes are
            a wrapper's. Without it, prefixes are removed where all keys share them and a wrapper is known to write
            them; a network whose only child is called ``model`` needs it.
        name: which network to read where the file holds several, see :func:`networks_in`; or a submodule's name.

    Raises:
        FileNotFoundError: if there is no such path.
        ValueError: if the file is damaged, no checkpoint, or has code in it; if it holds no network, or several and
            neither ``name`` nor ``net`` decides.

    Example::

        checkpoint = read_checkpoint("diff_unet_ckpt.pt", name="unet_state_dict")
        checkpoint.scale_factor, checkpoint.wrappers
    """
    path = Path(path)
    contents = open_checkpoint(path)
    bare = _bare(net) if net is not None else None
    return _checkpoint(path, contents, choose_network(contents.tree, str(path), bare, name, contents.fetch))


def load_checkpoint(
    net: nn.Module,
    path: str | os.PathLike,
    name: str | None = None,
    facts: CheckpointFacts | None = None,
    strict: bool = True,
) -> Checkpoint:
    """
    Read a checkpoint file of any age and load it into a network, which then gives the outputs of the one that wrote it.

    Weights that are NaN or infinite are loaded as they are, with a warning that names them.

    Args:
        net: the network; DataParallel, DistributedDataParallel and torch.compile around it are looked through. Where
            its parameters are DTensors, every process calls this with the same file, and keeps its part.
        path: the file or folder, see :func:`read_checkpoint`.
        name: which network to load where the file holds several, see :func:`networks_in`.
        facts: what the keys cannot tell.
        strict: whether every key has to fit; with False, torch's meaning of it.

    Returns:
        what was read.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_checkpoint` does; or if there are ``facts`` for a partial load.
        RuntimeError: if the checkpoint does not fit; the network is left as it is.

    Example::

        net = DiffusionModelUNet(spatial_dims=2, in_channels=1, out_channels=1, ...)
        load_checkpoint(net, "generative_models_0.2.3.pt")
    """
    if facts is not None and not strict:
        raise ValueError(f"{facts} need strict=True: a partial load leaves out what they are about.")
    bare = _bare(net)
    checkpoint = read_checkpoint(path, bare, name)
    if is_sharded(bare):
        load_into_sharded(bare, checkpoint.state_dict, strict, facts)
    elif strict and isinstance(bare, OldCheckpoints):
        bare.load_old_state_dict(checkpoint.state_dict, facts=facts)
    elif facts is not None:
        bare.load_state_dict(adapted_state_dict(bare, checkpoint.state_dict, facts))
    else:
        bare.load_state_dict(checkpoint.state_dict, strict=strict)
    _warn_not_finite(checkpoint)
    return checkpoint


def read_networks(path: str | os.PathLike, values: bool = True) -> dict[str, Checkpoint]:
    """
    Read all networks of a checkpoint file, by the names that :func:`networks_in` gives.

    Args:
        path: the file or folder.
        values: whether to read values that cannot be mapped, those of a folder. Without, such tensors are
            :class:`monai.networks.checkpoints.unread.Unread`.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_checkpoint` does; but several networks are no error, nor is none.
    """
    path = Path(path)
    contents = open_checkpoint(path)
    networks = [checked(network, str(path), contents.fetch, values) for network in find_networks(contents.tree)]
    return {network.name: _checkpoint(path, contents, network) for network in networks}


def networks_in(path: str | os.PathLike) -> list[str]:
    """
    The names of the networks in a checkpoint file, for ``name`` of :func:`read_checkpoint`.

    Raises:
        FileNotFoundError: if there is no such path.
        ValueError: if the file is damaged, no checkpoint, or has code in it.

    Example::

        networks_in("maisi.pt")  # ["unet_state_dict", "autoencoder_state_dict"]
    """
    return [network.name for network in find_networks(open_checkpoint(Path(path)).tree)]


def _checkpoint(path: Path, contents: Contents, network: Network) -> Checkpoint:
    scale_factor = network.scale_factor
    if scale_factor is None and "scale_factor" in contents.metadata:
        scale_factor = as_number(contents.metadata["scale_factor"], str(path))
    return Checkpoint(path, network.state_dict, network.wrappers, scale_factor, contents.container)


def not_finite(tensors: Mapping[str, object]) -> list[str]:
    """Keys of the tensors that hold a NaN or an infinite value, told without memory."""
    return [key for key, value in tensors.items() if torch.is_tensor(value) and has_nan_or_inf(value)]


def has_nan_or_inf(value: torch.Tensor) -> bool:
    """Whether a tensor holds a NaN or an infinite value."""
    if value.is_complex():
        value = torch.view_as_real(value.resolve_conj())
    if not value.is_floating_point() or not value.numel() or value.dtype.itemsize < 2:
        return False
    return not bool(torch.stack(torch.aminmax(value)).isfinite().all())  # the extremes show a NaN, too


def _warn_not_finite(checkpoint: Checkpoint) -> None:
    found = not_finite(checkpoint.state_dict)
    if found:
        warnings.warn(
            f"{checkpoint.path} holds weights that are NaN or infinite; they were loaded as they are: {listed(found)}.",
            stacklevel=3,
        )


def _bare(net: nn.Module) -> nn.Module:
    """The network inside of DataParallel, DistributedDataParallel and torch.compile."""
    while True:
        if isinstance(net, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            net = net.module
            continue
        inside = inside_of_compiled(net)
        if inside is None:
            return net
        net = inside
