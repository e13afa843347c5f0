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
import unittest

from parameterized import parameterized

from tests.fork.sandbox import RELEASE, Sandbox, tree, write_wheel


class TestRebase(Sandbox):
    def setUp(self):
        super().setUp()
        self.use(self.wheel)

    def release(self, *gone: str, **changed: str) -> None:
        """Put a release 1.1.0 into the wheelhouse that lacks files and holds others, named by their last part."""
        files = {path: text for path, text in RELEASE.items() if path not in gone}
        files |= {f"monai/blocks/{name}.py": text for name, text in changed.items()}
        self.new = write_wheel(self.house, "1.1.0", files)

    def test_shows_what_upstream_changed(self):
        self.release(a="one\nzwei\nthree\nfour\n", b="changed as well, but not replaced by us\n")
        code, out, err = self.run_fork("rebase", "1.1.0")
        self.assertEqual((code, err), (0, ""))
        self.assertRegex(out, r"MONAI 1\.0\.0 \(the pin\) -> MONAI 1\.1\.0")
        self.assertRegex(out, r"\+2 -1 +monai/blocks/a\.py")
        self.assertRegex(out, r"new +monai/blocks/New\.py")
        for line in ("--- a/monai/blocks/a.py", "-two", "+zwei", "+four", " one"):
            self.assertIn(line, out.splitlines())
        self.assertNotIn("not replaced by us", out)

    def test_unchanged(self):
        self.release(b="changed\n")
        code, out, err = self.run_fork("rebase", "1.1.0")
        self.assertEqual((code, err), (0, ""))
        self.assertRegex(out, r"unchanged +monai/blocks/a\.py")
        self.assertNotIn("@@", out)

    def test_vanished_file_fails(self):
        self.release("monai/blocks/a.py")
        code, out, err = self.run_fork("rebase", "1.1.0")
        self.assertEqual(code, 1)
        self.assertRegex(out, r"VANISHED +monai/blocks/a\.py")
        self.assertEqual(err, "fork: 'monai/blocks/a.py' should replace a file, but MONAI 1.1.0 holds no such file\n")

    def test_file_that_upstream_has_now_fails(self):
        self.release(New="theirs\n")
        code, out, err = self.run_fork("rebase", "1.1.0")
        self.assertEqual(code, 1)
        self.assertRegex(out, r"EXISTS, TOO +monai/blocks/New\.py")
        self.assertEqual(err, "fork: 'monai/blocks/New.py' should be new, but MONAI 1.1.0 has such a file\n")

    def test_names_the_new_pin(self):
        self.release()
        lines = self.run_fork("rebase", "1.1.0")[1].splitlines()
        sha256 = hashlib.sha256(self.new.read_bytes()).hexdigest()
        for key, old, new in (
            ("version", "1.0.0", "1.1.0"),
            ("wheel", self.wheel.name, self.new.name),
            ("sha256", self.sha256, sha256),
        ):
            self.assertIn(f"{key} = {new}", lines)
            self.edit("setup.cfg", f"{key} = {old}", f"{key} = {new}")
        self.assertEqual(self.run_fork("build")[0], 0)
        self.assertIn("1.1.0+trial.1", (self.target / "monai/_version.py").read_text())

    def test_changes_nothing_here(self):
        self.release(a="changed\n")
        self.run_fork("build")
        before = tree(self.root)
        self.run_fork("rebase", "1.1.0")
        self.assertEqual(tree(self.root), before)

    @parameterized.expand([["1.2.0", "no wheel of monai 1.2.0"], ["latest", "'latest'"], ["1.*", "'1.*'"], ["", "''"]])
    def test_release_that_cannot_be(self, version, needed):
        self.assert_refused(needed, arguments=("rebase", version))

    def test_pin_that_does_not_fit_its_own_release(self):
        self.release()
        self.edit("setup.cfg", "monai/blocks/a.py", "monai/blocks/z.py")
        self.assert_refused("'monai/blocks/z.py'", "MONAI 1.0.0", arguments=("rebase", "1.1.0"))


if __name__ == "__main__":
    unittest.main()
