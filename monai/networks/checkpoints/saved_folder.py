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

"""The folder that a saved network lies in: finding, reading and writing its files."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from monai.utils import optional_import
from monai.utils.whole_files import check_place, replacing

from .read import ATTENTION, CONFIG, NETWORK, SAVED, WEIGHTS
from .untrusted import MAX_HEADER, CheckpointRefused, listed, printable, quoted, shown
from .write import write_checkpoint

__all__ = [
    "ATTENTION",
    "CONFIG",
    "LAYOUT",
    "NETWORK",
    "PARTS",
    "SAVED",
    "check_folder",
    "check_weights",
    "find_folder",
    "read_config",
    "write_folder",
]

PARTS = (NETWORK, ATTENTION, SAVED)  # of the configuration file
LAYOUT = 1
"""Of the configuration file. One with a larger number is refused."""
CHUNK = 1 << 22  # bytes that are read at once
ON_HUB = re.compile(r"[\w.-]+/[\w.-]+")


def check_folder(folder: Path, overwrite: bool) -> None:
    """
    Say beforehand why a network cannot be saved to a folder.

    Raises:
        OSError: as :func:`monai.utils.whole_files.check_place`.
    """
    for name in (WEIGHTS, CONFIG) if folder.is_dir() else ():
        check_place(folder / name, overwrite)


def write_folder(
    folder: Path,
    content: dict[str, Any],
    state_dict: Mapping[str, Any],
    scale_factor: float | None = None,
    overwrite: bool = False,
) -> None:
    """
    Write weights and configuration, each whole or not at all. Where the second one fails, both do not fit one another,
    and are refused.

    Args:
        folder: where, made if it does not exist.
        content: the configuration; size and hash of the weights are put into it.
        state_dict: the weights.
        scale_factor: a latent scale factor beside them.
        overwrite: whether the files may exist.

    Raises:
        OSError: if they cannot be written; a folder that was made is then gone again.
    """
    with _made(folder), replacing(folder / WEIGHTS, overwrite) as weights:
        part = weights.with_name(f"{weights.name}.safetensors")  # the name that tells the format
        try:
            write_checkpoint(part, state_dict, scale_factor)
            os.replace(part, weights)
        finally:
            part.unlink(missing_ok=True)
        content[SAVED]["weights"] = {"bytes": weights.stat().st_size, "sha256": _digest(weights)}
        with replacing(folder / CONFIG, overwrite) as text:
            text.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """A folder, which goes again if the block fails and it was not there before."""
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if new:
            with suppress(OSError):
                folder.rmdir()
        raise


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def find_folder(folder: str | os.PathLike, download: Mapping[str, Any]) -> Path:
    """
    A folder of that name, or what huggingface_hub downloads.

    Args:
        folder: the folder, or ``"organization/name"``.
        download: arguments of ``huggingface_hub.snapshot_download``.

    Raises:
        FileNotFoundError: if there is neither.
        NotADirectoryError: if it is a file.
    """
    path = Path(folder)
    if path.is_dir():
        return path
    if path.exists():
        raise NotADirectoryError(f"'{path}' is a file: pass the folder that save_pretrained wrote.")
    if not isinstance(folder, str) or not ON_HUB.fullmatch(folder):
        raise FileNotFoundError(f"there is no folder '{path}': pass the one that save_pretrained wrote.")
    snapshot, has_hub = optional_import("huggingface_hub", name="snapshot_download")
    if not has_hub:
        raise FileNotFoundError(
            f"there is no folder '{path}'. If it is a repository of the Hugging Face Hub: pip install huggingface_hub."
        )
    return Path(snapshot(repo_id=folder, allow_patterns=[CONFIG, WEIGHTS], **download))


def read_config(folder: Path) -> dict[str, Any]:
    """
    The configuration of a folder, each part of it of the right kind.

    Raises:
        FileNotFoundError: if a file is missing.
        CheckpointRefused: if it is no configuration of a saved network, or of a newer layout.
    """
    path = folder / CONFIG
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            inside = listed([printable(each) for each in sorted(os.listdir(folder))]) or "nothing"
            raise FileNotFoundError(f"'{folder}' has no {name}, so save_pretrained did not finish it: it has {inside}.")
    if path.stat().st_size > MAX_HEADER:
        raise CheckpointRefused(f"{path} has {path.stat().st_size:,} bytes; at most {MAX_HEADER:,} are read.")
    try:
        content = json.loads(path.read_bytes().decode())
    except (ValueError, RecursionError) as error:
        raise CheckpointRefused(f"{path} is no JSON: {error}. Fetch it again.") from None
    saved = content.get(SAVED) if isinstance(content, dict) else None
    if not isinstance(saved, dict) or type(saved.get("layout")) is not int or saved["layout"] < 1:
        raise CheckpointRefused(
            f"{path} was not written by save_pretrained of monai.networks: build the network and use "
            f"load_checkpoint(net, {str(folder / WEIGHTS)!r})."
        )
    if saved["layout"] > LAYOUT:
        raise CheckpointRefused(
            f"{path} has the layout {quoted(saved['layout'])}, saved by {shown(saved.get('versions'), 200)}; up to "
            f"{LAYOUT} is known here: install a newer version."
        )
    saved = {"defaults": {}, "buffers": {}, "versions": {}, **saved}
    kinds = {NETWORK: dict, ATTENTION: list}
    wrong = [name for name, kind in kinds.items() if not isinstance(content.get(name), kind)]
    wrong += [name for name in ("defaults", "buffers", "weights") if not isinstance(saved.get(name), dict)]
    if wrong:
        raise CheckpointRefused(f"{path} lacks {listed(wrong)}: fetch it again.")
    return {**content, SAVED: saved}


def check_weights(path: Path, expected: Mapping[str, Any]) -> None:
    """
    Refuse weights that are not the ones that were saved with the configuration.

    Args:
        path: their file.
        expected: its size and hash.

    Raises:
        CheckpointRefused: if it has others.
    """
    size = path.stat().st_size
    if size != expected.get("bytes"):
        raise CheckpointRefused(
            f"{path} has {size:,} bytes, {quoted(expected.get('bytes'))} were saved: it is incomplete, or of another "
            f"network than {CONFIG}. Fetch both again."
        )
    if _digest(path) != expected.get("sha256"):
        raise CheckpointRefused(
            f"{path} is not the file that was saved with {CONFIG}: it is damaged, or of another network. Fetch both "
            "again; or build the network and use load_checkpoint."
        )
