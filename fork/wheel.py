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

"""The release's wheel: fetched by pip, so that the user's index, proxy and wheelhouse apply; verified and unpacked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from fork.files import digest, package_digests, put_in_place, record_digests, scratch_folder
from fork.pin import ForkError, Pin, read_pin

__all__ = ["cache_place", "cached_wheel", "download", "fetch", "is_intact", "pristine", "release_folder", "unpack"]


def pristine(root: Path | str | None = None) -> Path:
    """
    The folder that holds the pinned release, unpacked and unmodified; made on the first call.

    Several processes may call at once.

    Args:
        root: the repository; by default the one that holds this file.

    Raises:
        ForkError: if the wheel cannot be had, or is not the pinned one.
    """
    pin = read_pin(root)
    home = release_folder(pin)
    if is_intact(home):
        return home
    wheel = fetch(pin)
    with scratch_folder(home) as scratch:
        new = scratch / "new"
        unpack(wheel, new)
        put_in_place(new, home, lambda: is_intact(home))
    return home


def release_folder(pin: Pin) -> Path:
    """Where the pinned release lies once it is unpacked."""
    return pin.build / "release" / pin.sha256[:12]


def fetch(pin: Pin) -> Path:
    """
    The pinned wheel: the one fetched before, or else a new download.

    Raises:
        ForkError: if it cannot be had, or has another hash.
    """
    cached = cached_wheel(pin)
    if cached:
        return cached
    place = cache_place(pin)
    if place.exists():
        print(f"{place} has another hash than the pin: fetching it anew", file=sys.stderr)
    with scratch_folder(place) as scratch:
        wheel = download(pin.version, scratch, pin.sha256)
        if wheel.name != pin.wheel:
            raise ForkError(f"pip fetched '{wheel.name}', the pin in setup.cfg says '{pin.wheel}': correct it there")
        os.replace(wheel, place)
    return place


def cache_place(pin: Pin) -> Path:
    """Where the wheel is kept."""
    return pin.build / "download" / pin.wheel


def cached_wheel(pin: Pin) -> Path | None:
    """The pinned wheel, if it was fetched before and has the pinned hash."""
    place = cache_place(pin)
    return place if place.is_file() and digest(place.read_bytes()) == pin.sha256 else None


def download(version: str, folder: Path, sha256: str | None = None, name: str = "monai") -> Path:
    """
    Let pip fetch the wheel of a release.

    Args:
        version: the release.
        folder: an empty folder for the wheel.
        sha256: the hash it must have; without it, any will do.
        name: the distribution. Defaults to "monai".

    Raises:
        ForkError: if pip has no such wheel; the text tells pip's reason.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{name}=={version}" + (f" --hash=sha256:{sha256}" if sha256 else "") + "\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--ignore-requires-python"]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar=off", "--dest", str(folder)]
    command += ["--require-hashes"] if sha256 else []
    # A constraint of the user's is about the merged package, not about the release below it; errors must be told.
    variables = {name: value for name, value in os.environ.items() if name not in ("PIP_CONSTRAINT", "PIP_QUIET")}
    done = subprocess.run(
        [*command, "-r", str(requirements)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=variables,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise ForkError(_explain(done.stdout, f"{name} {version}", sha256))
    if sha256 and digest(wheels[0].read_bytes()) != sha256:
        raise ForkError(_other_hash(f"{name} {version}", sha256, digest(wheels[0].read_bytes())))
    return wheels[0]


def unpack(wheel: Path, folder: Path, package: str = "monai") -> None:
    """
    Unpack the wheel of ``package``.

    Raises:
        ForkError: if it is no wheel, or a file of the package is not as the wheel's RECORD says.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    except zipfile.BadZipFile as error:
        raise ForkError(f"{wheel.name} cannot be unpacked: {error}") from None
    if package_digests(folder, package) != record_digests(folder, package):
        raise ForkError(f"{wheel.name} does not hold the files that its own RECORD lists")


def is_intact(folder: Path, package: str = "monai") -> bool:
    """Whether ``folder`` holds a wheel of ``package``, unpacked and unmodified."""
    return folder.is_dir() and package_digests(folder, package) == record_digests(folder, package)


def _other_hash(release: str, sha256: str, got: str) -> str:
    return (
        f"the wheel of {release} that pip found has sha256 {got}, the pin says {sha256}: "
        "use an index or wheelhouse with the real file, or correct the pin"
    )


def _explain(output: str, release: str, sha256: str | None) -> str:
    """One line that tells why pip has not fetched the release."""
    if "No module named pip" in output:
        return f"pip is needed to fetch the release and {sys.executable} has none: run '{sys.executable} -m ensurepip'"
    got = re.search(r"Got\s+([0-9a-f]{64})", output)
    if sha256 and got:
        return _other_hash(release, sha256, got[1])
    versions = re.search(r"\(from versions: (.*)\)", output)
    if versions and versions[1] != "none":
        known = versions[1].split(", ")
        return f"pip finds no wheel of {release}, only of {', '.join(known[-5:])}: name a release that exists"
    if versions:
        return (
            f"pip finds no wheel of {release}, nor of any other release{_broken_connection(output)}: "
            "check the network, or pip's index, proxy and wheelhouse (PIP_INDEX_URL, PIP_PROXY, PIP_FIND_LINKS)"
        )
    errors = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in errors if line.startswith("ERROR:")] or errors[-1:]
    return f"pip cannot fetch {release}: {' '.join(errors).replace('ERROR: ', '') or 'it does not say why'}"


def _broken_connection(output: str) -> str:
    """What pip's last warning about its connection says, in parentheses; empty where there is none."""
    causes = re.findall(r"(?:connection broken by '(.*)': |problem confirming the ssl certificate: (.*))", output)
    return f" ({re.sub(r'<[^>]*>(: |, )', '', ''.join(causes[-1]))})" if causes else ""
