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

"""From a checkpoint file or folder of any format to the state dict of a network, without running code of it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

from monai.networks.state_dict.torch_private import inside_of_compiled
from monai.networks.weights.report import LoadReport

from .choose import Network, as_number, checked, choose_network, find_networks
from .distributed import METADATA, read_folder
from .file_values import fetched
from .pickles import RESAVE
from .safetensors import facts_in, is_safetensors, read_safetensors
from .torch_files import LEGACY_MAGIC, ZIP_MAGIC, read_legacy, read_zip
from .untrusted import CheckpointRefused, listed, printable
from .unwrap import with_versions

__all__ = [
    "Checkpoint",
    "Contents",
    "inside_of_wrappers",
    "networks_in",
    "open_checkpoint",
    "read_checkpoint",
    "read_networks",
]

WEIGHTS, CONFIG = "model.safetensors", "config.json"  # in a folder that holds a network
NETWORK, ATTENTION, SAVED = "network_def", "attention_config", "saved"  # what the configuration there holds
HEAD = 4096  # bytes by which a format is told
TAR = range(257, 262)  # where a tar archive says that it is one
# What other files begin with, and what to do about them.
OTHERS = (
    (b"version https://git-lfs", "a pointer of git-lfs, not the file itself: run 'git lfs pull' where it came from"),
    (b"\x1f\x8b", "a gzip archive: unpack it, and pass what is inside"),
    (b"BZh", "a bzip2 archive: unpack it, and pass what is inside"),
    (b"\xfd7zXZ", "an xz archive: unpack it, and pass what is inside"),
    (b"PK", "a zip archive that is empty or in several parts: fetch it again"),
    (b"\x89HDF", "an HDF5 file, as Keras writes it: convert it to a state dict of torch"),
    (b"\x93NUMPY", "an array of numpy: convert it to a state dict of torch"),
    (b"\x80", f"a pickle that torch.save did not write. {RESAVE}"),
)


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
        report: what became of every parameter and of every tensor, if it was loaded into a network.
    """

    path: Path
    state_dict: dict[str, torch.Tensor]
    wrappers: tuple[str, ...]
    scale_factor: float | None
    container: str
    report: LoadReport | None = None


def read_checkpoint(
    path: str | os.PathLike, net: nn.Module | None = None, name: str | None = None, weights: str | None = None
) -> Checkpoint:
    """
    Read the state dict of one network from a checkpoint file, without running code of the file.

    Takes what ``torch.save`` writes (state dicts, alone or inside the dictionaries of DataParallel, torch.compile,
    Lightning, Ignite and MAISI), safetensors files, and folders of torch.distributed.checkpoint and of
    :func:`monai.networks.save_pretrained`. Optimizer and trainer states are left out. Keys keep the names that the
    writer gave them: :func:`load_checkpoint` translates old ones.

    Args:
        path: the file or folder; its format is told by its content.
        net: the network that the state dict is for. It decides which of several networks is read and which prefixes are
            a wrapper's. Without it, prefixes are removed where all keys share them and a wrapper is known to write
            them; a network whose only child is called ``model`` needs it.
        name: which network to read where the file holds several, see :func:`networks_in`; or a submodule's name.
        weights: "ema" for a moving average of the weights, "raw" for those of the last step, where a file holds both.

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
    bare = inside_of_wrappers(net) if net is not None else None
    return _checkpoint(path, contents, choose_network(contents.tree, str(path), bare, name, contents.fetch, weights))


def read_networks(path: str | os.PathLike, values: bool = True) -> dict[str, Checkpoint]:
    """
    Read all networks of a checkpoint file, by the names that :func:`networks_in` gives.

    Args:
        path: the file or folder.
        values: whether to read values that cannot be mapped, those of a folder. Without, such tensors are
            :class:`monai.networks.checkpoints.file_values.Unread`.

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


def inside_of_wrappers(net: nn.Module) -> nn.Module:
    """
    The network inside of DataParallel, DistributedDataParallel, torch.compile, and any module whose class has a method
    ``network_inside``, which returns the one that holds the weights.
    """
    while True:
        inner = getattr(type(net), "network_inside", None)
        if inner is not None:
            net = inner(net)
            continue
        if isinstance(net, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            net = net.module
            continue
        inside = inside_of_compiled(net)
        if inside is None:
            return net
        net = inside


@dataclass(frozen=True)
class Contents:
    """
    What a checkpoint file holds.

    Args:
        container: "torch zip", "torch legacy", "safetensors" or "distributed folder".
        tree: what was saved: dictionaries in one another, with tensors.
        metadata: text by name, of a safetensors file.
    """

    container: str
    tree: Any
    metadata: dict[str, str] = field(default_factory=dict)

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        """The values of a tensor in ``tree``, which has none yet if it comes from a folder."""
        return fetched(tensor)


def open_checkpoint(path: Path) -> Contents:
    """
    Open a checkpoint, whatever it is called.

    Raises:
        FileNotFoundError: if there is no such path.
        CheckpointRefused: if it is damaged, no checkpoint, or has code in it.
        OSError: if the system does not let it be read.
    """
    if not path.exists():
        link = f" is a link to {printable(str(path.readlink()))}, which" if path.is_symlink() else ""
        raise FileNotFoundError(
            f"{path}{link} does not exist: pass a checkpoint file, or a torch.distributed.checkpoint folder."
        )
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise CheckpointRefused(f"{path} is neither a file nor a folder: copy what it delivers to a file.")
    with path.open("rb") as file:
        head = file.read(HEAD)
    if is_safetensors(head):  # first: the length that it begins with may look like anything below
        tensors, metadata = read_safetensors(path)
        return Contents("safetensors", with_versions(tensors, facts_in(metadata)), metadata)
    if head.startswith(ZIP_MAGIC):
        return Contents("torch zip", read_zip(path))
    if LEGACY_MAGIC[2:] in head[: 2 * len(LEGACY_MAGIC)]:  # behind the number of a protocol
        return Contents("torch legacy", read_legacy(path))
    raise CheckpointRefused(f"{path} is {_description(head, path.stat().st_size).removesuffix('.')}.")


def _open_folder(path: Path) -> Contents:
    if (path / METADATA).is_file():
        return Contents("distributed folder", read_folder(path))
    if (path / WEIGHTS).is_file():  # as save_pretrained writes it
        return open_checkpoint(path / WEIGHTS)
    inside = listed([printable(name) for name in sorted(os.listdir(path))], 5) or "nothing"
    raise CheckpointRefused(
        f"{path} is a folder without '{METADATA}', so no checkpoint of torch.distributed.checkpoint; it holds "
        f"{inside}: pass the file inside that is meant."
    )


def _description(head: bytes, size: int) -> str:
    """What a file is instead of a checkpoint, and the remedy."""
    if not head:
        return "empty (0 bytes): its download or copy failed, fetch it again"
    if not head.strip(b"\0"):
        return f"without content: its {size:,} bytes begin with zeros. Its download or copy failed, fetch it again"
    for magic, what in OTHERS:
        if head.startswith(magic):
            return what
    if head[TAR.start : TAR.stop] == b"ustar":
        return "a tar archive: unpack it, and pass what is inside"
    text = _as_text(head)
    if text is not None:
        kind = (
            "a web page, saved by a failed download" if text.lstrip().lower().startswith(("<!doc", "<html")) else "text"
        )
        return f"{kind}, beginning with {' '.join(text.split())[:60]!r}: fetch the checkpoint itself"
    return f"no checkpoint known here ({size:,} bytes, beginning with {head[:8].hex(' ')}). {RESAVE}"


def _as_text(head: bytes) -> str | None:
    try:
        text = head.decode(errors="strict" if len(head) < HEAD else "ignore")
    except UnicodeDecodeError:
        return None
    return text if all(character.isprintable() or character.isspace() for character in text) else None
