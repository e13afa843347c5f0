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
import subprocess
import sys
import unittest
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

from parameterized import parameterized

import fork
from fork import packages
from fork.referee import Referee
from tests.fork.sandbox import Sandbox, tree, write_wheel

FILES = {"oldnets/__init__.py": "age = 3\n", "oldnets/nets/a.py": "a = 1\n", "tests/__init__.py": ""}


class Age:
    """Answers from the process of an old package."""

    def age(self) -> int:
        import oldnets

        return oldnets.age


class TestUnpacked(Sandbox):
    def setUp(self):
        super().setUp()
        self.old = write_wheel(self.house, "0.2.0", FILES, distribution="old_nets")
        self.pin(hashlib.sha256(self.old.read_bytes()).hexdigest())

    def pin(self, sha256: str) -> None:
        table = mock.patch.dict(packages.PACKAGES, {"old-nets==0.2.0": ("oldnets", sha256)})
        table.start()
        self.addCleanup(table.stop)

    def unpacked(self, requirement: str = "old-nets==0.2.0"):
        return packages.unpacked(requirement, self.root)

    def test_holds_the_package_as_it_is(self):
        files = tree(self.unpacked())
        self.assertEqual({path: files[path].decode() for path in FILES}, FILES)
        self.assertTrue(self.unpacked().is_relative_to(self.root / "build/packages"))
        self.assertEqual([path.name for path in (self.root / "build/packages").iterdir()], [self.unpacked().name])

    def test_is_fetched_once(self):
        home = self.unpacked()
        self.old.unlink()
        self.assertEqual(self.unpacked(), home)

    def test_of_many_callers_each_gets_the_whole_package(self):
        with ThreadPoolExecutor(4) as pool:
            homes = set(pool.map(lambda _: self.unpacked(), range(4)))
        self.assertEqual(len(homes), 1)
        self.assertEqual(list((self.root / "build/packages").glob(".*")), [])

    @parameterized.expand([["changed"], ["removed"], ["added"]])
    def test_spoiled_package_is_made_anew(self, kind):
        home = self.unpacked()
        before = tree(home)
        if kind == "changed":
            (home / "oldnets/nets/a.py").write_text("a = 2\n")
        elif kind == "removed":
            (home / "oldnets/nets/a.py").unlink()
        else:
            (home / "oldnets/b.py").touch()
        self.assertEqual(self.unpacked(), home)
        self.assertEqual(tree(home), before)

    def test_other_hash_is_refused(self):
        self.pin("0" * 64)
        with self.assertRaisesRegex(fork.ForkError, f"old-nets 0.2.0.*pin says {'0' * 64}"):
            self.unpacked()
        self.assertEqual(tree(self.root / "build"), {})

    def test_package_that_cannot_be_had_is_refused(self):
        self.old.unlink()
        with self.assertRaisesRegex(fork.ForkError, "no wheel of old-nets 0.2.0.*PIP_FIND_LINKS"):
            self.unpacked()

    def test_package_without_a_pin_is_refused(self):
        with self.assertRaisesRegex(fork.ForkError, "'old-nets==9.9'.*old-nets==0.2.0.*monai==1.0.0.*packages.py"):
            self.unpacked("old-nets==9.9")

    def test_the_release_is_the_pristine_one(self):
        self.use(self.wheel)
        self.assertEqual(self.unpacked("monai==1.0.0"), fork.pristine(self.root))


class TestEnvironment(Sandbox):
    def setUp(self):
        super().setUp()
        places = {"a==1": self.outside / "a", "b==2": self.outside / "b"}
        for number, place in enumerate(places.values()):
            (place / "oldnets").mkdir(parents=True)
            (place / "oldnets/__init__.py").write_text(f"age = {number}\n")
        lookup = mock.patch("fork.packages.unpacked", side_effect=places.__getitem__)
        lookup.start()
        self.addCleanup(lookup.stop)

    @parameterized.expand([[("a==1", "b==2"), "0"], [("b==2", "a==1"), "1"]])
    def test_the_first_package_wins(self, requirements, age):
        with mock.patch.dict(os.environ, PYTHONPATH="elsewhere", WORD="kept"):
            variables = packages.environment(*requirements)
        self.assertEqual(variables["PYTHONPATH"].split(os.pathsep)[-1], "elsewhere")
        self.assertEqual((variables["WORD"], variables["OMP_NUM_THREADS"]), ("kept", "1"))
        command = [sys.executable, "-c", "import oldnets; print(oldnets.age)"]
        self.assertEqual(subprocess.check_output(command, env=variables, text=True).strip(), age)

    def test_a_referee_can_live_there(self):
        with Referee("tests.fork.test_packages:Age", packages.environment("b==2")) as referee:
            self.assertEqual(referee.ask("age"), 1)


class TestPins(unittest.TestCase):
    @parameterized.expand([[requirement] for requirement in packages.PACKAGES])
    def test_a_pin_names_version_package_and_hash(self, requirement):
        package, sha256 = packages.PACKAGES[requirement]
        self.assertRegex(requirement, r"^[a-z-]+==[0-9.]+$")
        self.assertTrue(package.isidentifier())
        self.assertRegex(sha256, r"^[0-9a-f]{64}$")


if __name__ == "__main__":
    unittest.main()
