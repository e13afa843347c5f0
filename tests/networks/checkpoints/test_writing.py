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
import errno
import os
import resource
import signal
import stat
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import torch
from parameterized import parameterized

from monai.networks.checkpoints import read_checkpoint, writing
from monai.networks.checkpoints.writing import check_target, replacing, standalone, write_checkpoint

torch.set_num_threads(1)
FORMATS = [("new.pt",), ("new.safetensors",)]
STATE = {"a.weight": torch.arange(65536.0).reshape(256, 256), "a.bias": torch.ones(256), "count": torch.tensor(3)}


@contextlib.contextmanager
def largest_file(size: int):
    """A limit of the system on files: a write beyond it fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def without_privileges():
    """Root may write anywhere: become nobody for a while."""
    if os.getuid() != 0:
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


class FolderCase(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


class TestWriting(FolderCase):
    @parameterized.expand(FORMATS)
    def test_content(self, name):
        write_checkpoint(self.folder / name, STATE)
        found = read_checkpoint(self.folder / name).state_dict
        self.assertEqual(found.keys(), STATE.keys())
        for key, value in STATE.items():
            self.assertTrue(torch.equal(found[key], value) and found[key].dtype == value.dtype, key)
        self.assertEqual(self.names(), [name])
        umask = os.umask(0)
        os.umask(umask)
        self.assertEqual(stat.S_IMODE((self.folder / name).stat().st_mode), 0o666 & ~umask)

    @parameterized.expand(FORMATS)
    def test_a_full_disk(self, name):
        for before in (None, b"the old file"):
            if before is not None:
                (self.folder / name).write_bytes(before)
            with largest_file(100_000), self.assertRaises(OSError) as caught:
                write_checkpoint(self.folder / name, STATE, overwrite=True)
            self.assertEqual(caught.exception.errno, errno.EFBIG)
            self.assertEqual(caught.exception.filename, str(self.folder / name))
            self.assertIn("nothing of it was kept", str(caught.exception))
            self.assertEqual(self.names(), [] if before is None else [name])
        self.assertEqual((self.folder / name).read_bytes(), b"the old file")

    @parameterized.expand(FORMATS)
    def test_interrupted(self, name):
        written = []
        # a shell lets what it runs in the background ignore interrupts
        self.addCleanup(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler))

        @contextlib.contextmanager
        def bar(*_):
            def advance(done: int) -> None:
                written.append(done)
                if sum(written) > 50_000:
                    signal.raise_signal(signal.SIGINT)

            yield advance

        with mock.patch.object(writing, "bar", bar), self.assertRaises(KeyboardInterrupt):
            write_checkpoint(self.folder / name, STATE)
        self.assertGreater(sum(written), 50_000)
        self.assertEqual(self.names(), [])

    @parameterized.expand(FORMATS)
    def test_progress_tells_all_bytes(self, name):
        told = []

        @contextlib.contextmanager
        def bar(label, total, wanted):
            told.append((label, total, wanted))
            yield told.append

        with mock.patch.object(writing, "bar", bar):
            write_checkpoint(self.folder / name, STATE, progress=True)
        total = sum(value.numel() * value.element_size() for value in STATE.values())
        self.assertEqual(told[0], (f"writing {name}", total, True))
        self.assertEqual(sum(told[1:]), (self.folder / name).stat().st_size)

    def test_no_tensor(self):
        with self.assertRaisesRegex(TypeError, "'b' is a str"):
            write_checkpoint(self.folder / "new.safetensors", {"a": torch.ones(2), "b": "text"})
        self.assertEqual(self.names(), [])

    def test_a_link_stays_one(self):
        (self.folder / "real.pt").write_bytes(b"old")
        (self.folder / "link.pt").symlink_to("real.pt")
        write_checkpoint(self.folder / "link.pt", STATE, overwrite=True)
        self.assertTrue((self.folder / "link.pt").is_symlink())
        self.assertEqual(read_checkpoint(self.folder / "real.pt").state_dict.keys(), STATE.keys())

    @parameterized.expand(FORMATS)
    def test_a_file_that_is_being_read(self, name):
        """Its tensors are memory-mapped: written over in place, they would change on the way."""
        path = self.folder / name
        write_checkpoint(path, STATE)
        state = read_checkpoint(path).state_dict
        write_checkpoint(path, {f"net.{key}": value for key, value in state.items()}, overwrite=True)
        found = read_checkpoint(path, name=None)
        self.assertEqual(found.wrappers, ("net.",))
        for key, value in STATE.items():
            self.assertTrue(torch.equal(found.state_dict[key], value), key)

    def test_replacing(self):
        path = self.folder / "file"
        with replacing(path) as partial:
            partial.write_text("new")
            self.assertFalse(path.exists())
        self.assertEqual(path.read_text(), "new")
        with self.assertRaises(ZeroDivisionError), replacing(path) as partial:
            partial.write_text("half")
            1 / 0  # noqa: B018
        self.assertEqual((path.read_text(), self.names()), ("new", ["file"]))


class TestTarget(FolderCase):
    @parameterized.expand([("new.txt",), ("new",), ("new.safetensor",), (".pt",)])
    def test_suffix(self, name):
        with self.assertRaisesRegex(ValueError, r"\*\.safetensors, \*\.pt, \*\.pth, \*\.ckpt"):
            check_target(self.folder / name)

    def test_exists(self):
        path = self.folder / "new.pt"
        check_target(path)
        path.touch()
        with self.assertRaisesRegex(FileExistsError, "--force"):
            check_target(path)
        check_target(path, overwrite=True)

    def test_folders(self):
        with self.assertRaisesRegex(FileNotFoundError, "no folder"):
            check_target(self.folder / "absent" / "new.pt")
        (self.folder / "new.pt").mkdir()
        with self.assertRaisesRegex(IsADirectoryError, "is a folder"):
            check_target(self.folder / "new.pt", overwrite=True)

    def test_no_ordinary_file(self):
        os.mkfifo(self.folder / "new.pt")
        with self.assertRaisesRegex(OSError, "no ordinary file"):
            check_target(self.folder / "new.pt", overwrite=True)

    def test_read_only_folder(self):
        self.folder.chmod(0o555)
        self.addCleanup(self.folder.chmod, 0o755)
        with without_privileges(), self.assertRaisesRegex(PermissionError, "cannot be written to"):
            check_target(self.folder / "new.pt")


class TestStandalone(unittest.TestCase):
    def test_memory_is_shared_and_cut(self):
        large = torch.arange(1000.0).reshape(100, 10)
        for view in (large[3:5], large[7], large[0:0], large[2, 3]):
            own = standalone(view)
            self.assertTrue(torch.equal(own, view))
            self.assertEqual(own.untyped_storage().nbytes(), 4 * view.numel())
            if view.numel():
                self.assertEqual(own.data_ptr(), view.data_ptr())
        self.assertIs(standalone("text"), "text")

    def test_what_is_not_in_one_piece(self):
        view = torch.arange(12.0).reshape(3, 4).t()
        self.assertTrue(torch.equal(standalone(view), view))
        self.assertTrue(standalone(view).is_contiguous())

    def test_the_view_outlives_the_whole(self):
        own = standalone(torch.arange(1000.0)[10:20])
        torch.full((1000,), 7.0)
        self.assertTrue(torch.equal(own, torch.arange(10.0, 20.0)))

    def test_a_file_holds_the_part_alone(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "part.pt"
            write_checkpoint(path, {"a": torch.zeros(1_000_000)[:10]})
            self.assertLess(path.stat().st_size, 4000)


if __name__ == "__main__":
    unittest.main()
