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

"""The merge: the release with the fork's files laid over it."""

from __future__ import annotations

import os
import runpy
import shutil
from collections.abc import Container, Iterable
from pathlib import Path

from fork.amend import Amendment, amend
from fork.files import digest, package_digests, package_files, put_in_place, record_digests, scratch_folder
from fork.pin import VERSION_FILE, ForkError, Pin, read_pin
from fork.wheel import pristine

__all__ = [
    "amendments",
    "check",
    "contents",
    "differences",
    "is_linked",
    "list_problems",
    "merge",
    "outdated",
    "release_problems",
    "version_source",
]

VERSION_HEAD = "# Written by `python -m fork`: the release's version with the fork's label.\n"


def merge(target: Path | str, link: bool = False, root: Path | str | None = None) -> Path:
    """
    Make ``target`` hold the release with the fork's files laid over it; what is up to date stays untouched.

    Args:
        target: the folder; it may hold an older merge, and nothing else.
        link: whether the fork's files are links, so that an edit here takes effect there. After an edit of an amended
            file the merge has to be made again.
        root: the repository; by default the one that holds this file.

    Returns:
        ``target``, resolved.

    Raises:
        ForkError: if the fork does not fit the release, the release cannot be had, or ``target`` holds something else.
            ``target`` is then as it was.
    """
    pin = read_pin(root)
    target = Path(target).resolve()
    _check_target(target, pin)
    check(pin)
    release = pristine(pin.root)
    check(pin, release)
    if not differences(target, pin, release, link):
        return target
    with scratch_folder(target) as scratch:
        _lay_out(scratch / "new", pin, release, link)
        put_in_place(scratch / "new", target, lambda: not differences(target, pin, release, link))
    return target


def list_problems(pin: Pin) -> list[str]:
    """Where the lists of setup.cfg and the files of ``monai/`` disagree."""
    present = package_files(pin.root)
    unlisted, gone = _minus(present, pin.files), _minus(pin.files, present)
    return [f"'{path}' is in none of the lists of setup.cfg: add it there with the reason" for path in unlisted] + [
        f"setup.cfg lists '{path}', but there is no such file: bring it back, or take it off the list" for path in gone
    ]


def release_problems(pin: Pin, release: Path, version: str) -> list[str]:
    """
    Where the fork and a release disagree: in the lists of setup.cfg, or in the definitions of amended files.

    Args:
        pin: the pin.
        release: an unpacked release, the pinned one or another.
        version: its version.
    """
    files = record_digests(release)
    problems = [
        f"'{path}' should {verb} a file, but MONAI {version} holds no such file"
        for verb, paths in (("replace", pin.replaces), ("amend", pin.amends))
        for path in _minus(paths, files)
    ]
    problems += [f"'{path}' should be new, but MONAI {version} has such a file" for path in pin.adds if path in files]
    return problems + [text for each in amendments(pin, release, version).values() for text in each.problems]


def amendments(pin: Pin, release: Path, version: str) -> dict[str, Amendment]:
    """What becomes of each amended file that a release, the pinned one or another, holds and ``monai/`` has."""
    return {
        path: amend(
            path, (pin.root / path).read_bytes(), (release / path).read_bytes(), pin.new_names[path], f"MONAI {version}"
        )
        for path in pin.amends
        if (release / path).is_file() and (pin.root / path).is_file()
    }


def contents(pin: Pin, release: Path) -> dict[str, bytes]:
    """Every file that the merge takes from the fork; of amended ones, the release's with the fork's definitions."""
    amended = {path: each.text for path, each in amendments(pin, release, pin.version).items()}
    return {path: amended[path] if path in amended else (pin.root / path).read_bytes() for path in pin.files}


def check(pin: Pin, release: Path | None = None) -> None:
    """Raise ForkError unless the fork agrees with setup.cfg and, if it is given, with the pinned release."""
    problems = release_problems(pin, release, pin.version) if release else list_problems(pin)
    if problems:
        more = f" (and {len(problems) - 1} more: see python -m fork status)" if len(problems) > 1 else ""
        raise ForkError(problems[0] + more)


def differences(target: Path, pin: Pin, release: Path, link: bool) -> list[str]:
    """Paths of ``target`` that a merge would change."""
    expected = record_digests(release)
    expected |= {path: digest(data) for path, data in contents(pin, release).items()}
    expected[VERSION_FILE] = digest(version_source(pin, release).encode())
    present = package_digests(target)
    changed = {path for path in expected.keys() | present.keys() if expected.get(path) != present.get(path)}
    links = {path: pin.root / path for path in pin.files.keys() - pin.amends.keys()} if link else {}
    return sorted(changed | {path for path in pin.files if _points_to(target / path) != links.get(path)})


def outdated(folder: Path, pin: Pin, release: Path) -> list[str]:
    """Files of the fork that the package ``monai`` in a folder does not hold as a merge would."""
    ours = contents(pin, release)
    return sorted(path for path in ours if not (folder / path).is_file() or (folder / path).read_bytes() != ours[path])


def is_linked(target: Path) -> bool:
    """Whether ``target`` is a merge whose files of the fork are links."""
    return any((target / path).is_symlink() for path in package_files(target))


def version_source(pin: Pin, release: Path) -> str:
    """The text of ``monai/_version.py``: the release's facts with the fork's version."""
    facts = runpy.run_path(str(release / VERSION_FILE)).get("get_versions", dict)()
    if "version" not in facts:
        raise ForkError(f"MONAI {pin.version} no longer tells its version in {VERSION_FILE}: teach fork/overlay.py")
    entries = "".join(
        f"        {key!r}: {value!r},\n" for key, value in sorted({**facts, "version": pin.full_version}.items())
    )
    return f"{VERSION_HEAD}def get_versions():\n    return {{\n{entries}    }}\n"


def _lay_out(folder: Path, pin: Pin, release: Path, link: bool) -> None:
    ours = contents(pin, release)
    for path in record_digests(release).keys() | ours.keys():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if path not in ours:
            shutil.copyfile(release / path, place)
        elif link and path not in pin.amends:  # what is put together from two files cannot be a link to one
            place.symlink_to(pin.root / path)
        else:
            place.write_bytes(ours[path])
    (folder / VERSION_FILE).write_bytes(version_source(pin, release).encode())


def _check_target(target: Path, pin: Pin) -> None:
    if target.is_relative_to(pin.root / "monai"):
        raise ForkError(f"'{target}' lies in the fork's own files: name a folder elsewhere")
    if target.exists() and not target.is_dir():
        raise ForkError(f"'{target}' is a file: name a folder")
    if target == pin.build / "fork" or not target.exists() or not os.listdir(target):
        return
    version = target / VERSION_FILE
    ours = version.is_file() and version.read_text(encoding="utf-8", errors="replace").startswith(VERSION_HEAD)
    if os.listdir(target) != ["monai"] or not ours:
        raise ForkError(f"'{target}' holds something else than a merged tree: name a new folder, or empty this one")


def _points_to(path: Path) -> Path | None:
    return Path(os.readlink(path)) if path.is_symlink() else None


def _minus(paths: Iterable[str], others: Container[str]) -> list[str]:
    return [path for path in paths if path not in others]
