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
import json
import math
import shutil
import tempfile
import unittest
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import matplotlib.image
import nibabel
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from parameterized import parameterized

from benchmarks import ablation_picture, ablation_proj_attn, ablation_report
from benchmarks.ablation_data import FEWEST, SIDE, Slices, hold_out, load_slices, read_volume
from benchmarks.ablation_proj_attn import main, parse
from benchmarks.ablation_report import Spread, differences
from benchmarks.ablation_training import (
    NOISE,
    POINTS,
    TASKS,
    VARIANTS,
    Autoencode,
    Curves,
    Denoise,
    Result,
    pair,
    points,
    psnr,
    train,
)
from demo.volume import scan_path
from monai.networks.blocks import SABlock

torch.set_num_threads(1)

TEST_CASE_NETWORK = [(name,) for name in TASKS]
TEST_CASE_COUNT = [(FEWEST,), (13,), (24,), (25,), (100,), (256,)]
TEST_CASE_STEPS = [(1, 1), (3, 3), (POINTS, POINTS), (40, POINTS), (1000, POINTS)]
RAMP = np.linspace(0, 100, 20 * 16 * FEWEST).reshape(20, 16, FEWEST)
SETTING = {
    "command": "python -m benchmarks.ablation_proj_attn",
    "steps": 20,
    "seeds": 2,
    "data": "a.nii: 28 training, 12 held-out images",
    "machine": {"device": "one CPU thread", "torch": "torch 2"},
}


def write(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Write a NIfTI file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels.astype(np.float32), np.eye(4) if affine is None else affine), path)
    return path


def damaged(path: Path) -> None:
    """The first half of a NIfTI file."""
    content = write(path, RAMP).read_bytes()
    path.write_bytes(content[: len(content) // 2])


def with_nan(path: Path) -> None:
    """A NIfTI file with a voxel that is no number."""
    voxels = RAMP.copy()
    voxels[3, 3, 3] = math.nan
    write(path, voxels)


TEST_CASE_BAD_FILE: list[tuple[str, str, Callable[[Path], object], str]] = [
    ("empty_folder", "a", lambda path: path.mkdir(), "holds no NIfTI file"),
    ("no_nifti_in_folder", "a", lambda path: (path.mkdir(), (path / "b.png").touch()), "none that ends in .nii"),
    ("missing", "a.nii", lambda path: None, "neither a file nor a folder"),
    ("text", "a.nii", lambda path: path.write_text("slices"), "is not a readable NIfTI file"),
    ("no_gzip", "a.nii.gz", lambda path: path.write_text("slices"), "is not a readable NIfTI file"),
    ("damaged", "a.nii", damaged, "is not a readable NIfTI file"),
    ("damaged_gzip", "a.nii.gz", damaged, "is not a readable NIfTI file"),
    (
        "other_format",
        "a.mgz",
        lambda path: nibabel.save(nibabel.MGHImage(np.ones((4, 4, 4), np.float32), np.eye(4)), path),
        "is not a readable NIfTI file: it is a MGHImage",
    ),
    ("one_axis", "a.nii", lambda path: write(path, np.arange(30)), "has shape (30,): slices need two axes"),
    ("thin", "a.nii", lambda path: write(path, RAMP[:1]), "slices need two axes, with at least two pixels"),
    ("constant", "a.nii", lambda path: write(path, 0 * RAMP + 7), "is constant, every voxel is 7"),
    ("nan", "a.nii", with_nan, "not finite"),
    ("few", "a.nii", lambda path: write(path, RAMP[:, :, 1:]), f"has {FEWEST - 1} slices, too few to hold some out"),
    ("one", "a.nii", lambda path: write(path, RAMP[:, :, 3]), "has 1 slice, too few to hold some out"),
]
TEST_CASE_BAD_ARGUMENT = [
    (("--steps", "0"), "at least one step and one seed are needed, got 0 and 5"),
    (("--seeds", "0"), "at least one step and one seed are needed, got 1000 and 0"),
    (("--seeds", "-2"), "got 1000 and -2"),
    (("--png", "no_such_folder/a.png"), "no folder no_such_folder to write a.png to"),
    (("--from", __file__), "was not written by --json"),
    (("--from", "no_such.json"), "no_such.json"),
]


def run_main(*arguments: str) -> tuple[int, str, str]:
    """The command line in this process: its code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return code, out.getvalue(), err.getvalue()


def noise_slices() -> Slices:
    """Slices in which every pixel differs."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(9, 1, SIDE, SIDE, generator=generator)
    return Slices(images[:6], images[6:], "noise")


def made_up(psnrs: list[list[float]], others: list[list[float]]) -> Result:
    """A result of which everything is known; losses are twice the PSNR."""
    first = Curves(120, [[2 * x for x in row] for row in psnrs], psnrs, {"min": 0.011, "median": 0.022})
    second = Curves(100, [[2 * x for x in row] for row in others], others, {"min": 0.010, "median": 0.020})
    return Result("Net: task", [10, 20], "blurred slices", 21.5, dict(zip(VARIANTS, (first, second))))


PAIRED = made_up([[20.0, 31.0], [22.0, 32.0]], [[21.0, 30.0], [20.0, 32.5]])


class TestSlices(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)

    @parameterized.expand(TEST_CASE_COUNT)
    def test_hold_out(self, count):
        """Two blocks of neighbors, with a gap to the slices to train on, on all three parts of which there are some."""
        training, judged = hold_out(count)
        self.assertEqual(sorted(set(training) | set(judged)), sorted([*training, *judged]))
        self.assertTrue(set(training) <= set(range(count)) and set(judged) <= set(range(count)))
        self.assertEqual(sum(b - a > 1 for a, b in zip(judged, judged[1:])), 1)
        self.assertEqual(sum(b - a > 1 for a, b in zip(training, training[1:])), 2)
        apart = min(abs(a - b) for a in training for b in judged)
        self.assertEqual(apart, 1 + max(1, count // 24))
        self.assertAlmostEqual(len(judged) / count, 0.25, delta=0.1)
        self.assertGreaterEqual(len(training) / count, 0.5)

    def test_default(self):
        """Both volumes of nibabel's file, divided at the same slices; no held-out image is near one to train on."""
        slices, volume = load_slices(), read_volume(scan_path())
        training, judged = hold_out(24)
        self.assertTrue(torch.equal(slices.training, volume[training].flatten(0, 1)))
        self.assertTrue(torch.equal(slices.held_out, volume[judged].flatten(0, 1)))
        self.assertEqual(tuple(slices.training.shape[1:]), (1, SIDE, SIDE))
        self.assertEqual((len(slices.training), len(slices.held_out)), (2 * len(training), 2 * len(judged)))
        apart = torch.cdist(slices.held_out.flatten(1), slices.training.flatten(1)).min()
        again = torch.dist(volume[judged[0], 0], volume[judged[0], 1])
        self.assertGreater(float(apart), 1.5 * float(again))

    def test_read_volume(self):
        """Turned axes are turned back, the bright part fills the square, intensities are scaled as nothing else is."""
        voxels = np.zeros((40, 30, FEWEST))
        voxels[4:24, 6:16] = 50 + np.arange(20)[:, None, None] + 2 * np.arange(FEWEST)
        volume = read_volume(write(self.folder / "a.nii", voxels))
        turned = read_volume(write(self.folder / "b.nii.gz", voxels[::-1], np.diag([-1, 1, 1, 1])))
        self.assertTrue(torch.equal(volume, turned))
        self.assertEqual(tuple(volume.shape), (FEWEST, 1, 1, SIDE, SIDE))
        self.assertEqual((float(volume.min()), float(volume.max())), (0.0, 1.0))
        rows, columns = (volume.amax((0, 1, 2)) > 0.4).nonzero().T
        center = (float(rows.min() + rows.max()) / 2, float(columns.min() + columns.max()) / 2)
        for place in center:
            self.assertAlmostEqual(place, (SIDE - 1) / 2, delta=2.5)
        self.assertAlmostEqual(int(rows.max() - rows.min() + 1) / SIDE, 20 / 22, delta=0.04)
        self.assertAlmostEqual(int(columns.max() - columns.min() + 1) / SIDE, 10 / 22, delta=0.04)
        middle = volume[:, 0, 0, SIDE // 2, SIDE // 2]
        self.assertTrue(bool((middle.diff() > 0).all()))

    def test_folder(self):
        """Files at any depth; those of one slice are neighbors in the order of their names."""
        for number in range(FEWEST):
            write(self.folder / "flat" / f"{number:02}.nii", RAMP[:, :, number] + 1000 * (RAMP[:, :, 0] > 2))
        write(self.folder / "deep" / "er" / "a.nii.gz", np.stack([RAMP, RAMP**2], 3))
        (self.folder / "readme.txt").touch()
        slices = load_slices(self.folder)
        training, judged = hold_out(FEWEST)
        self.assertEqual((len(slices.training), len(slices.held_out)), (3 * len(training), 3 * len(judged)))
        alone = read_volume(self.folder / "flat" / f"{judged[1]:02}.nii")[0]
        self.assertEqual(sum(torch.equal(image, alone[0]) for image in slices.held_out), 1)
        self.assertEqual(slices.source, f"{FEWEST + 1} files in {self.folder}")

    @parameterized.expand(TEST_CASE_BAD_FILE)
    def test_bad_file(self, _, name, make, message):
        path = self.folder / name
        make(path)
        with self.assertRaises(ValueError) as caught:
            load_slices(path)
        self.assertIn(message, str(caught.exception))
        self.assertIn(str(path), str(caught.exception))


class Recorder:
    """A task that notes which network sees what."""

    title, rate, simple = "Recorder", 1e-3, "nothing"

    def __init__(self) -> None:
        self.seen: list[tuple[bool, torch.Tensor, float]] = []

    def build(self, use_proj_attn: bool) -> nn.Module:
        return SABlock(SIDE, 4, use_proj_attn=use_proj_attn)

    def loss(self, net: nn.Module, images: torch.Tensor) -> torch.Tensor:
        self.seen.append((net.use_proj_attn, images, float(torch.rand(()))))
        return F.mse_loss(self.restored(net, images), images)

    def restored(self, net: nn.Module, images: torch.Tensor) -> torch.Tensor:
        return net(images[:, 0]).unsqueeze(1)

    def simply_restored(self, images: torch.Tensor) -> torch.Tensor:
        return 0 * images


class OneVariantReconstruct(Autoencode):
    """Both variants are the same network."""

    def build(self, use_proj_attn: bool) -> nn.Module:
        return super().build(False)


class OneVariantDenoise(Denoise):
    """Both variants are the same network."""

    def build(self, use_proj_attn: bool) -> nn.Module:
        return super().build(False)


class TestTraining(unittest.TestCase):
    @parameterized.expand(TEST_CASE_NETWORK)
    def test_pair(self, name):
        """Shared weights start equal; what is not shared are the projections, and nothing else."""
        full, bare = pair(TASKS[name], 3).values()
        theirs, ours = dict(full.named_parameters()), dict(bare.named_parameters())
        self.assertTrue(all(torch.equal(weight, theirs[key]) for key, weight in ours.items()))
        extra = set(theirs) - set(ours)
        blocks = [block for block in full.modules() if isinstance(block, SABlock)]
        self.assertEqual(len(extra), 2 * len(blocks))
        self.assertTrue(all(".out_proj." in key for key in extra))
        projections = sum(weight.numel() for block in blocks for weight in block.out_proj.parameters())
        apart = sum(w.numel() for w in theirs.values()) - sum(w.numel() for w in ours.values())
        self.assertGreater(projections, 0)
        self.assertEqual(apart, projections)
        other = dict(pair(TASKS[name], 4)["without projection"].named_parameters())
        self.assertFalse(all(torch.equal(weight, other[key]) for key, weight in ours.items()))

    def test_same_data(self):
        """Images and random numbers are the same for both variants, in the same order; who goes first alternates."""
        task, state = Recorder(), torch.get_rng_state()
        result = train(task, noise_slices(), steps=4, seeds=2, advance=lambda: None)
        self.assertTrue(torch.equal(torch.get_rng_state(), state))
        self.assertEqual([projected for projected, *_ in task.seen], 2 * [True, False, False, True] * 2)
        by_variant = [
            [(x, noise) for projected, x, noise in task.seen if projected is which] for which in (True, False)
        ]
        for (x, noise), (y, other) in zip(*by_variant):
            self.assertTrue(torch.equal(x, y))
            self.assertEqual(noise, other)
        numbers = [noise for _, noise in by_variant[0]]
        self.assertEqual(len(set(numbers)), 8)
        self.assertFalse(torch.equal(by_variant[0][0][0], by_variant[0][4][0]))
        curves = result.curves["with projection"]
        self.assertEqual((len(curves.loss), len(curves.loss[0]), len(curves.psnr[1])), (2, 4, 4))
        self.assertGreater(curves.seconds["min"], 0)
        self.assertGreaterEqual(curves.seconds["median"], curves.seconds["min"])

    @parameterized.expand([("reconstruct", OneVariantReconstruct()), ("denoise", OneVariantDenoise())])
    def test_no_other_difference(self, _, task):
        """Two variants that are the same network learn exactly the same."""
        result = train(task, noise_slices(), steps=3, seeds=1, advance=lambda: None)
        self.assertEqual(differences(result, "psnr"), [[0.0, 0.0, 0.0]])
        self.assertEqual(differences(result, "loss"), [[0.0, 0.0, 0.0]])

    def test_learns(self):
        """Some steps of the denoiser, counted, make loss smaller and PSNR larger; a rerun gives the same numbers."""
        slices, calls = load_slices(), []
        first, again = (train(Denoise(), slices, 12, 1, lambda: calls.append(1)) for _ in range(2))
        self.assertEqual(len(calls), 24)
        for name, curves in first.curves.items():
            self.assertLess(curves.loss[0][-1], 0.5 * curves.loss[0][0])
            self.assertGreater(curves.psnr[0][-1], curves.psnr[0][0] + 2)
            self.assertEqual((curves.loss, curves.psnr), (again.curves[name].loss, again.curves[name].psnr))

    def test_psnr(self):
        """By hand, an image at a time; simple rules are better than nothing."""
        truth = torch.full((2, 1, 4, 4), 0.5)
        self.assertAlmostEqual(psnr(truth + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1), truth), (20 + 40) / 2, places=3)
        images = load_slices().held_out
        noise = psnr(images + NOISE * torch.randn(images.shape), images)
        self.assertGreater(psnr(Denoise().simply_restored(images), images), noise + 3)
        self.assertGreater(psnr(Autoencode().simply_restored(images), images), psnr(0 * images, images) + 3)

    @parameterized.expand(TEST_CASE_STEPS)
    def test_points(self, steps, count):
        found = points(steps)
        self.assertEqual((len(found), found[-1]), (count, steps))
        self.assertGreaterEqual(found[0], 1)

    @parameterized.expand([(0, 1), (1, 0), (-1, 1)])
    def test_no_effort(self, steps, seeds):
        with self.assertRaisesRegex(ValueError, f"got {steps} and {seeds}"):
            train(Recorder(), noise_slices(), steps, seeds, lambda: None)


class TestReport(unittest.TestCase):
    def test_differences(self):
        """Seed by seed: +1 and -0.5 in the end, whatever the spread of the variants."""
        self.assertEqual(differences(PAIRED, "psnr"), [[-1.0, 1.0], [2.0, -0.5]])
        self.assertEqual(differences(PAIRED, "loss"), [[-2.0, 2.0], [4.0, -1.0]])
        spread = ablation_report.last(differences(PAIRED, "psnr"))
        self.assertEqual(spread.mean, 0.25)
        self.assertAlmostEqual(spread.deviation, 1.5 / math.sqrt(2))
        self.assertEqual(spread.text(2, "+"), "+0.25 ± 1.06")
        self.assertEqual((Spread([3.0]).deviation, Spread([3.0]).text(1)), (None, "3.0"))

    def test_markdown(self):
        text = ablation_report.markdown([PAIRED], SETTING)
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
        self.assertEqual({len(row) for row in rows}, {7})
        self.assertEqual(rows[2][1:], ["with", "120", "63.00000 ± 1.41421", "31.50 ± 0.71", "11.0", "22.0"])
        self.assertEqual(rows[3][1:], ["without", "100", "62.50000 ± 3.53553", "31.25 ± 1.77", "10.0", "20.0"])
        self.assertEqual(rows[4][1:], ["difference", "+20", "+0.50000 ± 2.12132", "+0.25 ± 1.06", "+10.0%", "+10.0%"])
        self.assertIn("higher with projection in 1 of 2 seeds (+1.00, -0.50 dB)", text)
        self.assertIn("blurred slices have 21.50 dB", text)
        self.assertIn(SETTING["command"], text)
        self.assertIn("training loss: mean of the last 10 steps;", text)

    @parameterized.expand([("two_networks", 2, 2), ("one_network", 1, 2), ("one_seed", 2, 1)])
    def test_picture(self, _, networks, seeds):
        """What stands on the picture, and that all of it lies within."""
        result = PAIRED if seeds == 2 else made_up([[20.0, 31.0]], [[21.0, 30.0]])
        machine = {**SETTING["machine"], "processor": "Manufacturer(R) Model(R) Platinum 8272CL CPU @ 2.60GHz"}
        figure = ablation_picture.draw([result] * networks, {**SETTING, "seeds": seeds, "machine": machine})
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        losses, psnrs, paired = (figure.axes[i * networks : (i + 1) * networks] for i in range(3))
        self.assertEqual([axis.get_title() for axis in losses], ["Net: task"] * networks)
        self.assertEqual([axis.get_xlabel() for axis in paired], ["steps"] * networks)
        labels = [row[0].get_ylabel() for row in (losses, psnrs, paired)]
        self.assertEqual(labels[:2], ["training loss", "PSNR of held-out slices [dB]"])
        self.assertIn("[dB]", labels[2])
        legend = figure.legends[0]
        texts = [text.get_text() for text in legend.get_texts()]
        self.assertEqual(texts, [*VARIANTS, "difference, seed by seed"])
        self.assertIn("over 2 seeds" if seeds == 2 else "one seed", " ".join(figure.get_suptitle().split()))
        self.assertEqual(len(psnrs[0].collections), 2 if seeds == 2 else 0)
        np.testing.assert_allclose(paired[0].lines[1].get_ydata(), np.mean(differences(result, "psnr"), 0))
        (title,) = (text for text in figure.texts if text.get_text() == figure.get_suptitle())
        width, height = canvas.get_width_height()
        for part in (*figure.axes, legend, title):
            box = part.get_tightbbox(canvas.get_renderer())
            self.assertTrue(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, (part, box))


class TestCommand(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)

    def test_run(self):
        """Two seeds and networks on a user's files; what was written is enough to draw the same picture again."""
        scan = nibabel.load(scan_path())
        voxels = np.asarray(scan.dataobj)[..., 0]
        write(self.folder / "data" / "a.nii.gz", voxels[:, :, :FEWEST], scan.affine)
        write(self.folder / "data" / "b.nii", voxels[:, :, FEWEST:], scan.affine)
        out = {kind: self.folder / f"out.{kind}" for kind in ("json", "png", "markdown")}
        files = [part for kind, path in out.items() for part in (f"--{kind}", str(path))]
        data = str(self.folder / "data")
        code, printed, err = run_main("--data", data, "--steps", "2", "--seeds", "2", *files)
        self.assertEqual(code, 0, err)
        self.assertIn("ViTAutoEnc", err)
        content = json.loads(out["json"].read_text())
        self.assertEqual((content["steps"], content["seeds"], len(content["results"])), (2, 2, 2))
        for row in content["results"]:
            self.assertEqual(set(row["curves"]), set(VARIANTS))
            for curves in row["curves"].values():
                self.assertEqual(np.shape(curves["psnr"]), (2, 2))
                self.assertTrue(np.isfinite([*curves["psnr"], *curves["loss"]]).all())
            first, second = (np.array(row["curves"][name]["psnr"])[:, -1] for name in VARIANTS)
            np.testing.assert_allclose(row["difference"]["psnr"]["seeds"], first - second)
            self.assertAlmostEqual(row["difference"]["psnr"]["deviation"], float((first - second).std(ddof=1)))
        self.assertEqual(out["markdown"].read_text(), printed)
        self.assertIn(f"`python -m benchmarks.ablation_proj_attn --data {data} --steps 2 --seeds 2`", printed)
        pixels = matplotlib.image.imread(out["png"])
        self.assertGreater(min(pixels.shape[:2]), 400)
        self.assertGreater(float(pixels.std()), 0.05)

        again = self.folder / "again.png"
        code, repeated, err = run_main("--from", str(out["json"]), "--png", str(again))
        self.assertEqual((code, repeated), (0, printed), err)
        self.assertTrue(np.array_equal(matplotlib.image.imread(again), pixels))

    @parameterized.expand(TEST_CASE_BAD_ARGUMENT)
    def test_bad_argument(self, arguments, message):
        code, out, err = run_main(*arguments)
        self.assertEqual((code, out), (1, ""))
        self.assertIn("ablation failed: ", err)
        self.assertIn(message, err)

    def test_bad_data(self):
        code, _, err = run_main("--data", str(self.folder))
        self.assertEqual(code, 1)
        self.assertIn(f"ablation failed: {self.folder} holds no NIfTI file", err)

    def test_unknown_network(self):
        with self.assertRaises(SystemExit):
            run_main("--networks", "UNet")

    def test_without_tqdm(self):
        err = io.StringIO()
        with patch.object(ablation_proj_attn, "has_tqdm", False), contextlib.redirect_stderr(err):
            with ablation_proj_attn.progress("Net", 5) as advance:
                advance()
        self.assertEqual(err.getvalue(), "Net: 5 steps of both variants\n")

    def test_command(self):
        """The command names what differs from the defaults."""
        for arguments in ((), ("--steps", "7"), ("--networks", "ViTAutoEnc"), ("--seeds", "3", "--data", "a")):
            text = ablation_proj_attn.command(parse(arguments))
            self.assertEqual(vars(parse(text.split()[3:])), vars(parse(arguments)))
            self.assertEqual("--seeds" in text, "--seeds" in arguments)


if __name__ == "__main__":
    unittest.main()
