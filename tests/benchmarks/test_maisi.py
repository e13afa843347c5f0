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


"""MAISI as its users run it: the program that samples and decodes it whole, in windows, streamed and split."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import tempfile
import unittest
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.nn as nn
from parameterized import parameterized

from benchmarks import maisi, maisi_rank
from benchmarks.maisi import MaisiRow, Plan, difference, maisi_table, measure_maisi
from benchmarks.maisi_model import MaisiTask, autoencoder, inputs, networks, sample
from benchmarks.maisi_worker import DECODE, SAMPLING, Cost, MaisiWorker, Outcome, window
from benchmarks.processes import BenchmarkError, Processes
from monai.inferers import ControlNetLatentDiffusionInferer

torch.set_num_threads(1)

TINY = MaisiTask(size=32, steps=2, memory=2**21)
REFUSED = [
    ("scheduler", {"scheduler": "ddim"}, "scheduler='ddim' should be one of rflow, ddpm"),
    ("size", {"size": 48}, "size=48 should be a multiple of 32"),
    ("narrow", {"narrow": 16}, "narrow=16 should be 1, 2, 4 or 8"),
    ("steps", {"steps": 0}, "steps=0 and memory"),
]


class Told(nn.Module):
    """A network that is told what an inferer does not hand on."""

    def __init__(self, net: nn.Module, **more: torch.Tensor) -> None:
        super().__init__()
        self.net, self.more = net, more

    def forward(self, *args, context=None, **named):
        return self.net(*args, **{**named, **self.more})


class Undecoded(nn.Module):
    """An autoencoder that leaves latents as they are."""

    def decode_stage_2_outputs(self, z):
        return z


class TestModel(unittest.TestCase):
    def test_published_channels(self):
        """Undivided, the networks have the parameters of the published checkpoints' shapes."""
        with torch.device("meta"), patch("benchmarks.maisi_model._randomized", lambda net: net):
            task = MaisiTask(narrow=1)
            nets, net = networks(task), autoencoder(task)
        self.assertEqual(tuple(net.decoder.blocks[0].conv.conv.weight.shape), (256, 4, 3, 3, 3))
        self.assertEqual(tuple(nets.unet.conv_in.conv.weight.shape), (64, 4, 3, 3, 3))
        self.assertEqual(tuple(nets.unet.class_embedding.weight.shape), (128, 256))
        self.assertEqual(tuple(nets.control.controlnet_cond_embedding.conv_in.conv.weight.shape), (8, 8, 3, 3, 3))

    @parameterized.expand(["rflow", "ddpm"])
    def test_every_condition_counts(self, scheduler):
        """A sample depends on the mask, and on everything else that the networks are told."""
        task = dataclasses.replace(TINY, scheduler=scheduler)
        nets, given = networks(task), inputs(task)
        found = sample(task, nets, given)
        self.assertTrue(torch.equal(found, sample(task, nets, given)))
        others = [dataclasses.replace(given, mask=given.mask.flip(2) * 0.5)]
        for name, value in given.conditions.items():
            others.append(dataclasses.replace(given, conditions={**given.conditions, name: 2 * value}))
        for other in others:
            self.assertGreater(difference(sample(task, nets, other), found)[1], 1e-5)

    def test_inferer(self):
        """The inferer samples the same where it is told what it does not hand on; as it is, it cannot."""
        nets, net, given = networks(TINY), Undecoded(), inputs(TINY)
        nets.scheduler.set_timesteps(TINY.steps, input_img_size_numel=8**3)
        inferer = ControlNetLatentDiffusionInferer(nets.scheduler)
        with self.assertRaisesRegex(ValueError, "class_labels"):
            inferer.sample(given.noise, net, nets.unet, nets.control, given.mask, verbose=False)
        labels = given.conditions["class_labels"]
        control = Told(nets.control, controlnet_cond=given.mask, class_labels=labels)
        unet = Told(nets.unet, **given.conditions)
        latent = inferer.sample(given.noise, net, unet, control, given.mask, verbose=False)
        self.assertTrue(torch.equal(latent, sample(TINY, nets, given)))

    @parameterized.expand(REFUSED)
    def test_refused(self, _, options, words):
        with self.assertRaisesRegex(ValueError, words):
            MaisiTask(**options)


class TestWorker(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.whole = MaisiWorker().run(TINY, "whole", None, 1, False)

    def test_whole(self):
        self.assertEqual(self.whole.image.shape, (1, 1, 32, 32, 32))
        self.assertEqual(set(self.whole.costs), {SAMPLING, DECODE})
        self.assertGreater(self.whole.costs[DECODE].seconds["cpu"], 0.0)
        self.assertIsNone(self.whole.costs[DECODE].tensors)

    def test_streamed(self):
        """It is the whole decode, within its budget and with fewer tensors than that."""
        with patch("benchmarks.maisi_worker._load_what_stays"):  # matters to the process's memory alone
            found = MaisiWorker().run(TINY, "folder", self.whole.latent, 0, True)
        self.assertLess(max(difference(found.image, self.whole.image)), 1e-5)
        self.assertLessEqual(found.costs[DECODE].tensors, found.planned)
        self.assertLessEqual(found.planned, TINY.memory)
        self.assertNotIn(SAMPLING, found.costs)

    def test_window(self):
        self.assertEqual(window(torch.empty(1, 4, 128, 128, 128)), [64, 64, 48])


class TestTable(unittest.TestCase):
    def test_table(self):
        cost = Cost({"wall": 2.0, "cpu": 1.0}, 30_000_000, 20_000_000)
        rows = [
            MaisiRow(TINY, "release", {SAMPLING: cost, DECODE: cost}),
            MaisiRow(dataclasses.replace(TINY, sampled=False), "folder", {DECODE: cost}, 10, 1e-6, 0.25),
        ]
        lines = maisi_table(rows, "cpu").splitlines()
        self.assertEqual(lines[2], "| rflow | 32^3 | whole, release | 1.00 | 30 | 20 | 1.00 | 30 | 20 |  |  |")
        self.assertEqual(lines[3], "| none | 32^3 | streamed, folder |  |  |  | 1.00 | 30 | 20 | 1.0e-06 | 25.0 % |")

    def test_command(self):
        """The first whole volume is what the others are compared with, and whose latent they decode."""
        asked = []

        def make(task, way, latent, timed, watched, *_):
            asked.append((way, latent is not None, timed, watched))
            image = torch.ones(2) * (1.5 if way == "windows" else 1.0)
            stages = (DECODE,) if latent is not None else (SAMPLING, DECODE)
            cost = Cost({"wall": 3.0, "cpu": 3.0}, *((7, 5) if watched else ()))
            return Outcome(dict.fromkeys(stages, cost), torch.zeros(2), image)

        out = io.StringIO()
        with tempfile.TemporaryDirectory() as folder, patch.object(maisi, "_make", make):
            file, text = Path(folder, "maisi.json"), Path(folder, "maisi.md")
            words = ["--sizes", "64", "--steps", "2", "--ways", "split", "windows", "whole", "--runs", "3"]
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
                code = maisi.main([*words, "--json", str(file), "--markdown", str(text)])
            rows = json.loads(file.read_text())["rows"]
            self.assertEqual(text.read_text().strip(), out.getvalue().strip())
        self.assertEqual(code, 0)
        self.assertEqual(
            [each for each in asked if not each[3]],
            [("whole", False, 3, False), ("windows", True, 3, False), ("split", False, 3, False)],
        )
        said = "python -m benchmarks.maisi --sizes 64 --steps 2 --ways split windows whole --runs 3"
        self.assertIn(said, out.getvalue())
        self.assertEqual([row["distance"] for row in rows], [None, 0.5, 0.0])
        self.assertEqual(rows[2]["costs"][DECODE]["tensors"], 5)

    @parameterized.expand(
        [
            ("size", ["--sizes", "100"], "size=100 should be a multiple of 32"),
            ("way", ["--ways", "tiles"], "ways tiles are unknown"),
            ("ranks", ["--ranks", "1"], "ranks=1 should be at least 2"),
        ]
    )
    def test_refused(self, _, words, error):
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            self.assertEqual(maisi.main(words), 1)
        self.assertIn(error, err.getvalue())


class TestRanks(unittest.TestCase):
    def test_without_torchrun(self):
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            self.assertEqual(maisi_rank.main(["--size", "64"]), 1)
        self.assertIn("torchrun --nproc-per-node 2", err.getvalue())


@pytest.mark.distributed
@pytest.mark.grid
class TestSplit(unittest.TestCase):
    def test_split(self):
        """Two processes of torchrun make the volume that the release makes in one, with noise at every step, too."""
        with Processes() as processes, contextlib.redirect_stderr(io.StringIO()):
            for scheduler, first in (("rflow", "release"), ("ddpm", "whole")):
                task = MaisiTask(scheduler, size=64, steps=2)
                rows = measure_maisi(task, Plan((first, "split"), runs=1), processes)
                self.assertLess(max(rows[1].largest, rows[1].distance), 1e-5, scheduler)
                self.assertLess(rows[1].costs[DECODE].tensors, 0.7 * rows[0].costs[DECODE].tensors)

    def test_windows(self):
        """Windows decode another image than the whole latent."""
        whole = MaisiWorker().run(TINY, "whole", None, 1, False)
        found = MaisiWorker().run(TINY, "windows", whole.latent, 1, False)
        self.assertGreater(difference(found.image, whole.image)[1], 0.01)

    def test_too_few_slices(self):
        task, plan = MaisiTask(size=32), Plan(("split",), runs=1)
        with Processes() as processes, contextlib.redirect_stderr(io.StringIO()):
            with self.assertRaisesRegex(BenchmarkError, "2 processes: maisi_rank failed: .* too few for 2 ranks"):
                measure_maisi(task, plan, processes)


if __name__ == "__main__":
    unittest.main()
