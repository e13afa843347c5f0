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
import dataclasses
import io
import json
import tempfile
import unittest
from pathlib import Path
from unittest.mock import patch

import matplotlib.image
import pytest
import torch
from parameterized import parameterized

from benchmarks import seams, volumes
from benchmarks.__main__ import main
from benchmarks.volume_worker import Peak, VolumeTask, VolumeWorker
from benchmarks.volumes import VolumeEffort, VolumeRow, volume_checks, volume_json, volume_table

torch.set_num_threads(1)

TINY = VolumeTask("whole", 32, memory=3 * 2**20)


def row(way: str, size: int, seconds: float, operations: int, anonymous: int = 90_000_000) -> VolumeRow:
    """A made-up row."""
    exact = way != "windows"
    return VolumeRow(
        VolumeTask(way, size),
        Peak(anonymous, 50_000_000 if exact else None, operations),
        {"wall": 2 * seconds, "cpu": seconds},
        1e-6 if exact else 0.5,
        1e-6 if exact else 0.1,
    )


ROWS = [
    dataclasses.replace(row("folder", 64, 1.0, 10), seconds={}),
    row("whole", 128, 10.0, 100),
    row("folder", 128, 14.0, 101),
    row("whole", 160, 20.0, 200),
    row("windows", 160, 25.0, 700),
    row("folder", 160, 22.0, 202),
]


class TestWorker(unittest.TestCase):
    @parameterized.expand([("cpu", 1e-5), ("folder", 1e-5), ("none", 1e-5), ("windows", None)])
    def test_decode(self, way, tolerance):
        """A streamed decode is the whole one, windows are not; times and operations are measured."""
        worker = VolumeWorker()
        whole = worker.decode(TINY, 1).image
        decoded = worker.decode(dataclasses.replace(TINY, way=way), 2)
        difference, distance = volumes._differences(decoded.image, whole)
        if tolerance is None:
            self.assertGreater(distance, 0.01)
        else:
            self.assertLess(difference, tolerance)
        self.assertGreater(min(decoded.seconds.values()), 0.0)

    def test_peak(self):
        """Operations are those of torch's counter, the device's bytes those that the decode says it needs."""
        worker = VolumeWorker()
        whole, streamed = (worker.peak(dataclasses.replace(TINY, way=way)) for way in ("whole", "folder"))
        self.assertIsNone(whole.device)
        self.assertLessEqual(streamed.device, TINY.memory)
        self.assertGreaterEqual(streamed.operations, whole.operations)
        self.assertLess(streamed.operations, 1.5 * whole.operations)


class TestTable(unittest.TestCase):
    def test_table(self):
        text = volume_table(ROWS, "cpu", VolumeEffort())
        self.assertIn("| 64^3 | 50 | 90 |", text)
        self.assertIn(
            "| 160^3 | windows of half the size, release | 25.00 | 1.25x | 0.0 | 3.50x | 90 | 5.0e-01 | 10.0 % |", text
        )
        self.assertIn("| 160^3 | streamed, folder | 22.00 | 1.10x |", text)
        self.assertIn("- met: device memory grows with the voxels to the power of", text)

    def test_checks(self):
        checks = {check.what: check for check in volume_checks(ROWS, "cpu")}
        self.assertTrue(checks["160^3, folder: time over the whole decode"].met)
        self.assertAlmostEqual(checks["160^3, folder: time over windows"].value, 22 / 25)
        self.assertTrue(checks["160^3, folder: operations over windows"].met)
        missed = {check.what for check in checks.values() if not check.met}
        self.assertEqual(missed, {"128^3, folder: time over the whole decode"})
        self.assertEqual(len(volume_json(ROWS, "wall")["checks"]), len(checks))


class TestSeams(unittest.TestCase):
    def test_picture(self):
        """Parts are exact on the demo's autoencoder, windows are not."""
        found = seams.measure_seams()
        whole, streamed, *windows = found.decodes
        self.assertEqual(whole.distance, 0.0)
        self.assertLess(streamed.distance, 1e-5)
        self.assertGreater(min(decode.distance for decode in windows), 0.03)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "seams.png")
            seams.save_seams(file, found)
            self.assertGreater(matplotlib.image.imread(file).std(), 0.1)

    def test_no_file(self):
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            self.assertEqual(main(["seams"]), 1)
        self.assertIn("--png FILE", err.getvalue())


@pytest.mark.slow
class TestCommand(unittest.TestCase):
    def test_command(self):
        """Both packages decode, and the tables are printed and written."""
        out, effort = io.StringIO(), dataclasses.replace(volumes.QUICK, sizes=(32,))
        ways = {way: volumes.NAMES[way] for way in ("whole", "folder")}
        with tempfile.TemporaryDirectory() as folder:
            file, text = Path(folder, "volumes.json"), Path(folder, "volumes.md")
            with patch.object(volumes, "QUICK", effort), patch.object(volumes, "NAMES", ways):
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
                    code = main(["volumes", "--quick", "--json", str(file), "--markdown", str(text)])
            rows = json.loads(file.read_text())["rows"]
            self.assertEqual(text.read_text().strip(), out.getvalue().strip())
        self.assertEqual(code, 0)
        self.assertEqual([each["task"]["way"] for each in rows], ["whole", "folder"])
        self.assertLess(rows[1]["difference"], 1e-5)
        self.assertIn("| 32^3 | streamed, folder |", out.getvalue())


if __name__ == "__main__":
    unittest.main()
