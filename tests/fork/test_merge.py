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
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

from parameterized import parameterized

import fork
from fork.files import put_in_place
from tests.fork.sandbox import RELEASE, Sandbox, tree, write_wheel

# what to change in the repository (file, old text, new text; None removes the file), what the error holds
TEST_CASES_REFUSED = [
    ["unlisted", [("monai/blocks/c.py", None, "c\n")], ["'monai/blocks/c.py'", "none of the lists"]],
    ["two_unlisted", [("monai/c.py", None, "c\n"), ("monai/d.cu", None, "d\n")], ["'monai/c.py'", "1 more"]],
    ["missing", [("monai/blocks/New.py", None, None)], ["'monai/blocks/New.py'", "no such file"]],
    [
        "nothing_to_replace",
        [("monai/blocks/c.py", None, "c\n"), ("setup.cfg", "it is wrong", "it is wrong\nmonai/blocks/c.py = why")],
        ["'monai/blocks/c.py'", "MONAI 1.0.0 holds no such file"],
    ],
    [
        "not_new",
        [("monai/blocks/b.py", None, "b\n"), ("setup.cfg", "it is needed", "it is needed\nmonai/blocks/b.py = why")],
        ["'monai/blocks/b.py'", "MONAI 1.0.0 has such a file"],
    ],
    [
        "twice",
        [("setup.cfg", "it is needed", "it is needed\nmonai/blocks/a.py = why")],
        ["'monai/blocks/a.py'", "both"],
    ],
    [
        "no_reason",
        [("setup.cfg", "New.py = it is needed", "New.py =")],
        ["'monai/blocks/New.py'", "without the reason"],
    ],
    [
        "hides_the_merge",
        [("monai/__init__.py", None, ""), ("setup.cfg", "it is wrong", "it is wrong\nmonai/__init__.py = why")],
        ["'monai/__init__.py'", "cannot bring"],
    ],
    ["elsewhere", [("setup.cfg", "monai/blocks/New.py", "tests/New.py")], ["'tests/New.py'", "not a file of monai/"]],
    ["outside", [("setup.cfg", "monai/blocks/New.py", "monai/../x.py")], ["'monai/../x.py'", "not a file of monai/"]],
    [
        "listed_again",
        [("setup.cfg", "it is wrong", "wrong\nmonai/blocks/a.py = again")],
        ["monai/blocks/a.py", "already"],
    ],
    ["no_label", [("setup.cfg", "label = trial.1\n", "")], ["setup.cfg lacks 'label'"]],
    ["no_section", [("setup.cfg", "[upstream:adds]", "[adds]")], ["setup.cfg lacks 'upstream:adds'"]],
    ["no_setup_cfg", [("setup.cfg", None, None)], ["setup.cfg cannot be read", "No such file"]],
    ["no_ini", [("setup.cfg", "[upstream]", "upstream")], ["setup.cfg cannot be read"]],
    ["percent", [("setup.cfg", "it is wrong", "50% wrong")], ["setup.cfg cannot be read", "%"]],
    ["label", [("setup.cfg", "trial.1", "Trial_1")], ["label 'Trial_1'"]],
    ["version", [("setup.cfg", "version = 1.0.0", "version = 1.*")], ["version '1.*'"]],
    ["sha256", [("setup.cfg", "sha256 = ", "sha256 = 0")], ["sha256 '0", "64"]],
    ["wheel", [("setup.cfg", "wheel = monai-1.0.0-", "wheel = monai-1.0.1-")], ["'monai-1.0.1-py3-none-any.whl'"]],
]

TEST_CASES_LINK = [["copies", False], ["links", True]]


class TestMerge(Sandbox):
    def setUp(self):
        super().setUp()
        self.use(self.wheel)

    def merge(self, target: Path | None = None, link: bool = False) -> Path:
        return fork.merge(target or self.target, link=link, root=self.root)

    @parameterized.expand(TEST_CASES_LINK)
    def test_holds_the_release_but_for_our_files(self, _name, link):
        self.assertEqual(self.merge(link=link), self.target)
        self.assert_merged(self.target)
        self.assertEqual((self.target / "monai/blocks/a.py").is_symlink(), link)
        self.assertFalse((self.target / "monai/blocks/b.py").is_symlink())

    def test_version(self):
        scope: dict = {}
        exec((self.merge() / "monai/_version.py").read_text(), scope)
        facts = {"date": "2026-01-02", "full-revisionid": "0123abcd", "version": "1.0.0+trial.1"}
        self.assertEqual(scope["get_versions"](), facts)

    @parameterized.expand(TEST_CASES_LINK)
    def test_up_to_date_tree_is_left_alone(self, _name, link):
        self.merge(link=link)
        cache = self.target / "monai/__pycache__/a.pyc"
        cache.parent.mkdir()
        cache.touch()
        with mock.patch("subprocess.run", side_effect=AssertionError("a second merge needs no pip")):
            start = time.monotonic()
            self.merge(link=link)
        self.assertLess(time.monotonic() - start, 1)
        self.assertTrue(cache.exists())

    def test_follows_every_change(self):
        self.merge()
        self.edit("monai/blocks/a.py", "2", "II")
        self.merge()
        self.assert_merged(self.target)
        (self.target / "monai/blocks/b.py").write_text("spoiled\n")
        (self.target / "monai/csrc/kernel.cpp").unlink()
        (self.target / "monai/stray.py").touch()
        self.merge()
        self.assert_merged(self.target)
        self.edit("setup.cfg", "trial.1", "trial.2")
        self.merge()
        self.assertIn("1.0.0+trial.2", (self.target / "monai/_version.py").read_text())

    @parameterized.expand(TEST_CASES_LINK)
    def test_removed_file_disappears(self, _name, link):
        self.merge(link=link)
        (self.root / "monai/blocks/New.py").unlink()
        self.edit("setup.cfg", "monai/blocks/New.py = it is needed\n", "")
        self.merge(link=link)
        self.assertFalse(os.path.lexists(self.target / "monai/blocks/New.py"))
        self.assertTrue((self.target / "monai/blocks/a.py").exists())

    def test_edit_is_live_in_a_linked_tree_alone(self):
        copies, links = self.merge(self.outside / "copies"), self.merge(self.outside / "links", link=True)
        self.write("monai/blocks/a.py", "edited\n")
        self.assertEqual((links / "monai/blocks/a.py").read_text(), "edited\n")
        self.assertEqual((copies / "monai/blocks/a.py").read_text(), "one\n2\nthree\nfour")

    def test_changes_between_copies_and_links(self):
        for link in (True, False, True):
            self.merge(link=link)
            self.assertEqual((self.target / "monai/blocks/New.py").is_symlink(), link)
            self.assert_merged(self.target)

    def test_links_follow_a_repository_that_moved(self):
        self.merge(link=True)
        self.root = self.root.rename(self.outside / "moved")
        self.merge(link=True)
        self.assert_merged(self.target)

    def change(self, name: str, old: str | None, new: str | None) -> None:
        if old is not None:
            self.edit(name, old, new)
        elif new is not None:
            self.write(name, new)
        else:
            (self.root / name).unlink()

    @parameterized.expand(TEST_CASES_REFUSED)
    def test_refused(self, _name, changes, needed):
        for change in changes:
            self.change(*change)
        self.assert_refused(*needed)
        self.assertFalse(self.target.exists())

    @parameterized.expand(TEST_CASES_REFUSED)
    def test_refused_beside_an_older_merge(self, _name, changes, needed):
        self.merge()
        for change in changes:
            self.change(*change)
        self.assert_refused(*needed)

    def test_hidden_files_and_caches_are_no_files_of_the_fork(self):
        for name in (
            ".DS_Store",
            ".ipynb_checkpoints/a.py",
            "blocks/.a.py.swp",
            "blocks/__pycache__/a.cpython-311.pyc",
        ):
            self.write(f"monai/{name}", "")
        self.merge()
        self.assert_merged(self.target)

    @parameterized.expand([["file"], ["folder"], ["package"], ["merge_with_notes"], ["release"], ["ours"]])
    def test_foreign_target_is_left_alone(self, kind):
        target = self.outside / "theirs"
        if kind == "file":
            target.write_text("mine\n")
        elif kind == "folder":
            (target / "monai").mkdir(parents=True)
            (target / "notes.txt").write_text("mine\n")
        elif kind == "package":
            (target / "monai").mkdir(parents=True)
            (target / "monai/__init__.py").write_text("mine\n")
        elif kind == "merge_with_notes":
            self.merge(target)
            (target / "notes.txt").write_text("mine\n")
            self.edit("setup.cfg", "trial.1", "trial.2")
        elif kind == "release":
            target = fork.pristine(self.root)
        else:
            target = self.root / "monai/blocks"
        before = tree(self.outside)
        with self.assertRaisesRegex(fork.ForkError, str(target)):
            self.merge(target)
        self.assertEqual({path: data for path, data in tree(self.outside).items() if path in before}, before)

    def test_older_merge_and_empty_folder_are_fine_targets(self):
        target = self.outside / "somewhere else"
        target.mkdir()
        self.merge(target)
        self.edit("setup.cfg", "trial.1", "trial.2")
        self.merge(target)
        self.assertIn("1.0.0+trial.2", (target / "monai/_version.py").read_text())

    def test_failure_while_writing_leaves_the_old_tree(self):
        self.merge()
        before = tree(self.target)
        self.edit("monai/blocks/a.py", "2", "II")
        with mock.patch("fork.overlay.shutil.copyfile", side_effect=OSError(28, "No space left on device")):
            self.assert_refused("No space left on device")
        self.assertEqual(tree(self.target), before)

    def test_failure_while_renaming_leaves_the_old_tree(self):
        self.merge()
        self.edit("monai/blocks/a.py", "2", "II")
        rename = os.rename

        def once(source, place):
            if Path(source).name == "new":
                raise OSError(13, "Permission denied")
            rename(source, place)

        with mock.patch("fork.files.os.rename", side_effect=once):
            self.assert_refused("Permission denied")
        self.assertTrue(self.target.exists())

    def test_release_without_a_version_is_refused(self):
        self.use(write_wheel(self.house, "1.0.0", {**RELEASE, "monai/_version.py": "version = '1.0.0'\n"}))
        self.assert_refused("monai/_version.py", "MONAI 1.0.0")

    def test_several_at_once(self):
        with ThreadPoolExecutor(4) as pool:
            homes = list(pool.map(lambda _: fork.pristine(self.root), range(4)))
            list(pool.map(lambda _: self.merge(), range(4)))
        self.assertEqual(len(set(homes)), 1)
        self.assert_merged(self.target)


class TestPutInPlace(Sandbox):
    def folder(self, name: str, text: str) -> Path:
        self.write(f"{name}/file", text)
        return self.root / name

    def test_quicker_process_wins(self):
        new, place = self.folder("scratch/new", "ours"), self.folder("place", "theirs")
        put_in_place(new, place, lambda: True)
        self.assertEqual((place / "file").read_text(), "theirs")

    def test_outdated_folder_goes_aside(self):
        new, place = self.folder("scratch/new", "ours"), self.folder("place", "theirs")
        put_in_place(new, place, lambda: False)
        self.assertEqual((place / "file").read_text(), "ours")
        self.assertEqual((self.root / "scratch/aside/file").read_text(), "theirs")

    def test_first_folder(self):
        place = self.root / "place"
        put_in_place(self.folder("scratch/new", "ours"), place, lambda: False)
        self.assertEqual((place / "file").read_text(), "ours")


if __name__ == "__main__":
    unittest.main()
