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

"""Data of tests, on its way into the pull request of the feature that they belong to."""

from __future__ import annotations

import subprocess
import tempfile
import unittest
from fnmatch import fnmatchcase
from pathlib import Path

from parameterized import parameterized

from fork.pin import ForkError, read_pin
from fork.pulls.data import STAYS, TEST_DATA
from fork.series.data import MOST_BYTES, all_data
from fork.series.features import contract_tests
from fork.series.mail import author_of, mail
from fork.series.pull import Pull
from tests.fork.test_series import AUTHOR, SeriesCase

EVERY_BYTE = bytes(range(256)) * 3
READER = """\
import unittest
from pathlib import Path

from monai.blocks.New import TWO


class Test(unittest.TestCase):
    def test(self):
        data = (Path(__file__).parent / "testing_data" / "all bytes.pt").read_bytes()
        self.assertEqual(data, bytes(range(256)) * 3 if TWO else b"")
"""
DATA = "tests/testing_data/all bytes.pt"


class TestDataInAPullRequest(SeriesCase):
    def setUp(self):
        super().setUp()
        self.write("tests/test_new.py", READER)
        self.data(EVERY_BYTE)
        self.reads = {"tests/test_new.py": ("tests/testing_data/*.pt",)}

    def data(self, content: bytes) -> None:
        place = self.root / DATA
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(content)

    def test_it_arrives_byte_for_byte(self):
        fine, out = self.check(only=["new"])
        self.assertTrue(fine, out)
        self.assertRegex(out, r"new +\d+ +0 +0 +ok +- +ok")

    def test_data_that_nobody_declared_is_refused(self):
        self.reads = {}
        with self.assertRaisesRegex(ForkError, "'tests/test_new.py' reads tests/testing_data: say which"):
            self.check(only=["new"])

    def test_data_that_is_not_there_is_refused(self):
        self.reads = {"tests/test_new.py": ("tests/testing_data/*.json",)}
        with self.assertRaisesRegex(ForkError, "there is no such file"):
            self.check(only=["new"])

    def test_a_test_of_large_data_stays(self):
        self.data(b"0" * (MOST_BYTES + 1))
        found, stays = contract_tests(self.root, frozenset(), self.reads)
        self.assertNotIn("tests/test_new.py", found)
        self.assertIn(f"{DATA} ({MOST_BYTES + 1:,} bytes)", stays["tests/test_new.py"])
        self.data(b"0" * MOST_BYTES)
        self.assertEqual(contract_tests(self.root, frozenset(), self.reads)[0]["tests/test_new.py"], {DATA})


class TestMail(unittest.TestCase):
    @parameterized.expand([["new", None], ["changed", b"\0 old"]])
    def test_git_takes_binary_files(self, _name, old):
        files = {} if old is None else {DATA: old}
        pull = Pull("data", "Add data", "Needed.", "None.", files, {DATA: EVERY_BYTE})
        self.assertEqual(pull.changed_lines(), (0, 0))
        with tempfile.TemporaryDirectory() as name:
            who = ("-c", "user.name=x", "-c", "user.email=x@y")

            def git(*arguments: str, stdin: bytes = b"") -> None:
                subprocess.run(["git", *who, *arguments], cwd=name, check=True, input=stdin, capture_output=True)

            git("init", "-q")
            for path, content in files.items():
                Path(name, path).parent.mkdir(parents=True)
                Path(name, path).write_bytes(content)
            git("add", "--all")
            git("commit", "--allow-empty", "-qm", "Before")
            git("am", "-q", stdin=mail(pull, 1, 1, author_of(Path(name), AUTHOR)))
            self.assertEqual(Path(name, DATA).read_bytes(), EVERY_BYTE)

    def test_lines_that_git_am_would_change_are_refused(self):
        pull = Pull("windows", "Add text", "Needed.", "None.", {}, {"tests/testing_data/a.json": b"{\r\n}\r\n"})
        with self.assertRaisesRegex(ForkError, "'windows' ends in CR LF"):
            mail(pull, 1, 1, author_of(Path("."), AUTHOR))


class TestDataOfThisRepository(unittest.TestCase):
    """What is declared of each file, and what there is."""

    @classmethod
    def setUpClass(cls):
        cls.root = read_pin().root
        cls.patterns = {*STAYS, *(pattern for patterns in TEST_DATA.values() for pattern in patterns)}

    def test_each_file_is_read_by_a_contract_test_or_stays_for_a_reason(self):
        for path in all_data(self.root):
            read = any(fnmatchcase(path, pattern) for patterns in TEST_DATA.values() for pattern in patterns)
            stays = any(fnmatchcase(path, pattern) for pattern in STAYS)
            self.assertTrue(read or stays, f"{path}: see fork/pulls/data.py")

    def test_each_pattern_fits_a_file(self):
        for pattern in self.patterns:
            self.assertTrue(any(fnmatchcase(path, pattern) for path in all_data(self.root)), pattern)

    def test_each_reader_is_there(self):
        for path in TEST_DATA:
            self.assertTrue((self.root / path).is_file(), path)

    def test_data_lies_in_its_folder(self):
        """What lies elsewhere would be looked for by no rule."""
        kinds = {".py", ".pyc"}
        others = [path for path in (self.root / "tests").rglob("*") if path.is_file() and path.suffix not in kinds]
        self.assertEqual({path.relative_to(self.root).parts[1] for path in others}, {"testing_data"})


if __name__ == "__main__":
    unittest.main()
