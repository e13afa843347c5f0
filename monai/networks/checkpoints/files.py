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

"""Opens checkpoint files and folders, told apart by their content, without running code of theirs."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .distributed import METADATA, read_folder
from .pickles import RESAVE
from .prefixes import with_versions
from .refusal import CheckpointRefused
from .safetensors import facts_in, is_safetensors, read_safetensors
from .texts import listed, printable
from .torch_files import LEGACY_MAGIC, ZIP_MAGIC, read_legacy, read_zip
from .unread import fetched

__all__ = ["Contents", "open_checkpoint"]

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
