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
import random
import resource
import signal
import stat
import tempfile
import time
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from parameterized import parameterized

from monai.apps.commands import run_as_process
from monai.networks.checkpoints import read_checkpoint
from monai.networks.checkpoints.write import check_target, replacing, standalone, write_checkpoint

torch.set_num_threads(1)
FORMATS = [("new.pt",), ("new.safetensors",)]
CODES = [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
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


def fork(function: Callable[[], int | None]) -> int:
    """A child of this process, which ends with what a function gives."""
    child = os.fork()
    if child:
        return child
    code: Any = 70
    try:
        code = function()
    except SystemExit as error:
        code = error.code
    finally:
        os._exit(code)


def code_of(child: int) -> int:
    """How a child ended: its code, or a signal as a negative number."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


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

        def interrupt(done: int) -> None:
            written.append(done)
            if sum(written) > 50_000:
                signal.raise_signal(signal.SIGINT)

        with self.assertRaises(KeyboardInterrupt):
            write_checkpoint(self.folder / name, STATE, progress=interrupt)
        self.assertGreater(sum(written), 50_000)
        self.assertEqual(self.names(), [])

    @parameterized.expand(FORMATS)
    def test_progress_tells_all_bytes(self, name):
        told: list[int] = []
        write_checkpoint(self.folder / name, STATE, progress=told.append)
        self.assertEqual(sum(told), (self.folder / name).stat().st_size)

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


class TestTwoAtOnce(FolderCase):
    """Both saw that the file was not there, and began to write it."""

    def test_one_of_them_fails(self):
        path = self.folder / "new.pt"
        with (
            self.assertRaisesRegex(FileExistsError, r"another process wrote it meanwhile.*overwrite=True"),
            replacing(path) as a,
        ):
            a.write_text("late")
            with replacing(path) as b:
                b.write_text("early")
        self.assertEqual((path.read_text(), self.names()), ("early", ["new.pt"]))

    def test_the_last_one_counts_if_told_so(self):
        path = self.folder / "new.pt"
        with replacing(path, overwrite=True) as a:
            a.write_text("late")
            with replacing(path, overwrite=True) as b:
                b.write_text("early")
        self.assertEqual((path.read_text(), self.names()), ("late", ["new.pt"]))

    @parameterized.expand([(errno.EPERM,), (errno.EOPNOTSUPP,), (errno.EMLINK,)])
    def test_a_file_system_without_links(self, number):
        path = self.folder / "new.pt"
        with mock.patch("os.link", side_effect=OSError(number, "no links")):
            with replacing(path) as partial:
                partial.write_text("new")
            self.assertEqual((path.read_text(), self.names()), ("new", ["new.pt"]))
            with self.assertRaisesRegex(FileExistsError, "another process"), replacing(path) as partial:
                partial.write_text("newer")
        self.assertEqual((path.read_text(), self.names()), ("new", ["new.pt"]))

    @parameterized.expand(FORMATS)
    def test_processes(self, name):
        """Eight of them: one writes its file, whole, and seven say that they did not."""
        path, (reader, writer) = self.folder / name, os.pipe()

        def write(number: int) -> int:
            os.close(writer)
            os.read(reader, 1)  # until all are there
            try:
                write_checkpoint(path, {"a.weight": torch.full((1000, 100), float(number))})
            except FileExistsError:
                return 2
            return 0

        children = [fork(lambda number=number: write(number)) for number in range(8)]
        os.close(reader)
        os.close(writer)
        codes = [code_of(child) for child in children]
        self.assertEqual(sorted(codes), [0] + [2] * 7)
        self.assertEqual(self.names(), [name])
        winner = float(codes.index(0))
        self.assertTrue(torch.equal(read_checkpoint(path).state_dict["a.weight"], torch.full((1000, 100), winner)))


class TestSignals(FolderCase):
    """In the process of a command; the library itself leaves signals alone."""

    def command(self, name: str, pause: float) -> int:
        """Writes a file, slowly, and ends as the commands do."""
        signal.signal(signal.SIGINT, signal.default_int_handler)

        def write() -> int:
            state = {str(i): torch.ones(1000) for i in range(100)}
            try:
                write_checkpoint(self.folder / name, state, progress=lambda done: time.sleep(pause))
            except KeyboardInterrupt:
                return 130
            return 0

        run_as_process(write)

    @parameterized.expand([(name, number, code) for (name,) in FORMATS for number, code in CODES])
    def test_nothing_is_left(self, name, number, code):
        self.addCleanup(signal.signal, signal.SIGHUP, signal.signal(signal.SIGHUP, signal.SIG_DFL))  # without nohup's
        child = fork(lambda: self.command(name, 0.05))
        while not self.names():  # the part of a file
            time.sleep(0.01)
        self.assertNotEqual(self.names(), [name])
        os.kill(child, number)
        self.assertEqual(code_of(child), code)
        self.assertEqual(self.names(), [])

    @parameterized.expand(FORMATS)
    def test_at_any_time_and_several_at_once(self, name):
        draw = random.Random(0)
        codes = set()
        start = time.monotonic()
        self.assertEqual(code_of(fork(lambda: self.command(name, 0.0002))), 0)
        (self.folder / name).unlink()
        whole = time.monotonic() - start
        for _ in range(40):
            child = fork(lambda: self.command(name, 0.0002))
            time.sleep(draw.uniform(0, whole))
            for _ in range(draw.randrange(1, 4)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGTERM)
            codes.add(code_of(child))
            self.assertIn(self.names(), ([], [name]))
            if self.names():
                self.assertEqual(len(read_checkpoint(self.folder / name).state_dict), 100)
                (self.folder / name).unlink()
        self.assertLessEqual(codes, {0, 143, -signal.SIGTERM})  # the last of them before the command began
        self.assertIn(143, codes)

    def test_a_hangup_that_is_ignored(self):
        """By nohup."""

        def command() -> int:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            return self.command("new.pt", 0.001)

        child = fork(command)
        time.sleep(0.05)
        os.kill(child, signal.SIGHUP)
        self.assertEqual(code_of(child), 0)
        self.assertEqual(self.names(), ["new.pt"])

    def test_the_library_installs_no_handlers(self):
        numbers = [number for number, _ in CODES]
        before = [signal.getsignal(number) for number in numbers]
        write_checkpoint(self.folder / "new.pt", STATE)
        self.assertEqual([signal.getsignal(number) for number in numbers], before)


class TestTarget(FolderCase):
    @parameterized.expand([("new.txt",), ("new",), ("new.safetensor",), (".pt",)])
    def test_suffix(self, name):
        with self.assertRaisesRegex(ValueError, r"\*\.safetensors, \*\.pt, \*\.pth, \*\.ckpt"):
            check_target(self.folder / name)

    def test_exists(self):
        path = self.folder / "new.pt"
        check_target(path)
        path.touch()
        with self.assertRaisesRegex(FileExistsError, "overwrite=True"):
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
