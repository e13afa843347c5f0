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

"""What the release's own metadata tells setup(): nothing of it is repeated in setup.cfg."""

from __future__ import annotations

import re
from email.message import Message
from email.parser import BytesParser
from pathlib import Path
from typing import Any

from fork.files import package_files
from fork.pin import ForkError, Pin

__all__ = ["read_metadata", "setup_arguments", "split_requirement"]

REQUIREMENT = re.compile(r"(?P<requirement>[^;]+?)\s*(;\s*(?P<marker>.+))?")
EXTRA = re.compile(r"((?P<marker>.+) and )?extra == (?P<quote>[\"'])(?P<extra>[^\"']+)(?P=quote)")


def setup_arguments(pin: Pin, release: Path, tree: Path) -> dict[str, Any]:
    """
    Arguments of setup() beyond those in setup.cfg.

    Args:
        pin: the pin.
        release: the unpacked release.
        tree: the merged tree, a folder below the repository.

    Raises:
        ForkError: if the release's metadata holds a requirement that setup() cannot be given.
    """
    metadata = read_metadata(release)
    requirements = [split_requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    extras: dict[str, list[str]] = {name: [] for name in metadata.get_all("Provides-Extra", [])}
    for requirement, extra in requirements:
        if extra:
            extras[extra].append(requirement)
    folder = tree.relative_to(pin.root).as_posix()
    packages, data = _contents(tree)
    licenses = sorted(release.glob("monai-*.dist-info/licenses/**/*"))
    return {
        "version": pin.full_version,
        "description": metadata["Summary"],
        "author_email": metadata["Author-email"],
        "classifiers": metadata.get_all("Classifier", []),
        "project_urls": dict(line.split(", ", 1) for line in metadata.get_all("Project-URL", [])),
        "python_requires": metadata["Requires-Python"],
        "install_requires": [requirement for requirement, extra in requirements if not extra],
        "extras_require": extras,
        "package_dir": {"": folder},
        "packages": packages,
        "package_data": {"monai": data},
        "include_package_data": False,
        "zip_safe": False,
        "license_files": ["LICENSE", *(path.relative_to(pin.root).as_posix() for path in licenses if path.is_file())],
    }


def read_metadata(release: Path) -> Message:
    """METADATA of an unpacked release."""
    files = list(release.glob("monai-*.dist-info/METADATA"))
    if len(files) != 1:
        raise ForkError(
            f"{release} is no unpacked wheel of monai: it holds {len(files)} files dist-info/METADATA, not 1"
        )
    return BytesParser().parsebytes(files[0].read_bytes(), headersonly=True)


def split_requirement(line: str) -> tuple[str, str | None]:
    """
    Split a Requires-Dist into the requirement and the extra that asks for it, None where every installation does.

    Raises:
        ForkError: if the extra is told in another way than the one that setuptools writes.
    """
    match = REQUIREMENT.fullmatch(line.strip())
    requirement, marker = (match["requirement"], match["marker"]) if match else (line, None)
    if match and not re.search(r"\bextra\b", marker or ""):
        return line.strip(), None
    extra = EXTRA.fullmatch(marker or "")
    if not extra or re.search(r"\bextra\b", extra["marker"] or ""):
        raise ForkError(f"the release's metadata holds a requirement of an unknown form: '{line}'")
    return requirement + (f"; {extra['marker']}" if extra["marker"] else ""), extra["extra"]


def _contents(tree: Path) -> tuple[list[str], list[str]]:
    """The packages below ``monai`` of the tree, and its files that are no modules of theirs, relative to ``monai``."""
    files = [Path(path) for path in package_files(tree)]
    packages = {path.parent for path in files if path.name == "__init__.py"}
    data = [path for path in files if path.parent not in packages or path.suffix != ".py"]
    return sorted(".".join(path.parts) for path in packages), [path.relative_to("monai").as_posix() for path in data]
