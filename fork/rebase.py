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

from fork.files import digest, record_digests
from fork.overlay import check, release_problems
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
        diffs: for each replaced file what changed from the pinned release to the other one; empty where nothing did,
            None where the file has vanished.
        existing: files that the fork adds and the other release has, too.
        problems: why the fork cannot be laid over the other release as it is.
    """

    pin: Pin
    version: str
    wheel: str
    sha256: str
    diffs: dict[str, str | None]
    existing: list[str]
    problems: list[str]

    def report(self) -> Iterator[str]:
        """Lines for a reader: a summary, the diffs, and the pin of the other release."""
        yield f"MONAI {self.pin.version} (the pin) -> MONAI {self.version}"
        for path, diff in self.diffs.items():
            yield f"  {_change(diff):<13}{path}"
        for path in self.pin.adds:
            yield f"  {'EXISTS, TOO' if path in self.existing else 'new':<13}{path}"
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
        diffs = {path: _diff(path, here, there) for path in pin.replaces}
        files = record_digests(there)
        return Move(
            pin=pin,
            version=version,
            wheel=wheel.name,
            sha256=digest(wheel.read_bytes()),
            diffs=diffs,
            existing=[path for path in pin.adds if path in files],
            problems=release_problems(pin, files, version),
        )


def _diff(path: str, here: Path, there: Path) -> str | None:
    if not (there / path).is_file():
        return None
    return git_diff({path: (here / path).read_bytes()}, {path: (there / path).read_bytes()}).decode(errors="replace")


def _change(diff: str | None) -> str:
    if diff is None:
        return "VANISHED"
    lines = [line for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    added = sum(line.startswith("+") for line in lines)
    return f"+{added} -{len(lines) - added}" if lines else "unchanged"
