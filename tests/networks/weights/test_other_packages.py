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

"""Files of other packages through the front door: from a path to a network, and out again by the command line."""

from __future__ import annotations

import json
import tempfile
import unittest
from pathlib import Path

import torch
from parameterized import parameterized

from monai.apps.checkpoints.cli import main
from monai.networks import from_pretrained, load_checkpoint, save_pretrained
from monai.networks.nets import UNETR, AutoencoderKL, SwinUNETR, ViT
from monai.networks.weights.source import translate_back
from monai.networks.weights.sources import source_called
from tests.commands import run_command
from tests.networks.weights.foreign.files import kept
from tests.networks.weights.foreign.loading import build as build_row
from tests.networks.weights.vit_files import CASES, ENCODER, TINY_SIZES, difference, results, tiny_file

torch.set_num_threads(1)
HEAD = ("classification_head.*",)
AUTOENCODER = "diffusers==0.42.1, AutoencoderKL, one block"
SWINVIT = "monai==1.3.2, SwinTransformer, model_swinvit, v1"
TEST_CASES = [["timm"], ["dinov2 in chunks"], ["hf classes"], ["hf-dinov2"]]


def network(name: str, **changes) -> ViT:
    case = CASES[name]
    return ViT(**{**ENCODER, **case.kwargs, **TINY_SIZES[name], "norm_eps": case.eps, **changes}).eval()


class FileCase(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def write(self, content: dict) -> Path:
        """The file, with what its package saves beside it."""
        path = self.folder / "weights.pt"
        torch.save(content["state_dict"], path)
        if content.get("config"):
            (self.folder / "config.json").write_text(json.dumps(content["config"]))
        return path


class TestIn(FileCase):
    @parameterized.expand(TEST_CASES)
    def test_features_are_those_of_the_package(self, name):
        content, net = tiny_file(name), network(name)
        report = load_checkpoint(net, self.write(content), allow=CASES[name].allow).report
        self.assertLess(difference(results(net, content), content), 1e-5)
        self.assertEqual([line.key for line in report.parameters], list(net.state_dict()))
        self.assertEqual({line.key for line in report.tensors}, set(content["state_dict"]))
        allowed = {key for key in report.left if "norm_cross_attn" not in key}
        self.assertTrue(all(key.startswith("classification_head.") for key in allowed))

    def test_the_configuration_may_be_given(self):
        content, net = tiny_file("hf-dinov2"), network("hf-dinov2")
        path = self.write({"state_dict": content["state_dict"]})
        with self.assertRaisesRegex(RuntimeError, "config.json"):
            load_checkpoint(net, path, allow=HEAD)
        load_checkpoint(net, path, allow=HEAD, source_config=content["config"])
        self.assertLess(difference(results(net, content), content), 1e-5)
        for config, error in ((self.folder / "absent.json", FileNotFoundError), (path, ValueError)):
            with self.assertRaises(error):
                load_checkpoint(net, path, allow=HEAD, source_config=config)

    def test_another_eps_is_refused_before_a_weight_changes(self):
        content, net = tiny_file("timm"), network("timm", norm_eps=1e-5)
        before = {key: value.clone() for key, value in net.state_dict().items()}
        with self.assertRaisesRegex(RuntimeError, "norm_eps=1e-06"):
            load_checkpoint(net, self.write(content))
        self.assertTrue(all(torch.equal(value, before[key]) for key, value in net.state_dict().items()))

    def test_plain_load_state_dict_names_the_way(self):
        content = tiny_file("timm")
        with self.assertRaisesRegex(RuntimeError, "load_checkpoint"):
            network("timm").load_state_dict(content["state_dict"])

    def test_who_merged_the_patches_has_to_be_said(self):
        row, reference = kept(SWINVIT)
        net = build_row(row)
        self.assertIsInstance(net, SwinUNETR)
        path = self.write({"state_dict": reference["state_dict"]})
        with self.assertRaisesRegex(RuntimeError, "source=.*'swin', 'swin-1.5'"):
            load_checkpoint(net, path, allow=row.allow)
        report = load_checkpoint(net, path, allow=row.allow, source="swin").report
        self.assertGreater(report.counts["loaded"], 40)


class TestAnotherGrid(FileCase):
    def test_as_many_positions_on_another_grid(self):
        """The configuration says the grid. Positions by their number alone would be those of other places."""
        content, place = tiny_file("hf-dinov2"), "patch_embedding.position_embeddings"
        rows, columns = network("hf-dinov2").patch_embedding.grid_size
        patch = content["config"]["patch_size"]
        net = network("hf-dinov2", img_size=(patch, rows * columns * patch))
        path, before = self.write(content), net.state_dict()[place].clone()
        with self.assertRaisesRegex(RuntimeError, rf"on the grid \({rows}, {columns}\).*resample='position'"):
            load_checkpoint(net, path, allow=HEAD)
        self.assertTrue(torch.equal(net.state_dict()[place], before))
        report = load_checkpoint(net, path, allow=HEAD, resample="position").report
        self.assertIn("resampled", {line.key: line.outcome for line in report.parameters}[place])


class TestFolders(FileCase):
    def test_a_folder_says_how_its_network_was_built(self):
        """No weight tells the number of heads. A weight file elsewhere says nothing, and is taken as it is."""
        sizes = {"in_channels": 1, "img_size": 8, "patch_size": 4, "hidden_size": 24, "mlp_dim": 16, "num_layers": 1}
        source, other = (ViT(**sizes, num_heads=heads, spatial_dims=2).eval() for heads in (2, 4))
        save_pretrained(source, self.folder / "net")
        before = other.blocks[0].attn.qkv.weight.detach().clone()
        for place in ("net", "net/model.safetensors"):
            with self.assertRaisesRegex(RuntimeError, "blocks.0.attn was saved with heads=2, the network has 4"):
                load_checkpoint(other, self.folder / place)
        self.assertTrue(torch.equal(other.blocks[0].attn.qkv.weight, before))
        load_checkpoint(ViT(**sizes, num_heads=2, spatial_dims=2), self.folder / "net")
        (self.folder / "net" / "model.safetensors").rename(self.folder / "model.safetensors")
        load_checkpoint(other, self.folder / "model.safetensors")


class TestOtherSizes(FileCase):
    def test_dinov2_in_the_encoder_of_a_segmentation_network(self):
        """In 3-D, of another image and patch size, with one channel, without class token."""
        sizes = {"hidden_size": 24, "mlp_dim": 48, "num_heads": 2}
        encoder = {"spatial_dims": 2, "qkv_bias": True, "norm_eps": 1e-6}
        flat = ViT(3, 42, 14, **sizes, classification=True, post_activation=None, **encoder)
        flat.classification_head = torch.nn.Identity()
        state = translate_back(flat, flat.state_dict(), source_called("dinov2"))
        path = self.write({"state_dict": state, "config": {"num_heads": 2}})
        net = UNETR(
            in_channels=1,
            out_channels=2,
            img_size=32,
            feature_size=4,
            **sizes,
            proj_type="conv",
            qkv_bias=True,
            norm_eps=1e-6,
        )
        options = {"inflate": "average", "resample": ("position", "patch"), "in_channels": "mean"}
        report = load_checkpoint(net, path, into="vit", ignore=("cls_token",), **options).report
        self.assertEqual([line.key for line in report.parameters], list(net.state_dict()))
        self.assertTrue(all(not key.startswith("vit.") or "norm_cross_attn" in key for key in report.left))
        outcomes = {line.key: line.outcome for line in report.parameters}
        self.assertEqual(outcomes["vit.patch_embedding.patch_embeddings.weight"], "inflated")
        self.assertEqual(outcomes["vit.patch_embedding.position_embeddings"], "inflated")
        self.assertEqual(outcomes["vit.blocks.11.attn.qkv.weight"], "loaded")
        torch.testing.assert_close(net.vit.blocks[11].mlp.linear1.weight, flat.blocks[11].mlp.linear1.weight)

    def test_an_autoencoder_of_diffusers_in_3d(self):
        """A volume of equal slices has the latent of one of them, and is decoded as one of them is."""
        row, reference = kept(AUTOENCODER)
        flat = build_row(row)
        path = self.write({"state_dict": reference["state_dict"], "config": reference["config"]})
        load_checkpoint(flat, path)
        solid = AutoencoderKL(**{**row.arguments, "spatial_dims": 3}).eval()
        report = load_checkpoint(solid, path, inflate="center").report
        self.assertEqual(report.left, ())
        x = reference["inputs"]["x"][:1]
        with torch.no_grad():
            wanted, found = flat.reconstruct(x), solid.reconstruct(x[..., None].repeat_interleave(x.shape[-1], -1))
        self.assertLess(float((found - wanted[..., None]).abs().max() / wanted.abs().max()), 1e-5)


class TestOut(FileCase):
    @parameterized.expand([["hf classes", "hf"], ["hf-dinov2", "hf-dinov2"], ["timm", "timm"]])
    def test_convert_and_load_again(self, name, layout):
        content = tiny_file(name)
        path = self.write(content)
        arguments = {**ENCODER, **CASES[name].kwargs, **TINY_SIZES[name], "norm_eps": CASES[name].eps}
        config = self.folder / "net.json"
        config.write_text(json.dumps({"_target_": "monai.networks.nets.ViT", **arguments}))
        out = self.folder / "out"
        out.mkdir()
        flags = ["--allow", *CASES[name].allow] if CASES[name].allow else []
        command = ["convert", path, "-o", out / "model.safetensors", "--config", config, "--to", layout, *flags]
        if layout == "hf-dinov2":  # has no head, and the network has one
            code, _, error = run_command(main, *command)
            self.assertEqual(code, 3)
            self.assertIn("classification_head", error)
            return
        code, _, error = run_command(main, *command)
        self.assertEqual((code, error), (0, ""))
        self.assertEqual((out / "config.json").exists(), layout != "timm")
        again = network(name)
        load_checkpoint(again, out / "model.safetensors", source_config=content["config"] if layout == "timm" else None)
        self.assertLess(difference(results(again, content), content), 1e-5)
        self.assertEqual(run_command(main, *command)[0], 2)  # exists

    def test_save_what_was_loaded(self):
        content, net = tiny_file("timm"), network("timm")
        load_checkpoint(net, self.write(content))
        save_pretrained(net, self.folder / "saved")
        again = from_pretrained(self.folder / "saved")
        self.assertLess(difference(results(again, content), content), 1e-5)


if __name__ == "__main__":
    unittest.main()
