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

"""A small repository, small releases of MONAI to lay it over, and a wheelhouse in place of the network."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import tempfile
import unittest
import zipfile
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

from fork.cli import main

VERSION_SOURCE = """
def get_versions():
    return {"date": "2026-01-02", "full-revisionid": "0123abcd", "version": "VERSION"}
"""

METADATA = """\
Metadata-Version: 2.4
Name: NAME
Version: VERSION
Summary: a small release
"""

WHEEL = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"

RELEASE = {
    "monai/__init__.py": "first = 1\n",
    "monai/_version.py": VERSION_SOURCE.replace("VERSION", "1.0.0"),
    "monai/blocks/__init__.py": "",
    "monai/blocks/a.py": "one\ntwo\nthree\n",
    "monai/blocks/b.py": "kept\n",
    "monai/csrc/kernel.cpp": "int main() {}\n",
}

SETUP_CFG = """\
[upstream]
version = 1.0.0
wheel = monai-1.0.0-py3-none-any.whl
sha256 = SHA256
label = trial.1
purpose = A purpose
    on two lines.

[upstream:replaces]
monai/blocks/a.py = it is wrong

[upstream:adds]
monai/blocks/New.py = it is needed
"""


def write_wheel(
    folder: Path, version: str, files: Mapping[str, str], name: str | None = None, distribution: str = "monai"
) -> Path:
    """Write a wheel with these files; returns its path."""
    info = f"{distribution}-{version}.dist-info"
    described = METADATA.replace("VERSION", version).replace("NAME", distribution)
    metadata = {"METADATA": described, "WHEEL": WHEEL, "licenses/LICENSE": "free\n"}
    contents = {**files, **{f"{info}/{path}": text for path, text in metadata.items()}}
    record = [f"{path},sha256={_encoded(text)},{len(text.encode())}" for path, text in contents.items()]
    contents[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,"]) + "\n"
    wheel = folder / (name or f"{distribution}-{version}-py3-none-any.whl")
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in contents.items():
            archive.writestr(path, text)
    return wheel


def _encoded(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, caches apart."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def wheelhouse_settings(house: Path) -> dict[str, str]:
    """Variables that let pip see one wheelhouse, and neither the network nor the user's settings."""
    return {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(house),
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


class Sandbox(unittest.TestCase):
    """A repository that replaces one file of a release and adds another one."""

    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.outside = Path(temporary.name).resolve()
        self.house = self.outside / "house"
        self.house.mkdir()
        self.root = self.outside / "a repository"
        self.wheel = write_wheel(self.house, "1.0.0", RELEASE)
        self.sha256 = hashlib.sha256(self.wheel.read_bytes()).hexdigest()
        self.write("setup.cfg", SETUP_CFG.replace("SHA256", self.sha256))
        self.write("monai/blocks/a.py", "one\n2\nthree\nfour")
        self.write("monai/blocks/New.py", "new = True\n")
        settings = mock.patch.dict(os.environ, wheelhouse_settings(self.house))
        settings.start()
        self.addCleanup(settings.stop)

    @property
    def target(self) -> Path:
        return self.root / "build" / "fork"

    @property
    def merged(self) -> dict[str, bytes]:
        """What a merge holds, the version apart."""
        ours = {path: (self.root / path).read_text() for path in ("monai/blocks/a.py", "monai/blocks/New.py")}
        files = {path: text.encode() for path, text in {**RELEASE, **ours}.items()}
        del files["monai/_version.py"]
        return files

    def use(self, wheel: Path) -> None:
        """Pin that wheel and keep it as if it had been fetched before: a call of pip takes a while."""
        data = wheel.read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        self.edit("setup.cfg", self.sha256, sha256)
        self.sha256 = sha256
        kept = self.root / "build" / "download" / wheel.name
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(data)

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.root / name).read_text()
        self.assertIn(old, text)
        self.write(name, text.replace(old, new))

    def assert_merged(self, folder: Path) -> None:
        files = tree(folder)
        self.assertIn(b"'version': '1.0.0+trial.1'", files.pop("monai/_version.py"))
        self.assertEqual(files, self.merged)

    def run_fork(self, *arguments: str) -> tuple[int, str, str]:
        """Run the command line; returns its exit status, stdout and stderr."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(["--root", str(self.root), *arguments])
        return code, out.getvalue(), err.getvalue()

    def assert_refused(self, *needed: str, arguments: tuple[str, ...] = ("build",)) -> None:
        """The command fails with one line that holds those texts, and leaves no half-built tree."""
        before = tree(self.target)
        code, out, err = self.run_fork(*arguments)
        self.assertEqual((code, out), (1, ""))
        self.assertEqual(len(err.splitlines()), 1, err)
        for text in needed:
            self.assertIn(text, err)
        self.assertEqual(tree(self.target), before)
        left = [path for path in (self.root / "build").glob("**/.*") if path.exists()]
        self.assertEqual(left, [], "temporary folders stayed")
