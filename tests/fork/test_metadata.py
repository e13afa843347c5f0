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

import unittest

from parameterized import parameterized

import fork
from fork.metadata import read_metadata, setup_arguments, split_requirement
from fork.pin import read_pin
from tests.fork.sandbox import Sandbox

# a line of Requires-Dist, the requirement, the extra
TEST_CASES_SPLIT = [
    ["torch>=2.8.0", "torch>=2.8.0", None],
    ["numpy<3.0,>=1.24", "numpy<3.0,>=1.24", None],
    ['a; python_version < "3.11"', 'a; python_version < "3.11"', None],
    ['a>=1; extra == "all"', "a>=1", "all"],
    ["a[b]!=1 ; extra == 'some-thing'", "a[b]!=1", "some-thing"],
    ['a; python_version <= "3.10" and extra == "x"', 'a; python_version <= "3.10"', "x"],
    ['a; (os_name == "x" or os_name == "y") and extra == "z"', 'a; (os_name == "x" or os_name == "y")', "z"],
    ["extra-name>=1", "extra-name>=1", None],
]

TEST_CASES_UNKNOWN = [
    ['a; extra == "x" or extra == "y"'],
    ['a; extra == "x" and extra == "y"'],
    ['a; extra == "x" and python_version < "3.11"'],
    ['a; extra != "x"'],
    ['a; "x" == extra'],
]


class TestSplitRequirement(unittest.TestCase):
    @parameterized.expand(TEST_CASES_SPLIT)
    def test_split(self, line, requirement, extra):
        self.assertEqual(split_requirement(line), (requirement, extra))

    @parameterized.expand(TEST_CASES_UNKNOWN)
    def test_unknown_form_is_refused(self, line):
        with self.assertRaisesRegex(fork.ForkError, "unknown form") as raised:
            split_requirement(line)
        self.assertIn(line, str(raised.exception))


class TestSetupArguments(Sandbox):
    def setUp(self):
        super().setUp()
        self.use(self.wheel)

    def test_contents(self):
        tree = fork.merge(self.target, root=self.root)
        (tree / "monai/__pycache__").mkdir()
        (tree / "monai/__pycache__/a.pyc").touch()
        arguments = setup_arguments(read_pin(self.root), fork.pristine(self.root), tree)
        self.assertEqual(arguments["version"], "1.0.0+trial.1")
        self.assertEqual(arguments["package_dir"], {"": "build/fork"})
        self.assertEqual(arguments["packages"], ["monai", "monai.blocks"])
        self.assertEqual(arguments["package_data"], {"monai": ["csrc/kernel.cpp"]})
        licenses = arguments["license_files"]
        self.assertEqual(licenses[0], "LICENSE")
        self.assertEqual([(self.root / path).read_text() for path in licenses[1:]], ["free\n"])

    def test_folder_that_is_no_release(self):
        with self.assertRaisesRegex(fork.ForkError, "no unpacked wheel"):
            read_metadata(self.root)


if __name__ == "__main__":
    unittest.main()
