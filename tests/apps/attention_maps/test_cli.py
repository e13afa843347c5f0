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

import json
import subprocess
import sys
import tempfile
import unittest
from functools import partial
from pathlib import Path
from unittest import mock

import nibabel
import numpy as np
import torch
import torch.nn as nn
from parameterized import parameterized

from monai.apps.attention_maps.cli import main
from monai.apps.attention_maps.scan import Preparation, read_scan
from monai.networks.nets import AutoencoderKL, DecoderOnlyTransformer, DiffusionModelUNet, ViT
from monai.utils import optional_import
from monai.visualize.attention import capture_attention
from monai.visualize.attention.on_image import to_world
from tests.commands import help_and_imports, run_command
from tests.visualize.pointing import PATCH, SIZE, VIT, pointing_vit, tilted, turned_affines

torch.set_num_threads(1)

UNET = {"spatial_dims": 3, "in_channels": 1, "out_channels": 1, "num_res_blocks": 1, "channels": [4, 8]}

UNET |= {"attention_levels": [False, True], "norm_num_groups": 4, "num_head_channels": 4}

VOXEL, QUERY = (13, 2, 5), (1, 1, 1)

run = partial(run_command, main)


class CommandCase(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.config, self.ckpt, self.scan = (self.folder / name for name in ("net.json", "net.pt", "scan.nii.gz"))
        self.out = self.folder / "out.png"
        self.net = self.write_net(pointing_vit(VOXEL), VIT)
        self.affine = np.diag([-2.0, 3.0, 4.0, 1.0])
        self.write_scan(self.affine)

    def write_net(self, net: nn.Module, arguments: dict) -> nn.Module:
        target = f"monai.networks.nets.{type(net).__name__}"
        self.config.write_text(json.dumps({"network": {"_target_": target, **arguments}}))
        torch.save({"state_dict": net.state_dict()}, self.ckpt)
        return net.eval()

    def write_scan(self, affine: np.ndarray, size: tuple[int, ...] = SIZE) -> np.ndarray:
        values = np.random.default_rng(0).normal(50, 20, size).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(values, affine), self.scan)
        return values

    def arguments(self, *further: object, query: str = "1,1,1", output: Path | None = None) -> list[object]:
        fixed = ["--config", self.config, "--ckpt", self.ckpt, "--image", self.scan, "-o", output or self.out]
        return [*fixed, *(["--query", query] if query else []), *further]

    def ask(self, *further: object, **options) -> dict:
        """The object that a run which succeeds prints."""
        code, out, err = run(*self.arguments(*further, "--json", **options))
        self.assertEqual((code, err), (0, ""), out)
        return json.loads(out)

    def assert_fails(self, code: int, pattern: str, *arguments: object) -> None:
        before = sorted(self.folder.iterdir())
        found, out, err = run(*arguments)
        self.assertEqual((found, out), (code, ""), err)
        self.assertRegex(err, f"^error: {pattern}")
        self.assertNotIn("Traceback", err)
        found, out, err = run(*arguments, "--json")
        self.assertEqual((found, err), (code, ""))
        self.assertRegex(json.loads(out)["error"], f"^{pattern}")
        self.assertEqual(sorted(self.folder.iterdir()), before)


class TestOutputs(CommandCase):
    def test_figures(self):
        answer = self.ask()
        self.assertEqual((answer["exit_code"], answer["network"], answer["files"]), (0, "ViT", [str(self.out)]))
        self.assertEqual((answer["orientation"], answer["image_size"]), ("LAS", list(SIZE)))
        (layer,) = answer["layers"]
        self.assertEqual((layer["layer"], layer["grid"], layer["head"]), ("blocks.0.attn", [4, 3, 4], None))
        self.assertEqual((layer["query"], layer["token"], layer["voxel"]), ("1,1,1", 0, [14, 2, 5]))
        self.assertEqual(layer["world"], [-28.0, 6.0, 20.0])
        net = ViT(**VIT).eval()
        net.load_state_dict(torch.load(self.ckpt)["state_dict"])
        values = torch.as_tensor(nibabel.load(self.scan).get_fdata(dtype=np.float32))
        image = (values - values.min()) / (values.max() - values.min())
        with torch.no_grad(), capture_attention(net, queries=[QUERY]) as capture:
            net(image[None, None])
        row = capture.maps[0].on_grid()[0, 0, 0].double()
        self.assertAlmostEqual(layer["maximum"], float(row.max()), places=6)
        self.assertAlmostEqual(layer["on_grid"], 1.0, places=5)
        self.assertAlmostEqual(layer["entropy"], float(-(row * row.log()).sum()), places=5)
        self.assertGreaterEqual(answer["seconds"], 0)
        self.assertGreater(answer["peak_mib"], 50)
        self.assertEqual(self.out.read_bytes()[:4], b"\x89PNG")

    def test_text(self):
        code, out, err = run(*self.arguments())
        self.assertEqual((code, err), (0, ""))
        for words in (
            "ViT, rows, image 16 x 12 x 8 (LAS)",
            "blocks.0.attn",
            "14,2,5",
            "-28.0,6.0,20.0",
            "s in the network",
        ):
            self.assertIn(words, out)

    def test_json_file(self):
        file = self.folder / "figures.json"
        code, out, _ = run(*self.arguments("--json", file))
        self.assertEqual((code, json.loads(file.read_text())["layers"][0]["voxel"]), (0, [14, 2, 5]))
        self.assertIn("blocks.0.attn", out)
        code, _, err = run(*self.arguments("--json", file, output=self.folder / "other.png"))
        self.assertEqual(code, 2)
        self.assertRegex(err, "figures.json' exists")
        self.assertFalse((self.folder / "other.png").exists())

    @parameterized.expand([(".npy",), (".npz",), (".nii",)])
    def test_suffixes(self, suffix):
        path = self.folder / f"out{suffix}"
        self.ask(output=path)
        if suffix == ".nii":
            self.assertTrue(np.allclose(nibabel.load(path).affine, self.affine))
            return
        loaded = np.load(path)
        array = loaded if suffix == ".npy" else loaded["blocks.0.attn"][None]
        self.assertEqual(array.shape, (1, 1, 4, 3, 4))
        self.assertEqual(np.unravel_index(array.argmax(), array.shape), (0, 0, 3, 0, 2))

    def test_several_queries(self):
        self.write_net(pointing_vit(VOXEL, classification=True), {**VIT, "classification": True})
        answer = self.ask("--query", "9,9,5", "--query", "class", output=self.folder / "out.npy")
        self.assertEqual(
            [Path(file).name for file in answer["files"]], ["out_1-1-1.npy", "out_9-9-5.npy", "out_class.npy"]
        )
        self.assertEqual([layer["token"] for layer in answer["layers"]], [1, 1 + 2 * 12 + 2 * 4 + 2, 0])
        for file in answer["files"]:
            self.assertEqual(np.load(file).shape, (1, 1, 4, 3, 4))

    def test_heads(self):
        arguments = {**VIT, "hidden_size": 16, "num_heads": 2}
        self.write_net(pointing_vit(VOXEL, **arguments), arguments)
        path = self.folder / "out.nii.gz"
        answer = self.ask("--heads", "all", output=path)
        self.assertEqual([layer["head"] for layer in answer["layers"]], [0, 1])
        self.assertEqual(nibabel.load(path).shape, (*SIZE, 2))
        one = self.ask("--heads", "1", "--force", output=path)["layers"]
        self.assertEqual(one, answer["layers"][1:])
        self.assertEqual(nibabel.load(path).shape, SIZE)

    def test_force(self):
        self.out.write_bytes(b"before")
        self.assert_fails(2, ".*out.png' exists: name another file, or pass --force", *self.arguments())
        self.assertEqual(self.out.read_bytes(), b"before")
        self.ask("--force")
        self.assertEqual(self.out.read_bytes()[:4], b"\x89PNG")

    @unittest.skipUnless(optional_import("tqdm")[1], "the bar needs tqdm, which MONAI does without")
    def test_progress(self):
        code, _, err = run(*self.arguments("--progress"))
        self.assertEqual(code, 0)
        self.assertIn("blocks.0.attn", err)
        self.assertIn("done: 100%", err)

    def test_help_imports_nothing(self):
        """Beyond ``import monai``, so that it costs no more."""
        self.assertRegex(help_and_imports("monai.visualize.attention"), r"usage: (.|\n)*\nimported: \[\]\n$")

    def test_help(self):
        code, out, _ = run("--help")
        self.assertEqual(code, 0)
        for words in ("--config NET_CONFIG", "--query X,Y,Z", "exit codes:", "*.nii.gz", "rollout"):
            self.assertIn(words, out)
        self.assertTrue(all(len(line) <= 120 for line in out.splitlines()))


class TestOrientation(CommandCase):
    @parameterized.expand([(0, ""), (13, ""), (22, "RAS"), (47, "RAS"), (30, "LPS")])
    def test_peak_in_the_world(self, number, orientation):
        """The network looks at one voxel of what it is given; nibabel finds it at the same place of the world."""
        affine = tilted(turned_affines()[number])
        codes = nibabel.aff2axcodes(affine)
        order = [next(i for i, code in enumerate(codes) if code in pair) for pair in ("LR", "PA", "IS")]
        shape = np.empty(3, int)
        shape[order if orientation else [0, 1, 2]] = SIZE
        size = tuple(int(n) for n in shape)
        self.write_scan(affine, size)
        path = self.folder / "out.nii.gz"
        options = ["--orientation", orientation] if orientation else []
        answer = self.ask(*options, "--mode", "nearest", output=path, query="1,1,1")
        volume = nibabel.load(path)
        self.assertEqual(volume.shape, SIZE)
        self.assertEqual("".join(nibabel.aff2axcodes(volume.affine)), orientation or "".join(codes))
        target = nibabel.orientations.axcodes2ornt(orientation or codes)
        turned = nibabel.load(self.scan).as_reoriented(
            nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), target)
        )
        self.assertTrue(np.allclose(volume.affine, turned.affine, atol=1e-4))
        peak = np.argwhere(volume.get_fdata() > 0.5)
        cell = [(v // p + 0.5) * p - 0.5 for v, p in zip(VOXEL, PATCH)]
        world = nibabel.affines.apply_affine(turned.affine, cell)
        self.assertTrue(np.allclose(nibabel.affines.apply_affine(volume.affine, peak).mean(0), world, atol=1e-3))
        self.assertTrue(np.allclose(answer["layers"][0]["world"], to_world(turned.affine, [14, 2, 5]), atol=1e-3))
        query = np.linalg.solve(turned.affine, affine @ [1, 1, 1, 1])[:3].round().astype(int)
        token = np.ravel_multi_index(query // PATCH, (4, 3, 4))
        self.assertEqual(answer["layers"][0]["token"], token)

    @parameterized.expand([("resize", (32, 24, 8), (3, 3, 1)), ("crop", (20, 12, 8), (3, 1, 1))])
    def test_size(self, fit, size, query):
        self.write_scan(self.affine, size)
        path = self.folder / "out.nii.gz"
        answer = self.ask("--fit", fit, output=path, query=",".join(map(str, query)))
        self.assertEqual(answer["layers"][0]["token"], 0)
        self.assertRegex(answer["notes"][0], f"voxels was brought to 16 x 12 x 8 by --fit {fit}")
        volume = nibabel.load(path)
        self.assertEqual(volume.shape, SIZE)
        center = [(n - 1) / 2 for n in SIZE]
        of_file = nibabel.affines.apply_affine(self.affine, [(n - 1) / 2 for n in size])
        self.assertTrue(np.allclose(nibabel.affines.apply_affine(volume.affine, center), of_file, atol=1e-4))

    def test_spacing(self):
        self.write_scan(np.diag([4.0, 4.0, 4.0, 1.0]), (4, 3, 4))
        path = self.folder / "out.nii"
        self.ask("--spacing", "1", "1", "2", "--fit", "crop", output=path)
        self.assertTrue(np.allclose(nibabel.affines.voxel_sizes(nibabel.load(path).affine), (1, 1, 2)))

    def test_intensities(self):
        values = self.write_scan(self.affine)
        scaled = read_scan(self.scan, 3, 1, Preparation(percentiles=(10, 90))).image
        low, high = np.percentile(values, (10, 90))
        self.assertTrue(np.allclose(scaled[0].numpy(), ((values - low) / (high - low)).clip(0, 1), atol=1e-4))
        self.assertTrue(
            np.array_equal(read_scan(self.scan, 3, 1, Preparation(percentiles=None)).image[0].numpy(), values)
        )

    def test_values_that_are_not_finite(self):
        values = self.write_scan(self.affine)
        values[0, 0, :2] = np.nan, np.inf
        nibabel.save(nibabel.Nifti1Image(values, self.affine), self.scan)
        self.assertRegex(self.ask()["notes"][0], "2 voxels of scan.nii.gz are not finite")


class TestNetworks(CommandCase):
    def test_diffusion(self):
        net = self.write_net(DiffusionModelUNet(**UNET), UNET)
        self.write_scan(self.affine, (8, 8, 6))
        answer = self.ask("--timestep", "5", "--layers", "*middle_block*")
        self.assertEqual([layer["grid"] for layer in answer["layers"]], [[4, 4, 3]])
        self.assertEqual(
            answer["layers"][0]["layer"],
            next(n for n, m in net.named_modules() if "middle" in n and hasattr(m, "to_q")),
        )
        self.assert_fails(
            2, "DiffusionModelUNet needs the time .* --timestep N", *self.arguments(output=self.folder / "b.png")
        )
        self.write_scan(self.affine, (7, 8, 6))
        pattern = "--size 7 8 6 does not fit: this network takes multiples of 2"
        self.assert_fails(2, pattern, *self.arguments("--timestep", "5", output=self.folder / "b.png"))

    def test_conditioned_diffusion(self):
        arguments = {**UNET, "with_conditioning": True, "cross_attention_dim": 6}
        self.write_net(DiffusionModelUNet(**arguments), arguments)
        self.write_scan(self.affine, (8, 8, 6))
        inputs = self.folder / "inputs.pt"
        torch.save({"context": torch.rand(1, 5, 6)}, inputs)
        answer = self.ask("--timestep", "5", "--inputs", inputs)
        self.assertTrue(answer["layers"] and all("attn1" in layer["layer"] for layer in answer["layers"]))
        self.assertTrue(all("attn2 is left out: its keys lie on no grid" in note for note in answer["notes"]))
        other = self.folder / "b.png"
        pattern = "the keys of .*attn2.* lie on no grid of the image: choose other --layers"
        options = ["--timestep", "5", "--inputs", inputs]
        self.assert_fails(2, pattern, *self.arguments(*options, "--layers", "*attn2", output=other))
        torch.save({"word": torch.rand(1, 5, 6)}, inputs)
        self.assert_fails(
            2, "DiffusionModelUNet takes no word: its arguments are", *self.arguments(*options, output=other)
        )
        self.assert_fails(
            2, "context should be given.*with_conditioning=True", *self.arguments(*options[:2], output=other)
        )

    def test_autoencoder(self):
        arguments = {key: value for key, value in UNET.items() if key != "num_head_channels"} | {"latent_channels": 2}
        self.write_net(AutoencoderKL(**arguments), arguments)
        self.write_scan(self.affine, (8, 8, 6))
        first, second = (self.ask("--force")["layers"] for _ in range(2))
        self.assertEqual({tuple(layer["grid"]) for layer in first}, {(4, 4, 3)})
        self.assertEqual(first, second)  # the seed fixes the latent's noise

    @parameterized.expand([("rollout",), ("relevance",)])
    def test_through_the_layers(self, method):
        arguments = {**VIT, "classification": True, "num_classes": 3, "num_layers": 2}
        torch.manual_seed(0)
        self.write_net(ViT(**arguments), arguments)
        answer = self.ask("--method", method, "--query", "9,9,5", output=self.folder / "out.npy")
        self.assertEqual([layer["layer"] for layer in answer["layers"]], [method] * 2)
        self.assertEqual([layer["token"] for layer in answer["layers"]], [1, 35])
        arrays = [np.load(file) for file in answer["files"]]
        self.assertGreater(abs(arrays[0] - arrays[1]).max(), 0)
        if method == "relevance":
            target = self.ask("--method", method, "--target", "0", output=self.folder / "target.npy", query="class")
            self.assertEqual(target["layers"][0]["token"], 0)

    def test_relevance_needs_classes(self):
        self.assert_fails(2, "relevance explains a class", *self.arguments("--method", "relevance"))


class TestErrors(CommandCase):
    @parameterized.expand(
        [
            (
                "layer",
                ["--layers", "absent"],
                2,
                "--layers: no attention block matches 'absent'.*blocks: blocks.0.attn",
            ),
            ("class token", ["--query", "class"], 2, r"the blocks \['blocks.0.attn'\] have no class token"),
            (
                "far query",
                ["--query", "1,99,1"],
                2,
                r"--query 1,99,1 lies outside of the scan: its voxels are 0..15, 0..11",
            ),
            ("flat query", ["--query", "1,1"], 2, "--query 1,1 lies outside of the scan"),
            ("words", ["--query", "here"], 2, ".*'here' should be voxel coordinates as 64,48,12, or class"),
            ("heads", ["--heads", "few"], 2, ".*'few' should be mean, all or the number of a head"),
            ("head", ["--heads", "7"], 2, "'blocks.0.attn' has 1 heads, there is no 7"),
            ("volume", ["--volume", "1"], 2, "--volume 1 does not exist: the scan has 1"),
            ("slice", ["--slice", "1"], 2, "the scan has 3 axes and the network takes 3: leave out --slice"),
            ("orientation", ["--orientation", "RAX"], 2, "--orientation RAX should be 3 of the letters"),
            ("spacing", ["--spacing", "1", "1"], 2, ".*give 1 or 3"),
            ("size", ["--size", "8"], 2, "--size 8 8 8 does not fit: the network was built for img_size"),
            ("percentiles", ["--percentiles", "9", "101"], 2, ".*101 should lie in 0..100"),
            ("target", ["--target", "1"], 2, "--target 1 is for --method relevance"),
            ("timestep", ["--timestep", "5"], 2, "ViT takes no timesteps"),
            ("device", ["--device", "nowhere"], 2, "--device nowhere cannot be used here"),
            ("option", ["--colour"], 2, ".*--colour.*See .* --help"),
        ]
    )
    def test_options(self, _, options, code, pattern):
        query = "" if "--query" in options else "1,1,1"
        self.assert_fails(code, pattern, *self.arguments(*options, query=query))

    def test_missing(self):
        self.assert_fails(2, "--query is missing: name a voxel", *self.arguments(query=""))
        for name, pattern in (
            ("scan", "there is no image '.*scan.nii.gz': name a file"),
            ("ckpt", ".*net.pt does not exist"),
            ("config", "there is no configuration '.*net.json'"),
        ):
            getattr(self, name).unlink()
            self.assert_fails(2, pattern, *self.arguments())

    def test_output(self):
        pattern = r".*out.jpg' has no suffix that tells a format: name it \*.png, \*.npy"
        self.assert_fails(2, pattern, *self.arguments(output=self.folder / "out.jpg"))
        self.assert_fails(2, "there is no folder", *self.arguments(output=self.folder / "absent" / "out.png"))
        with mock.patch("monai.visualize.attention.saving.optional_import", return_value=(None, False)):
            self.assert_fails(2, "matplotlib draws figures and is not installed: pip install", *self.arguments())

    @parameterized.expand([("text", b"no image"), ("empty", b""), ("cut", None)])
    def test_unreadable_scan(self, _, content):
        self.scan.write_bytes(self.scan.read_bytes()[:600] if content is None else content)
        self.assert_fails(2, ".*scan.nii.gz cannot be read as an image: ", *self.arguments())

    def test_axes_and_channels(self):
        self.write_scan(self.affine, (16, 12))
        self.assert_fails(2, "the scan has 2 axes and the network takes 3: it is for other images", *self.arguments())
        self.write_scan(self.affine, (*SIZE, 2))
        self.assert_fails(2, "the network takes 1 channels and the scan has 2: .* --volume 0", *self.arguments())
        flat = {**VIT, "img_size": SIZE[:2], "patch_size": PATCH[:2], "spatial_dims": 2}
        self.write_net(pointing_vit(VOXEL[:2], **flat), flat)
        self.write_scan(self.affine)
        self.assert_fails(
            2, "the scan has 3 axes and the network takes 2: choose a plane with --slice N", *self.arguments()
        )
        self.assert_fails(2, "--slice 8 does not exist: the last axis has 8", *self.arguments("--slice", "8"))
        pattern = r"--query 1,1,1 lies outside of what the network sees, the voxels 0..15, 0..11, 2..2 of the scan"
        self.assert_fails(2, pattern, *self.arguments("--slice", "2"))
        self.ask("--slice", "1")

    def test_query_that_is_cut_off(self):
        self.write_scan(self.affine, (20, 12, 8))
        self.assert_fails(
            2, ".*the network sees, the voxels 2..17, 0..11, 0..7 of the scan: choose", *self.arguments("--fit", "crop")
        )

    def test_voxels_are_those_of_the_file(self):
        """Where the network sees the middle of a scan, queries, reports and titles count from the scan's corner."""
        self.write_scan(self.affine, (20, 12, 8))
        with mock.patch("monai.apps.attention_maps.attending.save_attention") as save:
            found = self.ask("--fit", "crop", query="3,1,1")
        self.assertEqual(found["layers"][0]["query"], "3,1,1")
        self.assertEqual(found["layers"][0]["voxel"], [16, 2, 5])  # 14, 2, 5 of what the network sees
        self.assertEqual(save.call_args.kwargs["name_voxel"]((1, 1, 1)), (3, 1, 1))

    def test_networks(self):
        self.config.write_text(json.dumps({"_target_": "monai.networks.nets.BasicUNet", "spatial_dims": 3}))
        self.assert_fails(2, "BasicUNet holds no attention block", *self.arguments())
        decoder = {
            "num_tokens": 7,
            "max_seq_len": 9,
            "attn_layers_dim": 8,
            "attn_layers_depth": 1,
            "attn_layers_heads": 2,
        }
        self.write_net(DecoderOnlyTransformer(**decoder), decoder)
        self.assert_fails(2, ".*lie on no grid", *self.arguments())

    def test_refused_checkpoint(self):
        torch.save({"state_dict": ViT(**{**VIT, "hidden_size": 16}).state_dict()}, self.ckpt)
        self.assert_fails(3, "", *self.arguments())
        self.ckpt.write_bytes(b"")
        self.assert_fails(3, ".*empty", *self.arguments())

    def test_interrupted(self):
        with mock.patch("monai.apps.attention_maps.attending.save_attention", side_effect=KeyboardInterrupt):
            self.assert_fails(130, "interrupted", *self.arguments())

    def test_process(self):
        command = [sys.executable, "-W", "ignore", "-m", "monai.visualize.attention"]
        done = subprocess.run(
            [*command, *map(str, self.arguments("--json"))], capture_output=True, text=True, timeout=120
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(json.loads(done.stdout)["layers"][0]["voxel"], [14, 2, 5])
        self.assertTrue(self.out.is_file())


if __name__ == "__main__":
    unittest.main()
