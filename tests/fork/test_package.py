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

"""The package itself, built from a copy of this repository without the network."""

from __future__ import annotations

import ast
import email
import importlib.machinery
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import unittest
import zipfile
from email.message import Message
from pathlib import Path

import pytest

import fork
from fork.files import package_files
from fork.pin import VERSION_FILE, read_pin
from fork.wheel import fetch
from tests.fork.sandbox import tree, wheelhouse_settings

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns("build", "dist", "tests", "demo", "benchmarks", ".*", "__pycache__", "*.egg-info")
PIP_INSTALL = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation")


class Workshop(unittest.TestCase):
    """A copy of this repository, the release's wheel, and no network."""

    @classmethod
    def setUpClass(cls):
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.outside = Path(temporary.name).resolve()
        cls.house = cls.outside / "house"
        cls.house.mkdir()
        shutil.copy(fetch(read_pin()), cls.house)
        cls.pin = read_pin()
        cls.variables = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "GIT_"))}
        cls.variables |= wheelhouse_settings(cls.house) | {"PYTHONDONTWRITEBYTECODE": "1"}

    @classmethod
    def copy(cls, name: str) -> Path:
        return Path(shutil.copytree(ROOT, cls.outside / name, ignore=LEFT_OUT))

    @classmethod
    def run_python(cls, *arguments: str, python: str = sys.executable, code: int = 0, **options) -> str:
        """Run an interpreter, which must end with that code; returns what it printed."""
        options = {"env": cls.variables, "cwd": cls.outside, **options}
        done = subprocess.run(
            [python, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", **options
        )
        if done.returncode != code:
            raise AssertionError(f"{arguments} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    @classmethod
    def build_wheel(cls, source: Path, name: str, code: int = 0) -> tuple[Path, str]:
        """Let pip build a wheel; returns the folder for it and what pip printed."""
        folder = cls.outside / name
        folder.mkdir()
        flags = ("--no-deps", "--no-build-isolation", "--wheel-dir", str(folder))
        return folder, cls.run_python("-m", "pip", "wheel", *flags, str(source), code=code)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of the one wheel in a folder."""
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


def metadata(files: dict[str, bytes]) -> Message:
    (text,) = (data for name, data in files.items() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(text)


@pytest.mark.slow
class TestWheel(Workshop):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.source = cls.copy("source")
        cls.folder, _ = cls.build_wheel(cls.source, "wheel")
        cls.files = contents(cls.folder)
        cls.release = contents(cls.house)
        cls.info = f"monai-{cls.pin.full_version}.dist-info"

    def test_name(self):
        names = [path.name for path in self.folder.iterdir()]
        self.assertEqual(names, [f"monai-{self.pin.full_version}-py3-none-any.whl"])

    def test_holds_the_release_but_for_our_files(self):
        expected = {name: data for name, data in self.release.items() if name.startswith("monai/")}
        whole = self.pin.files.keys() - self.pin.amends.keys()
        expected |= {path: (ROOT / path).read_bytes() for path in whole}
        got = {name: data for name, data in self.files.items() if name.startswith("monai/")}
        self.assertEqual(sorted(got), sorted(expected))
        others = sorted(name for name in got if got[name] != expected[name])
        self.assertEqual(others, sorted([VERSION_FILE, *self.pin.amends]))

    def test_amended_files_are_the_release_s_but_for_our_definitions(self):
        self.assertTrue(self.pin.amends)
        for path in self.pin.amends:
            ours = ast.parse((ROOT / path).read_text()).body
            kept = [ast.dump(node) for node in ast.parse(self.release[path]).body]
            got = [ast.dump(node) for node in ast.parse(self.files[path]).body]
            with self.subTest(path):
                self.assertLess(len(set(kept) - set(got)), len(ours))
                self.assertLess(len(set(got) - set(kept)), len(ours))

    def test_holds_sources_of_the_extensions_and_types(self):
        names = [name for name in self.files if name.endswith((".cpp", ".cu", ".cuh", ".h"))]
        self.assertGreaterEqual(len(names), 5)
        self.assertIn("monai/py.typed", self.files)

    def test_holds_nothing_else(self):
        others = {name.split("/")[0] for name in self.files}
        self.assertEqual(others, {"monai", self.info})

    def test_requirements_and_facts_are_the_release_s(self):
        ours, theirs = metadata(self.files), metadata(self.release)
        self.assertEqual(ours["Version"], self.pin.full_version)
        for field in ("Requires-Dist", "Provides-Extra", "Classifier", "Project-URL"):
            self.assertGreater(len(theirs.get_all(field)), 1)
            self.assertEqual(sorted(ours.get_all(field)), sorted(theirs.get_all(field)), field)
        for field in ("Name", "Requires-Python", "Summary", "Author-email"):
            self.assertEqual(ours[field], theirs[field], field)

    def test_both_licenses_travel(self):
        licenses = {name: data for name, data in self.files.items() if name.startswith(f"{self.info}/licenses/")}
        self.assertEqual(licenses.pop(f"{self.info}/licenses/LICENSE"), (ROOT / "LICENSE").read_bytes())
        upstream = self.release[f"monai-{self.pin.version}.dist-info/licenses/LICENSE"]
        self.assertEqual(list(licenses.values()), [upstream])

    def test_works(self):
        code = "import monai; print(monai.__version__, monai.__revision_id__); monai.config.print_config()"
        with tempfile.TemporaryDirectory() as place:
            with zipfile.ZipFile(next(self.folder.glob("*.whl"))) as archive:
                archive.extractall(place)
            out = self.run_python("-c", code, env={**self.variables, "PYTHONPATH": place})
        release: dict = {}
        exec(self.release[VERSION_FILE], release)
        revision = release["get_versions"]()["full-revisionid"]
        self.assertIn(f"{self.pin.full_version} {revision}\n", out)
        self.assertIn(f"MONAI version: {self.pin.full_version}\n", out)
        self.assertIn(f"MONAI rev id: {revision}\n", out)

    def test_sdist(self):
        source, folder = self.copy("sdist source"), self.outside / "sdist"
        (source / "tests").mkdir()
        (source / "tests/test_it.py").touch()
        self.run_python(
            "-c", f"from setuptools.build_meta import build_sdist; build_sdist({str(folder)!r})", cwd=source
        )
        (archive,) = folder.glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data") if hasattr(tarfile, "data_filter") else packed.extractall(folder)
        inside = folder / f"monai-{self.pin.full_version}"
        self.assertEqual(package_files(inside), sorted(self.pin.files))
        for name in ("setup.py", "setup.cfg", "pyproject.toml", "LICENSE", "fork/cli.py", "tests/test_it.py"):
            self.assertTrue((inside / name).is_file(), name)
        self.assertEqual(list((inside / "build").rglob("*.py")), [], "an sdist holds nothing of the release")
        facts = email.message_from_string((inside / "PKG-INFO").read_text(encoding="utf-8"))
        for name in facts.get_all("License-File"):
            self.assertTrue((inside / name).is_file(), name)
        rebuilt, _ = self.build_wheel(archive, "wheel of the sdist")
        self.assertEqual(contents(rebuilt), self.files)

    def test_removed_file_is_not_in_the_next_wheel(self):
        source = self.copy("shrinking source")
        path = "monai/networks/blocks/passing_fancy.py"
        (source / path).touch()
        listed = (source / "setup.cfg").read_text()
        (source / "setup.cfg").write_text(listed.replace("[upstream:adds]", f"[upstream:adds]\n{path} = trial"))
        self.assertIn(path, contents(self.build_wheel(source, "before")[0]))
        (source / path).unlink()
        (source / "setup.cfg").write_text(listed)
        self.assertNotIn(path, contents(self.build_wheel(source, "after")[0]))

    def test_other_hash_is_told_by_pip_and_leaves_nothing(self):
        source = self.copy("wrong source")
        text = (source / "setup.cfg").read_text()
        (source / "setup.cfg").write_text(text.replace(self.pin.sha256, "0" * 64))
        folder, out = self.build_wheel(source, "nothing", code=1)
        lines = [line for line in out.splitlines() if "monai cannot be built:" in line]
        self.assertEqual(len(lines), 1, out)
        self.assertIn(self.pin.sha256, lines[0])
        self.assertIn("0" * 64, lines[0])
        self.assertNotIn("Traceback", out)
        self.assertEqual(list(folder.iterdir()), [])
        self.assertEqual(tree(source / "build"), {})


@pytest.mark.slow
class TestInstallation(Workshop):
    """Installations into an environment that has nothing but pip and setuptools."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        tools = cls.outside / "tools"
        tools.mkdir()
        for name in ("pip", "setuptools", "_distutils_hack"):
            # importlib.util.find_spec("pip") would switch off what lets setuptools, and with it inductor, be imported
            place = Path(importlib.machinery.PathFinder.find_spec(name).origin).parent
            (tools / name).symlink_to(place)
        for info in place.parent.glob("setuptools-*.dist-info"):  # it tells where setuptools has its commands
            (tools / info.name).symlink_to(info)
        cls.variables["PYTHONPATH"] = str(tools)

    def environment(self, name: str) -> str:
        """A new environment's interpreter."""
        self.run_python("-m", "venv", "--without-pip", str(self.outside / name))
        python = str(self.outside / name / "bin" / "python")
        self.assertEqual(self.origin(python, "torch"), "")
        self.assertEqual(self.origin(python), "")
        return python

    def origin(self, python: str, module: str = "monai", cwd: Path | None = None) -> str:
        code = f"import importlib.util as u; s = u.find_spec({module!r}); print(s and s.origin or '')"
        return self.run_python("-c", code, python=python, cwd=cwd or self.outside).strip()

    def test_editable(self):
        source, python = self.copy("editable source"), self.environment("editable")
        path = next(iter(self.pin.adds))
        self.run_python(*PIP_INSTALL, "--editable", str(source), python=python)
        package = source / "build/fork/monai"
        # from the root, too, where the folder monai/ must not hide the package
        for cwd in (self.outside, source):
            self.assertEqual(self.origin(python, cwd=cwd), str(package / "__init__.py"))
        self.assertEqual(tree(package.parent), tree(fork.merge(self.outside / "merged")))
        (source / path).write_text("edited = True\n")
        self.assertEqual((package.parent / path).read_text(), "edited = True\n")
        self.assertIn(
            self.pin.full_version,
            self.run_python("-c", "from importlib.metadata import version; print(version('monai'))", python=python),
        )
        # a wheel built beside an editable installation holds the edit, and leaves the installation live
        self.assertEqual(contents(self.build_wheel(source, "wheel beside")[0])[path], b"edited = True\n")
        (source / path).write_text("edited = 'again'\n")
        self.assertEqual((package.parent / path).read_text(), "edited = 'again'\n")

    def test_from_a_branch(self):
        source, python = self.copy("cloned"), self.environment("branch")
        for arguments in (
            ("init", "--quiet"),
            ("checkout", "--quiet", "-b", "trial"),
            ("add", "--all"),
            ("-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "--quiet", "-m", "all"),
            ("checkout", "--quiet", "--detach"),
        ):
            subprocess.run(["git", *arguments], cwd=source, env=self.variables, check=True)
        self.run_python(*PIP_INSTALL, f"git+file://{source}@trial", python=python)
        package = Path(self.origin(python)).parent
        self.assertTrue(package.is_relative_to(self.outside / "branch"))
        expected = tree(fork.merge(self.outside / "merged") / "monai")
        self.assertEqual(tree(package), expected)
        self.assertFalse((source / "build").exists())


if __name__ == "__main__":
    unittest.main()
