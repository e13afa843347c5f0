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

"""The fork as a patch against the release, for an upstream pull request."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from fork.git import Git
from fork.overlay import check, contents, version_source
from fork.pin import VERSION_FILE, Pin
from fork.wheel import pristine

__all__ = ["git_diff", "make_patch"]

HEADER = """\
MONAI {version}: the changes of {label}

Purpose: {purpose}

Base: MONAI {version} ({wheel}, sha256 {sha256}).
In a checkout of that release the patch is applied with

    git apply --exclude={version_file} PATCH

since {version_file}, which every build of MONAI writes anew, is here for the installed package alone.

Files:
{files}

"""


def make_patch(pin: Pin) -> bytes:
    """
    The difference between the release and the merged tree, in git's format, below a header for its readers.

    Raises:
        ForkError: if the fork does not fit the release, the release cannot be had, or there is no git.
    """
    check(pin)
    release = pristine(pin.root)
    check(pin, release)
    old = {path: (release / path).read_bytes() for path in [*pin.replaces, *pin.amends, VERSION_FILE]}
    new = {**contents(pin, release), VERSION_FILE: version_source(pin, release).encode()}
    files = [f"  replaced   {path}: {reason}" for path, reason in pin.replaces.items()]
    files += [f"  amended    {path}: {reason}" for path, reason in pin.amends.items()]
    files += [f"  new        {path}: {reason}" for path, reason in pin.adds.items()]
    files += [f"  generated  {VERSION_FILE}: version {pin.full_version}"]
    header = HEADER.format(
        version=pin.version,
        label=pin.label,
        purpose=pin.purpose,
        wheel=pin.wheel,
        sha256=pin.sha256,
        version_file=VERSION_FILE,
        files="\n".join(files),
    )
    return header.encode() + git_diff(old, new)


def git_diff(old: Mapping[str, bytes], new: Mapping[str, bytes]) -> bytes:
    """
    The difference between two sets of files, given by their paths, as git tells it whatever the user's settings.

    Raises:
        ForkError: if there is no git, or it fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        run = Git(Path(scratch) / "work", Path(scratch))
        run.work.mkdir()
        run("init", "--quiet", "--template=")
        trees = []
        for files in (old, new):
            run("rm", "-r", "-f", "--quiet", "--ignore-unmatch", ".")
            for path, data in files.items():
                place = run.work / path
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(data)
            run("add", "--all", "--force")
            trees.append(run("write-tree").decode().strip())
        return run("diff", "--binary", "--full-index", "--no-renames", *trees)
