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


"""Makes the references, keeps them in ``build/references``, and reads and writes the small files of the tests."""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fork.files import scratch_folder
from fork.packages import PACKAGES, environment
from fork.referee import ROOT, Referee
from tests.parity.references import cases, elders, networks, weights, worker
from tests.parity.references.cases import CASES, WRITERS, Case

__all__ = ["FILES", "WORKER", "forget", "load_file", "references", "save_file", "write"]

CACHE = ROOT / "build" / "references"
FILES = ROOT / "tests" / "testing_data" / "checkpoints"
WORKER = "tests.parity.references.worker:Worker"
COMMAND = "python -m tests.parity.references --make-subset"


def references(writer: str, network: str, cache: Path = CACHE) -> Path:
    """
    The file of what a package writes for its cases of a network, by their names; made on the first call.

    It is made anew once the cases, torch or a package has changed.

    Raises:
        ForkError: if the package cannot be had.
        RefereeError: if it raises.
    """
    folder = cache / _state_of_things()[:16]
    place = folder / f"{writer}-{network}.pt"
    if not place.exists():
        write([case for case in CASES if case.writer == writer and case.network == network], place)
    return place


def forget(cache: Path = CACHE) -> None:
    """Remove the references of earlier cases and packages."""
    for folder in cache.glob("*"):
        if folder.name != _state_of_things()[:16]:
            shutil.rmtree(folder, ignore_errors=True)


def write(chosen: Sequence[Case], place: Path) -> None:
    """
    Let a package write some of its cases into a file; several processes may do so at once.

    Args:
        chosen: cases with one and the same writer.
        place: the file.

    Raises:
        ForkError: if the package cannot be had.
        RefereeError: if it raises.
    """
    with scratch_folder(place) as scratch, Referee(WORKER, environment(*WRITERS[chosen[0].writer])) as package:
        package.ask("write", chosen, scratch / place.name)
        os.replace(scratch / place.name, place)


def save_file(case: Case, reference: Mapping[str, Any], folder: Path = FILES) -> Path:
    """
    Keep a reference in a small file of its own, the same bytes each time.

    Returns:
        the file
    """
    content = {**reference, "case": vars(case), "written by": WRITERS[case.writer], "command": COMMAND}
    raw = io.BytesIO()
    torch.save(content, raw)
    path = folder / f"{case.slug}.pt.xz"
    path.write_bytes(lzma.compress(raw.getvalue(), preset=9 | lzma.PRESET_EXTREME))
    return path


def load_file(path: Path) -> tuple[Case, dict[str, Any]]:
    """Read what :func:`save_file` wrote: the case, and checkpoint, inputs and output."""
    content = torch.load(io.BytesIO(lzma.decompress(path.read_bytes())), weights_only=True)
    return Case(**content["case"]), content


def _state_of_things() -> str:
    """A digest of all that the references depend on."""
    sources = [Path(str(module.__file__)).read_bytes() for module in (cases, elders, networks, weights, worker)]
    return hashlib.sha256(b"".join([*sources, torch.__version__.encode(), repr(PACKAGES).encode()])).hexdigest()
