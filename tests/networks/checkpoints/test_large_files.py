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

"""Files that are larger than the memory: mapped, looked into, and written to without a change of the file."""

from __future__ import annotations

import json
import os
import re
import struct
import unittest
import zlib
from pathlib import Path

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.apps.checkpoints.inspection import inspect_checkpoint
from monai.networks.checkpoints import load_checkpoint, read_checkpoint
from tests.networks.checkpoints.file_case import FileCase
from tests.networks.checkpoints.hostile.case import dictionary, program, sparse_file, storage, tensor
from tests.networks.checkpoints.hostile.sandbox import apart, measured

torch.set_num_threads(1)
MEMORY = Path("/proc/meminfo")
ROWS = 1 << 20  # of a tensor of four gigabytes
COLUMNS = 1 << 10
NAMES = [f"blocks.{i}.weight" for i in range(10)]


def size_of_memory() -> int:
    """Bytes of this machine's memory."""
    return 1024 * int(re.search(r"MemTotal:\s+(\d+)", MEMORY.read_text())[1])


def safetensors(path: Path, names: list[str]) -> None:
    """Write tensors of zeros that take no space."""
    size = 4 * ROWS * COLUMNS
    header = {
        name: {"dtype": "F32", "shape": [ROWS, COLUMNS], "data_offsets": [i * size, (i + 1) * size]}
        for i, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    sparse_file(path, 8 + len(text) + len(names) * size)


def torch_zip(path: Path, names: list[str]) -> None:
    """The same as a zip file, whose sizes need eight bytes each; written by hand, as zipfile would write the zeros."""
    count = ROWS * COLUMNS
    tensors = {name: tensor((ROWS, COLUMNS), (COLUMNS, 1), of=storage(str(i), count)) for i, name in enumerate(names)}
    entries = [
        ("data.pkl", program(dictionary(tensors)), 0),
        *((f"data/{i}", b"", 4 * count) for i in range(len(names))),
    ]
    table, place = b"", 0
    with open(path, "wb") as file:
        for name, data, zeros in entries:
            size, label = len(data) + zeros, f"archive/{name}".encode()
            extra = struct.pack("<2H2Q", 1, 16, size, size)
            padding = -(file.tell() + 30 + len(label) + len(extra) + 4) % 64  # as torch aligns values
            extra += struct.pack("<2H", 0x4246, padding) + bytes(padding)
            common = struct.pack(
                "<5H3L2H", 45, 0, 0, 0, 0, zlib.crc32(data), 0xFFFFFFFF, 0xFFFFFFFF, len(label), len(extra)
            )
            file.write(b"PK\3\4" + common + label + extra + data)
            more = struct.pack("<2H3Q", 1, 24, size, size, place)
            table += (
                b"PK\1\2"
                + struct.pack("<H", 45)
                + common[:-2]
                + struct.pack("<4H2L", len(more), 0, 0, 0, 0, 0xFFFFFFFF)
            )
            table += label + more
            place = file.tell() + zeros
            file.seek(place)
        file.write(table)
        end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, len(entries), len(entries), len(table), place)
        locator = struct.pack("<4sLQL", b"PK\6\7", 0, place + len(table), 1)
        file.write(end + locator + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, *[0xFFFF] * 2, *[0xFFFFFFFF] * 2, 0))


FORMATS = [(safetensors,), (torch_zip,)]


@unittest.skipUnless(MEMORY.is_file(), "reads /proc")
class TestLargerThanMemory(FileCase):
    def setUp(self) -> None:
        super().setUp()
        self.names = [f"blocks.{i}.weight" for i in range(max(10, 2 * size_of_memory() // (4 * ROWS * COLUMNS)))]

    def make(self, write) -> None:
        try:
            write(self.path, self.names)
        except OSError as error:
            self.skipTest(f"no such large file here: {error}")
        self.assertGreater(self.path.stat().st_size, 40_000_000_000)
        self.assertLess(512 * self.path.stat().st_blocks, 10_000_000)

    @parameterized.expand(FORMATS)
    def test_a_look(self, write):
        self.make(write)
        outcome = apart(lambda: measured(lambda: inspect_checkpoint(self.path, values=False).networks[0]))
        self.assertEqual(outcome.value.keys, len(self.names))
        self.assertEqual(outcome.value.size, len(self.names) * 4 * ROWS * COLUMNS)
        self.assertLess(outcome.memory, 50_000_000)
        self.assertLess(outcome.seconds, 2)

    @parameterized.expand(FORMATS)
    def test_writing_to_a_tensor(self, write):
        """The process goes on, sees what it wrote, and the file is as it was."""
        self.make(write)

        def use() -> list[float]:
            first, last = (read_checkpoint(self.path).state_dict[name] for name in (self.names[0], self.names[-1]))
            last[-1] = 7
            again = read_checkpoint(self.path).state_dict[self.names[-1]]
            return [float(first[0, 0]), float(last[-1, -1]), float(last[-2, -1]), float(again[-1, -1])]

        before = self.path.stat().st_blocks
        outcome = apart(lambda: measured(use))
        self.assertEqual(outcome.value, [0, 7, 0, 0])
        self.assertLess(outcome.memory, 50_000_000)
        self.assertEqual(self.path.stat().st_blocks, before)

    @parameterized.expand(FORMATS)
    def test_a_part_that_fits(self, write):
        """One of the networks in it is loaded, of some bytes; assigning keeps the mapping, and can be trained."""
        self.names = [*self.names, "small.weight"]
        self.make(write)

        def use() -> list[float]:
            with torch.device("meta"):
                net = nn.Linear(COLUMNS, ROWS, bias=False)
            net.load_state_dict(read_checkpoint(self.path, name="small").state_dict, assign=True)
            with torch.no_grad():
                net.weight[:4].fill_(2)
            return [float(net.weight[0, 0]), float(net.weight[4, 0])]

        outcome = apart(lambda: measured(use))
        self.assertEqual(outcome.value, [2, 0])
        self.assertLess(outcome.memory, 50_000_000)


class TestValues(FileCase):
    """What of a file is read, and how often."""

    def test_of_weights_that_are_not_finite(self):
        """load_checkpoint names them; read_checkpoint does not look."""
        net = nn.Linear(3, 4)
        with torch.no_grad():
            net.weight[1, 1] = float("nan")
            net.bias[0] = float("-inf")
        for is_zip in (True, False):
            torch.save({"net": net.state_dict()}, self.path, _use_new_zipfile_serialization=is_zip)
            with self.assertWarnsRegex(
                UserWarning, f"{self.path} holds weights that are NaN or infinite.*: weight, bias"
            ):
                load_checkpoint(nn.Linear(3, 4), self.path)
            with self.assertNoLogs(), self.subTest(is_zip):
                read_checkpoint(self.path)

    @unittest.skipUnless(Path("/proc/self/io").is_file(), "reads /proc")
    def test_a_read_touches_no_values(self):
        """Pages are mapped when they are looked at: of 64 MB, a read looks at some kilobytes."""
        torch.save({"weight": torch.zeros(16, 1 << 20)}, self.path)
        outcome = apart(lambda: measured(lambda: list(read_checkpoint(self.path).state_dict)))
        self.assertEqual(outcome.value, ["weight"])
        self.assertLess(outcome.memory, 16 << 20)

    @unittest.skipUnless(Path("/proc/self/io").is_file(), "reads /proc")
    def test_a_load_reads_the_file_once(self):
        """The values are looked at while they are in memory anyway."""
        torch.save({"weight": torch.zeros(4096, 4096)}, self.path)
        os.sync()

        def use() -> float:
            with open(self.path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # as if it had never been read
            before = read_bytes()
            load_checkpoint(nn.Linear(4096, 4096, bias=False), self.path)
            return (read_bytes() - before) / self.path.stat().st_size

        self.assertLess(apart(use), 1.2)


def read_bytes() -> int:
    """Bytes that this process had the disk read."""
    return int(re.search(r"^read_bytes: (\d+)", Path("/proc/self/io").read_text(), re.MULTILINE)[1])


if __name__ == "__main__":
    unittest.main()
