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

import hashlib
import os
import shutil
import sys
import unittest
import zipfile
from unittest import mock

from parameterized import parameterized

import fork
from fork.wheel import download
from tests.fork.sandbox import RELEASE, Sandbox, tree, write_wheel

REFUSED = """\
WARNING: Retrying (Retry(total=0)) after connection broken by '{}': /simple/monai/
ERROR: Could not find a version that satisfies the requirement monai==1.0.0 (from versions: none)
ERROR: No matching distribution found for monai==1.0.0
"""

# what pip prints, what the error holds, what it does not
TEST_CASES_EXPLAINED = [
    [
        "old_pip",
        REFUSED.format("NewConnectionError('<pip.HTTPSConnection object at 0x7f>: Errno 111')"),
        ["NewConnectionError('Errno 111')", "network", "PIP_INDEX_URL"],
        ["0x7f"],
    ],
    ["new_pip", REFUSED.format('NameError("host.example: unknown")'), ['NameError("host.example: unknown")'], []],
    [
        "certificate",
        "Could not fetch URL: There was a problem confirming the ssl certificate: self-signed - skipping\n"
        + REFUSED.splitlines()[1],
        ["(self-signed - skipping)"],
        [],
    ],
    ["no_pip", "/usr/bin/python3: No module named pip\n", ["pip is needed", sys.executable, "ensurepip"], []],
    ["other", "WARNING: odd\nERROR: Disk is full\nrest\n", ["pip cannot fetch monai 1.0.0: Disk is full"], ["rest"]],
    ["unmarked", "first\nno such option: --bogus\n\n", ["no such option: --bogus"], ["first"]],
    ["silent", "", ["does not say why"], []],
]


class TestPristine(Sandbox):
    def setUp(self):
        super().setUp()
        self.use(self.wheel)

    def test_holds_the_release_as_it_is(self):
        files = tree(fork.pristine(self.root))
        self.assertEqual({path: files[path].decode() for path in RELEASE}, RELEASE)
        self.assertIn("monai-1.0.0.dist-info/METADATA", files)

    def test_lies_below_build(self):
        self.assertTrue(fork.pristine(self.root).is_relative_to(self.root / "build/release"))

    @parameterized.expand([["changed"], ["removed"], ["added"], ["no_record"]])
    def test_spoiled_release_is_made_anew(self, kind):
        home = fork.pristine(self.root)
        before = tree(home)
        if kind == "changed":
            (home / "monai/blocks/b.py").write_text("spoiled\n")
        elif kind == "removed":
            (home / "monai/blocks/b.py").unlink()
        elif kind == "added":
            (home / "monai/blocks/c.py").touch()
        else:
            shutil.rmtree(home / "monai")
        self.assertEqual(fork.pristine(self.root), home)
        self.assertEqual(tree(home), before)

    def test_another_pin_has_another_folder(self):
        first = fork.pristine(self.root)
        self.use(write_wheel(self.house, "1.0.0", {**RELEASE, "monai/blocks/b.py": "rebuilt\n"}))
        second = fork.pristine(self.root)
        self.assertNotEqual(first, second)
        self.assertEqual((second / "monai/blocks/b.py").read_text(), "rebuilt\n")


class TestFetch(Sandbox):
    def test_wheel_is_kept(self):
        fork.pristine(self.root)
        shutil.rmtree(self.root / "build/release")
        self.wheel.unlink()
        fork.merge(self.target, root=self.root)
        self.assert_merged(self.target)

    def test_kept_wheel_with_another_hash_is_not_used(self):
        kept = self.root / "build/download" / self.wheel.name
        kept.parent.mkdir(parents=True)
        write_wheel(kept.parent, "1.0.0", {**RELEASE, "monai/blocks/b.py": "evil\n"})
        code, _, err = self.run_fork("build")
        self.assertEqual(code, 0)
        self.assertIn("another hash", err)
        self.assertEqual(len(err.splitlines()), 1)
        self.assert_merged(self.target)
        self.assertEqual(kept.read_bytes(), self.wheel.read_bytes())

    def test_other_hash_is_refused(self):
        wrong = "0" * 64
        self.edit("setup.cfg", self.sha256, wrong)
        self.assert_refused("monai 1.0.0", self.sha256, wrong, "correct the pin")
        self.assertEqual(tree(self.root / "build"), {})

    def test_pin_that_does_not_exist_is_refused(self):
        write_wheel(self.house, "1.1.0", RELEASE)
        self.edit("setup.cfg", "1.0.0", "2.0.0")
        self.assert_refused("no wheel of monai 2.0.0", "1.0.0, 1.1.0")
        self.assertEqual(tree(self.root / "build"), {})

    @parameterized.expand([["empty", "empty"], ["missing", "no such folder"]])
    def test_no_network_and_no_wheel_is_refused(self, _name, house):
        (self.outside / "empty").mkdir()
        with mock.patch.dict(os.environ, PIP_FIND_LINKS=str(self.outside / house)):
            self.assert_refused("no wheel of monai 1.0.0", "network", "PIP_FIND_LINKS")
        self.assertEqual(tree(self.root / "build"), {})

    def test_other_file_name_is_refused(self):
        self.wheel.rename(self.house / "monai-1.0.0-2026-py3-none-any.whl")
        self.assert_refused("'monai-1.0.0-2026-py3-none-any.whl'", f"'{self.wheel.name}'")

    def test_wheel_that_does_not_match_its_own_record_is_refused(self):
        data = self.wheel.read_bytes().replace(b"kept\n", b"lost\n")
        self.wheel.write_bytes(data)
        self.edit("setup.cfg", self.sha256, hashlib.sha256(data).hexdigest())
        self.assert_refused(self.wheel.name)

    def test_wheel_with_a_file_beside_its_record_is_refused(self):
        with zipfile.ZipFile(self.wheel, "a") as archive:
            archive.writestr("monai/blocks/c.py", "stowaway\n")
        self.edit("setup.cfg", self.sha256, hashlib.sha256(self.wheel.read_bytes()).hexdigest())
        self.assert_refused(self.wheel.name, "RECORD")

    def test_pip_that_does_not_compare_hashes(self):
        def careless(command, **_options):
            shutil.copy(self.wheel, command[command.index("--dest") + 1])
            return mock.Mock(returncode=0, stdout="")

        self.edit("setup.cfg", self.sha256, "0" * 64)
        with mock.patch("fork.wheel.subprocess.run", side_effect=careless):
            self.assert_refused(self.sha256, "0" * 64)

    def test_users_constraint_on_monai_does_not_reach_the_release(self):
        constraint = self.outside / "constraints.txt"
        constraint.write_text("monai==1.0.0+trial.1\n")
        with mock.patch.dict(os.environ, PIP_CONSTRAINT=str(constraint), PIP_QUIET="2"):
            fork.merge(self.target, root=self.root)
        self.assert_merged(self.target)

    @parameterized.expand(TEST_CASES_EXPLAINED)
    def test_failure_of_pip_is_explained_in_one_line(self, _name, output, needed, unwanted):
        with mock.patch("fork.wheel.subprocess.run", return_value=mock.Mock(returncode=1, stdout=output)):
            with self.assertRaises(fork.ForkError) as raised:
                download("1.0.0", self.outside, "0" * 64)
        message = str(raised.exception)
        self.assertEqual(len(message.splitlines()), 1)
        for text in needed:
            self.assertIn(text, message)
        for text in unwanted:
            self.assertNotIn(text, message)


if __name__ == "__main__":
    unittest.main()
