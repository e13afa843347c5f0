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

"""What it takes to lay the fork over another release."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fork.amend import definition_text, has_name
from fork.files import digest, record_digests
from fork.overlay import amendments, check, release_problems
from fork.patch import git_diff
from fork.pin import VERSION, ForkError, Pin
from fork.wheel import download, pristine, unpack

__all__ = ["Move", "compare"]


@dataclass(frozen=True)
class Move:
    """
    The pinned release against another one, as far as the fork is concerned.

    Args:
        pin: the pin.
        version: the other release.
        wheel: file name of its wheel.
        sha256: hash of its wheel.
        diffs: for each replaced file, and each replaced definition as ``file: name``, what changed from the pinned
            release to the other one; empty where nothing did, None where it has vanished.
        added: for each file that the fork adds, and each definition, whether the other release has it, too.
        problems: why the fork cannot be laid over the other release as it is.
    """

    pin: Pin
    version: str
    wheel: str
    sha256: str
    diffs: dict[str, str | None]
    added: dict[str, bool]
    problems: list[str]

    def report(self) -> Iterator[str]:
        """Lines for a reader: a summary, the diffs, and the pin of the other release."""
        yield f"MONAI {self.pin.version} (the pin) -> MONAI {self.version}"
        for path, diff in self.diffs.items():
            yield f"  {_change(diff):<13}{path}"
        for path, exists in self.added.items():
            yield f"  {'EXISTS, TOO' if exists else 'new':<13}{path}"
        for diff in filter(None, self.diffs.values()):
            yield ""
            yield diff.rstrip("\n")
        yield ""
        yield f"[upstream] of setup.cfg for MONAI {self.version}:"
        yield f"version = {self.version}"
        yield f"wheel = {self.wheel}"
        yield f"sha256 = {self.sha256}"


def compare(pin: Pin, version: str) -> Move:
    """
    Fetch a release, whatever its hash, and compare it with the pinned one.

    Raises:
        ForkError: if one of the releases cannot be had, or the fork does not fit the pinned one.
    """
    if not VERSION.fullmatch(version):
        raise ForkError(f"'{version}' is not a release such as 1.6.1")
    here = pristine(pin.root)
    check(pin, here)
    with tempfile.TemporaryDirectory() as scratch:
        wheel = download(version, Path(scratch))
        there = Path(scratch) / "release"
        unpack(wheel, there)
        files = record_digests(there)
        diffs = {path: _diff(path, *(_read(folder, path) for folder in (here, there))) for path in pin.replaces}
        added = {path: path in files for path in pin.adds}
        for path, amendment in amendments(pin, here, pin.version).items():
            for name in amendment.replaced:
                texts = [_read(folder, path, name) for folder in (here, there)]
                diffs[f"{path}: {name}"] = _diff(f"{path}:{name}", *texts)
            for name in amendment.added:
                data = _read(there, path)
                added[f"{path}: {name}"] = data is not None and has_name(path, data, name)
        return Move(
            pin=pin,
            version=version,
            wheel=wheel.name,
            sha256=digest(wheel.read_bytes()),
            diffs=diffs,
            added=added,
            problems=release_problems(pin, there, version),
        )


def _read(release: Path, path: str, name: str | None = None) -> bytes | None:
    """A file of a release, or a definition in it; None where there is none."""
    data = (release / path).read_bytes() if (release / path).is_file() else None
    return data if data is None or name is None else definition_text(path, data, name)


def _diff(path: str, here: bytes | None, there: bytes | None) -> str | None:
    return None if here is None or there is None else git_diff({path: here}, {path: there}).decode(errors="replace")


def _change(diff: str | None) -> str:
    if diff is None:
        return "VANISHED"
    lines = [line for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    added = sum(line.startswith("+") for line in lines)
    return f"+{added} -{len(lines) - added}" if lines else "unchanged"
