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

"""Files that hold only some definitions, on the way from the repository to the package, a patch and another release."""

from __future__ import annotations

import configparser
import re
import unittest
from pathlib import Path
from unittest import mock

from parameterized import parameterized

from fork.files import package_files
from fork.pin import read_pin
from tests.fork.sandbox import RELEASE, Sandbox, write_wheel

ROOT = Path(__file__).resolve().parents[2]
PATH = "monai/blocks/m.py"

RELEASE_M = """\
import os

# of old
def f(a):
    return a


class C(object):
    def g(self):
        return 1

    def h(self):
        return 2
"""

OUR_M = """\
\"\"\"About.\"\"\"

import os

from monai.blocks.New import new


def f(a):
    return new


class C(object):
    def g(self):
        return 3
"""

MERGED_M = """\
import os
from monai.blocks.New import new

def f(a):
    return new


class C(object):
    def g(self):
        return 3

    def h(self):
        return 2
"""

LISTED = """\
[upstream:amends]
monai/blocks/m.py = it is half
    wrong
    adds: new

[upstream:adds]
"""


class TestAmendedFile(Sandbox):
    """A repository that amends a file, from its command line."""

    def setUp(self):
        super().setUp()
        self.use(write_wheel(self.house, "1.0.0", {**RELEASE, PATH: RELEASE_M}))
        self.edit("setup.cfg", "[upstream:adds]\n", LISTED)
        self.write(PATH, OUR_M)

    def amended(self, folder: Path | None = None) -> str:
        return ((folder or self.target) / PATH).read_text()

    @parameterized.expand([["copies", []], ["links", ["--link"]]])
    def test_build(self, _name, flags):
        self.assertEqual(self.run_fork("build", *flags)[0], 0)
        self.assertEqual(self.amended(), MERGED_M)
        self.assertFalse((self.target / PATH).is_symlink())
        self.assertEqual((self.target / "monai/blocks/a.py").is_symlink(), bool(flags))
        with mock.patch("fork.overlay.put_in_place", side_effect=AssertionError("it is up to date")):
            self.assertEqual(self.run_fork("build", *flags)[0], 0)

    @parameterized.expand([["copies", []], ["links", ["--link"]]])
    def test_build_after_an_edit(self, _name, flags):
        self.run_fork("build", *flags)
        self.edit(PATH, "return 3", "return 4")
        _, out, err = self.run_fork("status")
        self.assertIn("out of date", out)
        self.assertIn(PATH, err)
        self.run_fork("build")
        self.assertEqual(self.amended(), MERGED_M.replace("return 3", "return 4"))
        self.assertEqual(self.run_fork("status")[0], 0)

    def test_between_whole_and_half(self):
        self.run_fork("build", "--link")
        amends = "[upstream:amends]\nmonai/blocks/m.py = it is half\n    wrong\n    adds: new\n"
        self.edit("setup.cfg", amends, "")
        self.edit("setup.cfg", "[upstream:replaces]\n", f"[upstream:replaces]\n{PATH} = it is wrong\n")
        self.assertEqual(self.run_fork("build")[0], 0)
        self.assertTrue((self.target / PATH).is_symlink())
        self.assertEqual(self.amended(), OUR_M)
        self.edit("setup.cfg", f"{PATH} = it is wrong\n", "")
        self.edit("setup.cfg", "[upstream:adds]\n", LISTED)
        self.assertEqual(self.run_fork("build")[0], 0)
        self.assertEqual(self.amended(), MERGED_M)

    def test_status(self):
        code, out, err = self.run_fork("status")
        self.assertEqual((code, err), (0, ""))
        self.assertRegex(out, rf"amends +1 files\n +{PATH}\n +it is half wrong\n +replaces f, C\.g\n +adds new\n")

    def test_status_without_the_release_needs_no_network(self):
        (self.root / "build/download/monai-1.0.0-py3-none-any.whl").unlink()
        with mock.patch("subprocess.run", side_effect=AssertionError("status fetches nothing")):
            code, out, _ = self.run_fork("status")
        self.assertEqual(code, 0)
        self.assertRegex(out, rf"{PATH}\n +it is half wrong\n")

    def test_status_tells_every_problem(self):
        self.edit(PATH, "def f(", "def e(")
        self.edit(PATH, "def g(", "def k(")
        code, _, err = self.run_fork("status")
        self.assertEqual(code, 1)
        for name in ("'e'", "'C.k'"):
            self.assertIn(f"'{PATH}' should replace {name}, but MONAI 1.0.0's file has no such name", err)

    @parameterized.expand(
        [
            ["vanished", PATH, "def f(", "def e(", ["should replace 'e'"]],
            ["not_new", "setup.cfg", "adds: new", "adds: new, f", ["should add 'f'"]],
            ["no_python", PATH, "def f(", "def f((", ["cannot be read as Python"]],
            ["no_file_to_amend", "setup.cfg", f"{PATH} =", "monai/blocks/n.py =", [f"'{PATH}'", "none of the lists"]],
            ["no_reason", "setup.cfg", "it is half\n    wrong", "", [f"'{PATH}'", "without the reason"]],
            ["in_two_lists", "setup.cfg", "[upstream:adds]\n", f"[upstream:adds]\n{PATH} = why\n", ["both", "amends"]],
            [
                "no_python_file",
                "setup.cfg",
                PATH,
                "monai/csrc/kernel.cpp",
                ["kernel.cpp'", "no Python file"],
            ],
        ]
    )
    def test_refused(self, _name, file, old, new, needed):
        self.run_fork("build")
        self.edit(file, old, new)
        self.assert_refused(*needed)

    def test_a_file_that_the_release_lacks(self):
        self.write("monai/blocks/n.py", OUR_M)
        self.edit("setup.cfg", "[upstream:amends]\n", "[upstream:amends]\nmonai/blocks/n.py = why\n")
        self.assert_refused("'monai/blocks/n.py' should amend a file, but MONAI 1.0.0 holds no such file")

    def test_patch_holds_the_difference_alone(self):
        place = self.outside / "p"
        self.assertEqual(self.run_fork("patch", "-o", str(place))[0], 0)
        text = place.read_text()
        self.assertIn(f"amended    {PATH}: it is half wrong\n", text)
        part = text.partition(f"diff --git a/{PATH}")[2].partition("diff --git")[0]
        changed = [line for line in part.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
        expected = ["+from monai.blocks.New import new", "-# of old", "-    return a", "+    return new"]
        self.assertEqual(changed, [*expected, "-        return 1", "+        return 3"])

    def rebase(self, m: str | None) -> tuple[int, str, str]:
        write_wheel(self.house, "1.1.0", RELEASE if m is None else {**RELEASE, PATH: m})
        return self.run_fork("rebase", "1.1.0")

    def test_rebase_tells_of_replaced_definitions_alone(self):
        code, out, err = self.rebase(RELEASE_M.replace("return 1", "return 0").replace("return 2", "return 20"))
        self.assertEqual((code, err), (0, ""))
        self.assertRegex(out, rf"unchanged +{PATH}: f\n")
        self.assertRegex(out, rf"\+1 -1 +{PATH}: C\.g\n")
        self.assertRegex(out, rf"new +{PATH}: new\n")
        self.assertIn("+        return 0\n", out)
        self.assertNotIn("return 20", out)

    def test_rebase_onto_a_release_that_lost_a_definition(self):
        code, out, err = self.rebase(RELEASE_M.replace("def g(", "def gg("))
        self.assertEqual(code, 1)
        self.assertRegex(out, rf"VANISHED +{PATH}: C\.g\n")
        self.assertIn(f"'{PATH}' should replace 'C.g', but MONAI 1.1.0's file has no such name", err)

    def test_rebase_onto_a_release_that_has_a_new_name(self):
        code, out, err = self.rebase(RELEASE_M.replace("import os\n", "import os\nfrom os import name as new\n"))
        self.assertEqual(code, 1)
        self.assertRegex(out, rf"EXISTS, TOO +{PATH}: new\n")
        self.assertIn(f"'{PATH}' should add 'new', but MONAI 1.1.0's file has it", err)

    def test_rebase_onto_a_release_that_took_a_definition(self):
        code, _, err = self.rebase(RELEASE_M.replace("return 1", "return 3"))
        self.assertEqual(code, 1)
        self.assertIn(f"'{PATH}' holds 'C.g' just as MONAI 1.1.0 does: remove it", err)

    def test_rebase_onto_a_release_without_the_file(self):
        code, out, err = self.rebase(None)
        self.assertEqual(code, 1)
        self.assertRegex(out, rf"VANISHED +{PATH}: f\n")
        self.assertIn(f"'{PATH}' should amend a file, but MONAI 1.1.0 holds no such file", err)


class TestThisRepository(unittest.TestCase):
    def test_mypy_reads_what_the_build_makes_of_amended_files(self):
        config = configparser.ConfigParser(delimiters="=")
        config.read(ROOT / "setup.cfg")
        amended = sorted(read_pin().amends)
        read = [name.strip() for name in config["mypy"]["files"].split(",")]
        self.assertEqual([name for name in read if name.endswith(".py")], [f"build/fork/{path}" for path in amended])
        passed_over = [path for path in package_files(ROOT) if re.search(config["mypy"]["exclude"], path)]
        self.assertEqual(passed_over, amended)


if __name__ == "__main__":
    unittest.main()
