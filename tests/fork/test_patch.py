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
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from parameterized import parameterized

import fork
from fork.patch import make_patch
from fork.pin import read_pin
from tests.fork.sandbox import Sandbox, tree

# what our file holds where the release's holds one\ntwo\nthree\n
TEST_CASES_CONTENT = [
    ["deleted_lines", "one\n"],
    ["nothing_left", ""],
    ["no_newline_at_the_end", "one\ntwo\nthree"],
    ["windows_lines", "one\r\ntwo\r\n"],
    ["trailing_space", "one \ntwo\t\n\n\n"],
    ["binary", "\0\1\2\n"],
    ["lines_like_a_patch", "--- a/x\n+++ b/x\n@@ -1 +1 @@\ndiff --git a/y b/y\n"],
    ["not_ascii", "Größe\n"],
    ["same", "one\ntwo\nthree\n"],
]

# a user's settings under which git would write another patch
GIT_SETTINGS = """
[diff]
    noprefix = true
    external = false
    context = 0
[color]
    ui = always
[core]
    autocrlf = true
    quotePath = false
"""


def git_apply(folder: Path, *arguments: str) -> None:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    variables |= {"GIT_CEILING_DIRECTORIES": str(folder.parent), "GIT_CONFIG_GLOBAL": os.devnull}
    done = subprocess.run(
        ["git", "apply", *arguments], cwd=folder, env=variables, capture_output=True, encoding="utf-8"
    )
    if done.returncode:
        raise AssertionError(done.stderr)


class TestPatch(Sandbox):
    def setUp(self):
        super().setUp()
        self.use(self.wheel)

    def patch(self) -> Path:
        path = self.outside / "the fork.patch"
        code, out, err = self.run_fork("patch", "-o", str(path))
        self.assertEqual((code, err), (0, ""))
        self.assertIn(str(path), out)
        return path

    def release(self) -> Path:
        """The unpacked release in a folder of its own."""
        folder = self.outside / "release"
        for path, data in tree(fork.pristine(self.root)).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        return folder

    def assert_reproduces(self, patch: Path) -> None:
        release, expected = self.release(), tree(fork.merge(self.target, root=self.root))
        git_apply(release, "--check", str(patch))
        git_apply(release, str(patch))
        files = {path: data for path, data in tree(release).items() if path.startswith("monai/")}
        self.assertEqual(files, expected)

    def test_applied_to_the_release_it_gives_the_merge(self):
        self.assert_reproduces(self.patch())

    @parameterized.expand(TEST_CASES_CONTENT)
    def test_any_content(self, _name, text):
        (self.root / "monai/blocks/a.py").write_bytes(text.encode())
        (self.root / "monai/blocks/New.py").write_bytes(text.encode())
        self.assert_reproduces(self.patch())

    def test_file_modes_do_not_matter(self):
        (self.root / "monai/blocks/a.py").chmod(0o755)
        self.assertNotIn("mode 100755", self.patch().read_text())

    def test_version_can_be_left_out(self):
        release = self.release()
        before = (release / "monai/_version.py").read_bytes()
        git_apply(release, "--exclude=monai/_version.py", str(self.patch()))
        self.assertEqual((release / "monai/_version.py").read_bytes(), before)
        self.assertEqual((release / "monai/blocks/New.py").read_text(), "new = True\n")

    def test_header(self):
        header = self.patch().read_text().partition("diff --git")[0]
        for text in (
            "MONAI 1.0.0",
            "trial.1",
            "A purpose on two lines.",
            self.sha256,
            "git apply --exclude=monai/_version.py",
            "replaced   monai/blocks/a.py: it is wrong",
            "new        monai/blocks/New.py: it is needed",
            "monai/_version.py: version 1.0.0+trial.1",
        ):
            self.assertIn(text, header)

    def test_settings_of_the_user_do_not_change_it(self):
        expected = self.patch().read_bytes()
        settings = self.outside / "gitconfig"
        settings.write_text(GIT_SETTINGS)
        home = self.outside / "home"
        (home / ".config/git").mkdir(parents=True)
        (home / ".config/git/attributes").write_text("*.py -diff\n")
        (home / ".gitconfig").write_text(GIT_SETTINGS)
        variables = {"GIT_CONFIG_GLOBAL": str(settings), "GIT_EXTERNAL_DIFF": "false", "GIT_DIR": str(self.outside)}
        with mock.patch.dict(os.environ, {**variables, "HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config")}):
            self.assertEqual(make_patch(read_pin(self.root)), expected)

    def test_without_git(self):
        with mock.patch.dict(os.environ, PATH=str(self.outside)):
            self.assert_refused("git is needed", arguments=("patch", "-o", str(self.outside / "p")))
        self.assertFalse((self.outside / "p").exists())

    def test_folder_that_does_not_exist(self):
        self.assert_refused("/no such folder/p", arguments=("patch", "-o", f"{self.outside}/no such folder/p"))

    def test_misfit_is_refused(self):
        self.write("monai/c.py", "")
        self.assert_refused("'monai/c.py'", arguments=("patch", "-o", str(self.outside / "p")))
        self.assertFalse((self.outside / "p").exists())


class TestPatchOfThisRepository(unittest.TestCase):
    def test_applied_to_the_release_it_gives_the_merge(self):
        with tempfile.TemporaryDirectory() as name:
            outside = Path(name).resolve()
            release = outside / "release"
            for path, data in tree(fork.pristine()).items():
                (release / path).parent.mkdir(parents=True, exist_ok=True)
                (release / path).write_bytes(data)
            (outside / "patch").write_bytes(make_patch(read_pin()))
            git_apply(release, "--check", str(outside / "patch"))
            git_apply(release, str(outside / "patch"))
            self.assertEqual(tree(release / "monai"), tree(fork.merge(outside / "merged") / "monai"))


if __name__ == "__main__":
    unittest.main()
