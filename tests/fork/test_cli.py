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

from __future__ import annotations

import os
import subprocess
import sys
import unittest
from pathlib import Path
from unittest import mock

from parameterized import parameterized

from tests.fork.sandbox import Sandbox, tree

ROOT = Path(__file__).resolve().parents[2]


class TestStatus(Sandbox):
    def status(self, code: int) -> tuple[str, str]:
        got, out, err = self.run_fork("status")
        self.assertEqual(got, code, err)
        self.assertEqual(bool(err), bool(code))
        return out, err

    def test_fresh_clone_needs_no_network(self):
        with mock.patch("subprocess.run", side_effect=AssertionError("status fetches nothing")):
            out, _ = self.status(0)
        for text in ("1.0.0+trial.1", self.sha256, "not fetched yet", "not there yet"):
            self.assertIn(text, out)
        for path, reason in (("monai/blocks/a.py", "it is wrong"), ("monai/blocks/New.py", "it is needed")):
            self.assertRegex(out, rf"{path}\n +{reason}\n")

    @parameterized.expand([["copied", []], ["linked", ["--link"]]])
    def test_merged(self, word, flags):
        self.use(self.wheel)
        self.run_fork("build", *flags)
        out, _ = self.status(0)
        self.assertIn("fetched and verified", out)
        self.assertIn(f"{self.target}, {word}, up to date", out)

    def test_outdated_copy_fails(self):
        self.use(self.wheel)
        self.run_fork("build")
        self.edit("monai/blocks/a.py", "2", "II")
        out, err = self.status(1)
        self.assertIn("out of date", out)
        self.assertIn("monai/blocks/a.py", err)
        self.assertIn("python -m fork build", err)
        self.run_fork("build")
        self.status(0)

    def test_every_misfit_is_told(self):
        self.use(self.wheel)
        self.run_fork("build")
        self.write("monai/c.py", "")
        self.write("monai/d.py", "")
        self.edit("setup.cfg", "monai/blocks/New.py", "monai/blocks/b.py")
        _, err = self.status(1)
        for path in ("monai/c.py", "monai/d.py", "monai/blocks/New.py", "monai/blocks/b.py"):
            self.assertIn(f"'{path}'", err)

    def test_kept_wheel_that_is_not_the_pinned_one(self):
        self.use(self.wheel)
        (self.root / "build/download" / self.wheel.name).write_text("half a whe")
        self.assertIn("is not the pinned one", self.status(0)[0])


class TestBuild(Sandbox):
    def setUp(self):
        super().setUp()
        self.use(self.wheel)

    def test_elsewhere(self):
        target = self.outside / "merged here"
        code, out, _ = self.run_fork("build", str(target))
        self.assertEqual((code, out), (0, f"{target}\n"))
        self.assert_merged(target)
        self.assertFalse(self.target.exists())

    def test_linked_tree_of_an_editable_installation_stays_linked(self):
        self.run_fork("build", "--link")
        self.edit("setup.cfg", "trial.1", "trial.2")
        self.assertEqual(self.run_fork("build")[0], 0)
        self.assertTrue((self.target / "monai/blocks/a.py").is_symlink())
        self.assertIn("1.0.0+trial.2", (self.target / "monai/_version.py").read_text())

    def test_into_a_file(self):
        target = self.outside / "file"
        target.touch()
        self.assert_refused(f"'{target}' is a file", arguments=("build", str(target)))

    def test_into_a_folder_of_somebody_else(self):
        self.assert_refused(f"'{self.root}'", "something else", arguments=("build", str(self.root)))
        self.assertIn("setup.cfg", tree(self.root))


class TestCompare(Sandbox):
    def setUp(self):
        super().setUp()
        self.use(self.wheel)
        self.run_fork("build", str(self.outside / "site"))

    def compare(self) -> tuple[int, str, str]:
        return self.run_fork("compare", str(self.outside / "site"))

    def test_the_fork(self):
        (self.outside / "site/torch").mkdir()
        code, out, err = self.compare()
        self.assertEqual((code, err), (0, ""))
        self.assertIn("1.0.0+trial.1, 2 files", out)

    @parameterized.expand([["changed"], ["missing"], ["older"]])
    def test_another_package(self, kind):
        place = self.outside / "site/monai/blocks/New.py"
        if kind == "changed":
            place.write_text("other\n")
        elif kind == "missing":
            place.unlink()
        else:
            self.edit("monai/blocks/New.py", "new", "newer")
        code, out, err = self.compare()
        self.assertEqual((code, out), (1, ""))
        self.assertEqual(
            err, f"fork: '{self.outside / 'site'}' does not hold 'monai/blocks/New.py' as the fork has it\n"
        )

    def test_many_files(self):
        self.edit("monai/blocks/New.py", "new", "newer")
        self.edit("monai/blocks/a.py", "one", "ONE")
        self.assertIn("(and 1 more)", self.compare()[2])


class TestProgram(unittest.TestCase):
    def run_program(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "fork", *arguments], cwd=ROOT, capture_output=True, encoding="utf-8"
        )

    def test_help(self):
        done = self.run_program("-h")
        self.assertEqual(done.returncode, 0)
        for text in ("status", "build", "compare", "patch", "rebase", "examples:", "python -m fork patch -o"):
            self.assertIn(text, done.stdout)

    @parameterized.expand([[[]], [["bogus"]], [["patch"]], [["rebase"]], [["compare"]], [["build", "a", "b"]]])
    def test_wrong_use(self, arguments):
        done = self.run_program(*arguments)
        self.assertEqual(done.returncode, 2)
        self.assertIn("usage: python -m fork", done.stderr)

    def test_lists_of_this_repository_fit(self):
        done = self.run_program("status")
        self.assertNotIn("none of the lists", done.stderr)
        self.assertNotIn("no such file", done.stderr)
        self.assertNotIn("has such a file", done.stderr)

    def test_needs_neither_torch_nor_any_package(self):
        code = "import sys; sys.path.insert(0, sys.argv[1]); import fork.cli; sys.exit(fork.cli.main(['status']))"
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", code, str(ROOT)], capture_output=True, encoding="utf-8", env=os.environ
        )
        self.assertIn("release   MONAI", done.stdout, done.stderr)

    def test_reader_that_stops_early(self):
        with subprocess.Popen(
            [sys.executable, "-u", "-m", "fork", "status"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            process.stdout.close()
            err = process.stderr.read().decode()
        self.assertNotIn("Traceback", err)
        self.assertNotIn("Broken pipe", err)


if __name__ == "__main__":
    unittest.main()
