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

import contextlib
import io
import subprocess
import tempfile
import unittest
from datetime import datetime, timezone
from pathlib import Path
from unittest import mock

from parameterized import parameterized

from fork.pin import ForkError, read_pin
from fork.pulls import TEST_DATA
from fork.series import features
from fork.series.command import Series, check_series, write_series
from fork.series.data import data_files
from fork.series.edits import Edit, above, apply, below, instead, swap
from fork.series.features import Feature, _unchanged, assigned, contract_tests, order_problems
from fork.series.fixes import MOST_LINES, Fix
from fork.series.imports import exports_only, imported_files, imported_names, packages_around
from fork.series.mail import Author, author_of, mail
from fork.series.pull import Pull, Section
from tests.fork.sandbox import Sandbox

AUTHOR = "Ada Löwe <ada@example.org>"

MODULE = """\
size = 1


class Block:
    def forward(self, x):
        y = call(
            x,
        )
        return y

    def other(self, x):
        return x
"""

EDITED = {
    "swap": (swap("m.py", "Block.forward", "return y", "return -y"), "        return -y\n\n    def other"),
    "above": (
        above("m.py", "Block.forward", "return y", "\n  y += 1\n  y += 2\n"),
        "        y += 2\n        return y\n",
    ),
    "below": (below("m.py", "Block.forward", "y = call(", "    1,"), "        y = call(\n        1,\n            x,"),
    "instead": (
        instead("m.py", "Block.forward", "y = call(", "if x:\n    y = x"),
        "        if x:\n            y = x\n        ret",
    ),
    "removed": (instead("m.py", "", "size"), "\n\nclass Block"),
    "empty lines stay": (
        above("m.py", "Block", "def other", "def a(self):\n    pass\n\n"),
        "        pass\n\n    def other",
    ),
}

MISFITS = {
    "vanished": (swap("m.py", "Block.forward", "return z", ""), "0 times"),
    "twice": (swap("m.py", "Block", "return", ""), "2 times"),
    "no such definition": (swap("m.py", "Block.backward", "x", ""), "0 definitions"),
    "no Python": (swap("m.py", "Block.forward", "return y", "return ("), "no Python"),
}

RELEASED = {"monai/__init__.py": "", "monai/blocks/__init__.py": "", "monai/blocks/a.py": "def size():\n    return 1\n"}
TEST = """\
import unittest

from monai.blocks.{} import {}


class Test(unittest.TestCase):
    def test(self):
        self.assertEqual({}, 2)
"""


class TestEdits(unittest.TestCase):
    @parameterized.expand(EDITED.items())
    def test_edit(self, _, case):
        edit, expected = case
        self.assertIn(expected, apply(MODULE, [edit]))

    @parameterized.expand(MISFITS.items())
    def test_misfit_is_refused(self, _, case):
        edit, words = case
        with self.assertRaisesRegex(ForkError, words):
            apply(MODULE, [edit])


class TestTable(unittest.TestCase):
    def test_longest_pattern_decides(self):
        patterns = {"all": ("monai/*",), "one": ("monai/a/b.py",)}
        self.assertEqual(
            assigned(["monai/a/b.py", "monai/c.py"], patterns), {"monai/a/b.py": "one", "monai/c.py": "all"}
        )

    @parameterized.expand([("nobody", ("x/*",), "no feature"), ("two", ("monai/*",), "a and b")])
    def test_path_without_owner_is_refused(self, _, pattern, words):
        with self.assertRaisesRegex(ForkError, words):
            assigned(["monai/c.py"], {"a": pattern, "b": pattern})

    def test_imports(self):
        files = {
            "monai/a/__init__.py": "from .b import B\n",
            "monai/a/b.py": "from monai.c import C\nif TYPE_CHECKING:\n    import monai.d\n",
            "monai/c.py": "def f():\n    from monai.a import B\n",
            "monai/d.py": "from .a import b\nimport torch\n",
        }

        def read(path: str) -> bytes | None:
            return files[path].encode() if path in files else None

        self.assertEqual(imported_files("monai/a/b.py", read), {"monai/c.py"})
        self.assertEqual(imported_files("monai/c.py", read), {"monai/a/__init__.py", "monai/a/b.py"})
        self.assertEqual(imported_files("monai/d.py", read), {"monai/a/b.py"})
        self.assertIn("monai/a/__init__.py", packages_around("monai/d.py", ["monai/a/b.py"]))
        self.assertEqual(packages_around("monai/a/c.py", ["monai/a/b.py", "monai/d.py"]), set())
        self.assertEqual(imported_names("monai/c.py", "monai/a/__init__.py", read), {"B"})
        self.assertEqual(imported_names("monai/d.py", "monai/a/__init__.py", read), {"b"})
        files["monai/e.py"] = "import monai.a\n"
        self.assertEqual(imported_names("monai/e.py", "monai/a/__init__.py", read), {None})
        files["monai/e.py"] = "from monai import a\n"
        self.assertEqual(imported_names("monai/e.py", "monai/a/__init__.py", read), {None})

    @parameterized.expand(
        [
            ('"""Words."""\nfrom .b import B\n\n__all__ = ["B"]\n', True),
            ("from .b import B, use\n\nuse(B)\n", False),
            ("SIZE = 1\n", False),
        ]
    )
    def test_packages_that_export_only(self, text, expected):
        self.assertEqual(exports_only(text.encode()), expected)

    def test_a_test_follows_what_it_imports(self):
        """Of an amended package the names that the release exports, too, need nothing."""
        pin = mock.Mock(amends={"monai/a/__init__.py": "why"}, new_names={"monai/a/__init__.py": ("New",)})
        files = {"tests/test_old.py": b"from monai.a import Old", "tests/test_new.py": b"from monai.a import New"}
        self.assertEqual(_unchanged(pin, "tests/test_old.py", files.get), {"monai/a/__init__.py"})
        self.assertEqual(_unchanged(pin, "tests/test_new.py", files.get), set())

    def test_features_out_of_order(self):
        first = Pull("first", "", "", "", {}, {}, depends=("second",))
        second = Pull("second", "", "", "", {}, {})
        self.assertEqual(order_problems([first, second]), {"first": "second"})
        self.assertEqual(order_problems([second, first]), {})

    def test_contract_tests(self):
        files = {
            "tests/parity/release.py": "",
            "tests/helper.py": "",
            "tests/judge.py": "import tests.parity.release\n",
            "tests/test_plain.py": "from tests.helper import x\n",
            "tests/test_taken.py": "",
            "tests/test_asks.py": "from tests.parity.release import ask\n",
            "tests/test_asks_its_helper.py": "from tests import judge\n",
            "tests/parity/test_other.py": "",
        }
        with tempfile.TemporaryDirectory() as name:
            for path, text in files.items():
                place = Path(name, path)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(text)
            found, stays = contract_tests(Path(name), frozenset({"tests/test_taken.py"}), {})
        self.assertEqual(found, {"tests/test_plain.py": {"tests/helper.py"}})
        self.assertEqual(stays.pop("tests/test_taken.py"), "since upstream has a file of this name")
        self.assertEqual([*stays], ["tests/test_asks.py", "tests/test_asks_its_helper.py"])
        self.assertIn("needs tests/judge.py", stays["tests/test_asks_its_helper.py"])


class SeriesCase(Sandbox):
    """A release of one module, a fix of it, and a fork of two parts."""

    def setUp(self):
        super().setUp()
        for path, text in RELEASED.items():
            self.release_file(path, text)
        self.write("monai/blocks/a.py", "from monai.blocks.New import TWO\n\n\ndef size():\n    return TWO\n")
        self.write("monai/blocks/New.py", "TWO = 2\n")
        self.write("tests/test_size.py", TEST.format("a", "size", "size()"))
        self.write("tests/test_new.py", TEST.format("New", "TWO", "TWO"))
        mock_styles = mock.patch("fork.series.check.installed", return_value=[])
        mock_styles.start()
        self.addCleanup(mock_styles.stop)
        self.edits: tuple[Edit, ...] = (swap("monai/blocks/a.py", "size", "1", "2"),)
        self.reads: dict[str, tuple[str, ...]] = {}
        self.entry = Section("docs/a.rst", "`Two`", "`One`\n~~~~~\n.. autoclass:: One")

    def release_file(self, path: str, text: str) -> None:
        place = self.outside / "release" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    @property
    def series(self) -> Series:
        fix = Fix("size", "Return the size", "It is wrong.", "1 is not 2.", self.edits, ("tests/test_size.py",), ())
        features = (
            Feature("new", "Add two", "Needed.", "None.", ("monai/blocks/New.py",), ("tests/test_new*",)),
            Feature("a", "Use two", "Needed.", "None.", ("monai/*",), ("tests/*",), sections=(self.entry,)),
        )
        series = Series(read_pin(self.root), (fix,), features, frozenset({"tests/__init__.py"}), self.reads)
        series.__dict__["release"] = self.outside / "release"  # without a wheel
        return series

    def check(self, **options) -> tuple[bool, str]:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            fine = check_series(self.series, author=AUTHOR, **options)
        return fine, out.getvalue()

    def upstream(self, text: str) -> Path:
        """A checkout of upstream whose module holds this text."""
        place = self.outside / "upstream"
        for path, content in {
            **RELEASED,
            "monai/blocks/a.py": text,
            "docs/a.rst": "\n..\n\n`Two`\n~~~~~\nwords\n",
        }.items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_text(content)
        who = ["-c", "user.name=x", "-c", "user.email=x@y"]
        for arguments in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "Upstream"]):
            subprocess.run(["git", *arguments], cwd=place, check=True)
        return place


class TestWrite(SeriesCase):
    def test_numbered_mails(self):
        with contextlib.redirect_stdout(io.StringIO()):
            write_series(self.series, self.outside / "pulls", AUTHOR)
        names = sorted(path.relative_to(self.outside / "pulls").as_posix() for path in self.outside.rglob("*.patch"))
        self.assertEqual(
            names, ["features/0001-Add-two.patch", "features/0002-Use-two.patch", "fixes/0001-Return-the-size.patch"]
        )
        text = (self.outside / "pulls" / names[1]).read_text()
        for line in ("Depends on: new", "Documentation: docs/a.rst", "Signed-off-by: Ada Löwe <ada@example.org>"):
            self.assertIn(f"\n{line}\n", text)

    def test_folder_in_use_is_refused(self):
        with self.assertRaisesRegex(ForkError, "not empty"):
            write_series(self.series, self.root, AUTHOR)

    def test_vanished_anchor_is_refused(self):
        self.edits = (swap("monai/blocks/a.py", "size", "3", "2"),)
        with self.assertRaisesRegex(ForkError, "'size' does not fit: .*anchor '3' 0 times"):
            write_series(self.series, self.outside / "pulls", AUTHOR)
        self.assertFalse((self.outside / "pulls").exists())

    def test_test_that_upstream_has_is_refused(self):
        series = self.series
        taken = Series(series.pin, series.fixes, series.features, frozenset({"tests/test_size.py"}))
        taken.__dict__["release"] = series.release
        with self.assertRaisesRegex(ForkError, "file 'tests/test_size.py' of its own"):
            write_series(taken, self.outside / "pulls", AUTHOR)

    def test_author(self):
        with mock.patch.dict("os.environ", {"SOURCE_DATE_EPOCH": "86400"}):
            expected = Author("Ada Löwe", "ada@example.org", datetime(1970, 1, 2, tzinfo=timezone.utc))
            self.assertEqual(author_of(self.root, AUTHOR), expected)
            with self.assertRaisesRegex(ForkError, "--author"):
                author_of(self.root, "nobody")


class TestCheck(SeriesCase):
    def test_all_is_well(self):
        fine, out = self.check()
        self.assertTrue(fine, out)
        self.assertRegex(out, r"size +\d+ +\d+ +0 +ok +- +fails +ok")
        self.assertRegex(out, r"a +\d+ +\d+ +1 +ok +- +- ")
        self.assertIn("byte for byte", out)

    def test_test_that_fails(self):
        self.write("tests/test_new.py", TEST.format("New", "TWO", "1"))
        fine, out = self.check(only=["new"])
        self.assertFalse(fine)
        self.assertIn("new: FAILED tests/test_new.py::Test::test", out)

    def test_test_that_cannot_fail(self):
        self.write("tests/test_size.py", TEST.format("a", "size", "2"))
        fine, out = self.check(only=["size"])
        self.assertFalse(fine)
        self.assertIn("tests/test_size.py passes without the patch", out)

    def test_unknown_name(self):
        with self.assertRaisesRegex(ForkError, "only size, new, a"):
            self.check(only=["b"])

    def test_onto_upstream(self):
        fine, out = self.check(onto=self.upstream(RELEASED["monai/blocks/a.py"]))
        self.assertTrue(fine, out)
        self.assertIn("0 of the files that the fork changes", out)

    def test_onto_an_upstream_that_moved_on(self):
        fine, out = self.check(onto=self.upstream("def size():\n    return 7\n"), with_tests=False)
        self.assertFalse(fine)
        self.assertIn("1 of the files that the fork changes", out)
        self.assertIn("'size' does not fit: 'size' of 'monai/blocks/a.py' holds the anchor '1' 0 times", out)
        self.assertIn("a: error: patch failed: monai/blocks/a.py:1", out)
        self.assertRegex(out, r"new +\d+ +\d+ +0 +ok")

    def test_edits_fit_where_the_patch_does_not(self):
        fine, out = self.check(onto=self.upstream("def size():\n    number = 1\n    return number\n"), only=["size"])
        self.assertTrue(fine, out)
        self.assertIn("does not apply, its edits do", out)

    def test_onto_no_repository(self):
        with self.assertRaisesRegex(ForkError, "no git repository"):
            self.check(onto=self.house)


class TestSeriesOfThisRepository(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.parts = Series(read_pin()).parts

    def test_fixes_are_small(self):
        for pull in self.parts["fixes"]:
            self.assertLessEqual(sum(pull.changed_lines()), MOST_LINES, pull.name)

    def test_features_are_small(self):
        """About so many lines: what belongs together is not cut for some more of them."""
        for pull in self.parts["features"]:
            self.assertLessEqual(pull.new_code(), 1.05 * features.MOST_LINES, pull.name)

    def test_every_pull_request_says_why(self):
        author = Author("x", "x@y", datetime.now(timezone.utc))
        for pulls in self.parts.values():
            for pull in pulls:
                text = mail(pull, 1, 1, author).decode()
                self.assertTrue(pull.purpose.strip() and pull.evidence.strip(), pull.name)
                self.assertIn(f"Subject: [PATCH 1/1] {pull.title}\n", text)
                self.assertLessEqual(len(pull.title), 76, pull.title)

    def test_test_data_goes_with_the_first_feature_that_reads_it(self):
        brought = [path for pull in self.parts["features"] for path in pull.new if not path.endswith(".py")]
        self.assertEqual(len(brought), len({*brought}))
        readers = {path for pull in self.parts["features"] for path in (*pull.tests, *pull.new)} & {*TEST_DATA}
        self.assertTrue(readers)
        self.assertEqual({*brought}, data_files(read_pin().root, readers, TEST_DATA))

    def test_features_build_on_earlier_ones(self):
        self.assertEqual(order_problems(self.parts["features"]), {})

    def test_features_end_in_the_fork(self):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            check_series(Series(read_pin()), only=["rules"], with_tests=False, in_the_end=True, author="x <x@y>")
        self.assertIn("the fork's monai/, byte for byte", out.getvalue())


if __name__ == "__main__":
    unittest.main()
