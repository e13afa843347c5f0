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

import importlib.util
import json
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import matplotlib.image
import pytest
import torch
from parameterized import parameterized

from demo.__main__ import main
from demo.make_checkpoint import RECIPES

ROOT = Path(__file__).resolve().parents[2]
ROWS = ["vit", "vit3d", "inflated", "vitautoenc", "unetr", "decoder", "autoencoderkl", "generative"]
SOME_ROWS = ["vit", "inflated", "vitautoenc", "generative"]
TEST_CASE_BAD_ARGUMENT = [
    (["--rows", "vit,swin"], "no row 'swin', rows are vit, vit3d"),
    (["--device", "quantum"], "device 'quantum' does not work"),
    (["--rows", "vit", "--checkpoint", "nowhere.pt"], "nowhere.pt is missing, make it with: python -m demo"),
    (["--rows", "vit", "--checkpoint", __file__], "test_demo.py is no checkpoint of the demo"),
]


def perturb(state_dict: dict[str, torch.Tensor]) -> None:
    """Change one weight a little."""
    next(value for key, value in state_dict.items() if key.endswith(PERTURBED))[0, 0] += 0.01


def make_projections_identities(state_dict: dict[str, torch.Tensor]) -> None:
    """Make the projections that GenerativeModels never used identities, so that their use changes nothing."""
    for key, value in state_dict.items():
        if "proj_attn" in key:
            value.copy_(torch.eye(len(value)) if value.ndim == 2 else torch.zeros(len(value)))


PERTURBED = ("blocks.2.mlp.linear2.weight", "blocks.0.conv.weight")
TEST_CASE_SPOILED = [
    ("vit", "ViT", perturb, "ViT, 2-D slices: difference to the output of MONAI 1.5.2 is"),
    (
        "vit",
        "ViT",
        lambda state_dict: state_dict.pop("norm.weight"),
        "the checkpoint of MONAI 1.5.2 does not load: .*norm.weight",
    ),
    (
        "inflated",
        "ViT",
        perturb,
        "ViT, 2-D weights in 3-D: difference to the output of MONAI 1.5.2, slice by slice is",
    ),
    (
        "generative",
        "AutoencoderKL",
        perturb,
        "AutoencoderKL, pretrained: difference to the reconstruction of GenerativeModels 0.2.3 is",
    ),
    (
        "generative",
        "AutoencoderKL",
        lambda state_dict: state_dict.pop("quant_conv_mu.conv.weight"),
        "the checkpoint of GenerativeModels 0.2.3 does not load: .*quant_conv_mu.conv.weight",
    ),
    (
        "generative",
        "AutoencoderKL",
        make_projections_identities,
        "AutoencoderKL, pretrained: error as a fraction of that of the release's load_old_state_dict is 1,",
    ),
]

# Calls the demo with several lists of arguments, and prints exit codes and error texts. One process of the release for
# all of them and no scripts: these cost the most.
SEVERAL = """
import contextlib, io, json, sys
import demo.run
from demo.__main__ import main
from demo.release import Release
demo.run.scripted_difference = lambda net, inputs: 0.0
endings = []
with Release() as release:
    demo.run.Release = lambda: contextlib.nullcontext(release)
    for arguments in json.loads(sys.argv[1]):
        with contextlib.redirect_stderr(io.StringIO()) as words, contextlib.redirect_stdout(io.StringIO()):
            code = main(arguments)
        endings.append((code, words.getvalue()))
print(json.dumps(endings))
"""


def demo(*args: str | Path) -> subprocess.CompletedProcess:
    """Run the demo in a process of its own: a script that failed elsewhere would spoil its scripts."""
    command = [sys.executable, "-m", "demo", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
class TestDemo(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def test_some_rows(self):
        self.check_rows(SOME_ROWS, "--rows", ",".join(SOME_ROWS))

    @pytest.mark.grid
    def test_all_rows(self):
        self.check_rows(ROWS)

    def check_rows(self, keys: list[str], *arguments: str):
        done = demo("--output", self.folder, "--json", self.folder / "rows.json", *arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = json.loads((self.folder / "rows.json").read_text())
        self.assertEqual([row["key"] for row in rows], keys)
        for row in rows:
            self.assertEqual(row["failures"], [])
            self.assertIn(row["title"], done.stdout)
            self.assertLess(max(row["scripted"], row["release"]), 1e-5)
            self.assertLess(row["outcome"]["after"], row["outcome"]["before"])
            self.assertGreater(min(row["seconds"], row["release_seconds"], row["parameters"]), 0)
        self.assertIn("MONAI 1.5.2, strict", done.stdout)
        self.assertIn("MONAI 1.5.2, inflated", done.stdout)
        self.assertIn("GenerativeModels 0.2.3, strict", done.stdout)
        self.assertIn(rows[-1]["outcome"]["note"], done.stdout)
        same, _, better = rows[-1]["outcome"]["checks"]
        self.assertLess(same["value"], 1e-5)
        self.assertLess(better["value"], 0.9)
        self.check_picture()

    def check_picture(self):
        picture = matplotlib.image.imread(self.folder / "attention.png")[..., :3]
        self.assertGreater(min(picture.shape[:2]), 700)
        colors = torch.from_numpy(picture).flatten(0, 1).mul(255).int().unique(dim=0)
        self.assertGreater(len(colors), 500)
        for axis in (0, 1):
            for third in torch.from_numpy(picture).chunk(3, dim=axis):
                self.assertGreater(float(third.std()), 0.1)

    def spoil(self, network: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
        """A copy of a kept checkpoint with another state dict."""
        saved = torch.load(RECIPES[network].file, weights_only=True)
        change(saved["state_dict"])
        torch.save(saved, self.folder / "spoiled.pt")
        return self.folder / "spoiled.pt"

    def test_a_spoiled_checkpoint_fails(self):
        """All of them in one process: its start costs more than the rest."""
        calls = []
        for number, (row, network, change, _) in enumerate(TEST_CASE_SPOILED):
            place = self.spoil(network, change).rename(self.folder / f"spoiled{number}.pt")
            calls.append(["--rows", row, "--output", str(self.folder), "--checkpoint", str(place)])
        command = [sys.executable, "-c", SEVERAL, json.dumps(calls)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
        self.assertEqual(done.returncode, 0, done.stderr)
        endings = json.loads(done.stdout.splitlines()[-1])
        for (code, words), (_, _, _, message) in zip(endings, TEST_CASE_SPOILED, strict=True):
            self.assertEqual(code, 1, words)
            self.assertRegex(words, rf"\Ademo failed: {message}.*\n\Z")


class TestArguments(unittest.TestCase):
    @parameterized.expand(TEST_CASE_BAD_ARGUMENT)
    def test_bad_argument(self, argv, message):
        with tempfile.TemporaryDirectory() as folder, patch("sys.stderr") as stderr, patch("sys.stdout"):
            self.assertEqual(main([*argv, "--output", folder]), 1)
        words = "".join(call.args[0] for call in stderr.write.call_args_list)
        self.assertIn(message, words)
        self.assertEqual(words.strip().count("\n"), 0)

    @parameterized.expand([("matplotlib",), ("nibabel",), ("einops",)])
    def test_missing_package(self, name):
        with patch.object(importlib.util, "find_spec", side_effect=lambda n: None if n == name else object()):
            with patch("sys.stderr") as stderr:
                self.assertEqual(main([]), 1)
        words = "".join(call.args[0] for call in stderr.write.call_args_list)
        self.assertEqual(words.strip(), f"demo failed: {name} missing, run: pip install {name}")

    def test_fork_not_installed(self):
        command = [sys.executable, "-S", "-c", "import demo.__main__ as d; d.NEEDED = (); print(d.main([]))"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={}, timeout=60)
        self.assertEqual(done.stdout.strip(), "1", done.stderr)
        self.assertEqual(done.stderr, f"demo failed: the fork is not installed, run: pip install -e {ROOT}\n")


if __name__ == "__main__":
    unittest.main()
