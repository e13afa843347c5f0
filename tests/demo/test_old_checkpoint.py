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

import tempfile
import unittest
from pathlib import Path

import pytest
import torch
from parameterized import parameterized

from demo.checkpoint import Checkpoints, as_in_monai, read_checkpoints
from demo.make_checkpoint import RECIPES, main
from demo.measure import difference
from demo.release import Release
from demo.volume import load_scan
from fork import ForkError
from fork.packages import environment
from monai.networks.nets import AutoencoderKL, ViT
from monai.networks.state_dict.untrained import never_trained

torch.set_num_threads(1)

TEST_CASES = [({},), ({"save_attn": True},), ({"use_combined_linear": False},), ({"use_proj_attn": True},)]
TEST_CASES_AUTOENCODER = [
    ({},),
    ({"use_proj_attn": True},),
    ({"use_proj_attn": False},),
    ({"include_fc": False},),
    ({"use_combined_linear": True},),
]


def largest_difference(net: torch.nn.Module, saved: dict) -> float:
    with torch.no_grad():
        return float((net.eval()(saved["input"])[0] - saved["output"]).abs().max())


class TestViT(unittest.TestCase):
    """The file of MONAI 1.5.2, straight into the fork's ViT."""

    def setUp(self):
        self.saved = torch.load(RECIPES["ViT"].file, weights_only=True)

    def test_what_it_is(self):
        self.assertEqual((self.saved["monai"], self.saved["network"]), ("1.5.2", "ViT"))
        self.assertLess(RECIPES["ViT"].file.stat().st_size, 300_000)
        self.assertGreater(float(self.saved["output"].std()), 0.1)
        for stale in ("blocks.0.cross_attn.to_q.weight", "blocks.0.norm_cross_attn.weight"):
            self.assertIn(stale, self.saved["state_dict"])

    @parameterized.expand(TEST_CASES)
    def test_loads_strictly_with_the_same_output(self, options):
        net = ViT(**self.saved["options"], **options)
        self.assertGreater(largest_difference(net, self.saved), 0.1)
        net.load_state_dict(self.saved["state_dict"], strict=True)
        self.assertLess(largest_difference(net, self.saved), 1e-5)

    def test_a_trained_projection_does_not_fit_a_network_without_one(self):
        net = ViT(**self.saved["options"], use_proj_attn=False)
        with self.assertRaisesRegex(RuntimeError, "out_proj"):
            net.load_state_dict(self.saved["state_dict"], strict=True)

    def test_a_missing_weight_is_refused(self):
        del self.saved["state_dict"]["blocks.1.attn.qkv.weight"]
        with self.assertRaisesRegex(RuntimeError, "blocks.1.attn.qkv.weight"):
            ViT(**self.saved["options"]).load_state_dict(self.saved["state_dict"], strict=True)


class TestAutoencoderKL(unittest.TestCase):
    """The file of GenerativeModels 0.2.3, straight into the fork's AutoencoderKL."""

    def setUp(self):
        self.old = read_checkpoints().autoencoder
        self.options = as_in_monai(self.old.options)

    def loaded(self, **options) -> AutoencoderKL:
        net = AutoencoderKL(**self.options, **options).eval()
        net.load_state_dict(self.old.state_dict, strict=True)
        return net

    @torch.no_grad()
    def apart(self, net: AutoencoderKL) -> float:
        return difference(net.reconstruct(self.old.input), self.old.output)

    def test_what_it_is(self):
        self.assertEqual((self.old.generative, self.old.monai, self.old.network), ("0.2.3", "1.3.2", "AutoencoderKL"))
        self.assertLess(RECIPES["AutoencoderKL"].file.stat().st_size, 700_000)
        self.assertTrue(bool(load_scan().held_out[self.old.slice]))
        self.assertFalse(any(".attn." in key for key in self.old.state_dict))
        for name, untrained in [("to_q", False), ("to_k", False), ("to_v", False), ("proj_attn", True)]:
            weights = [value for key, value in self.old.state_dict.items() if key.endswith(f".{name}.weight")]
            self.assertEqual([never_trained(weight) for weight in weights], [untrained] * 4, name)

    @parameterized.expand(TEST_CASES_AUTOENCODER)
    def test_loads_strictly_with_the_same_reconstruction(self, options):
        self.assertGreater(self.apart(AutoencoderKL(**self.options, **options).eval()), 0.1)
        self.assertLess(self.apart(self.loaded(**options)), 1e-5)

    def test_the_projection_is_of_no_account(self):
        for key, value in self.old.state_dict.items():
            if "proj_attn" in key:
                value.normal_()
        self.assertLess(self.apart(self.loaded()), 1e-5)

    def test_a_missing_weight_is_refused(self):
        del self.old.state_dict["quant_conv_mu.conv.weight"]
        with self.assertRaisesRegex(RuntimeError, "quant_conv_mu.conv.weight"):
            self.loaded()

    def test_the_release_reconstructs_something_else(self):
        with Release() as release:
            images = release.ask("load_old", "AutoencoderKL", self.options, self.old.state_dict, self.old.input)
        self.assertGreater(difference(images, self.old.output), 0.1)


@pytest.mark.slow
class TestMaker(unittest.TestCase):
    """A short training by the old packages themselves gives a file whose output the fork repeats."""

    def remade(self, network: str) -> Checkpoints:
        try:
            environment(*RECIPES[network].packages)
        except ForkError as error:
            self.skipTest(str(error))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "remade.pt"
            self.assertEqual(main([network, "--steps", "3", "--seed", "1", "--output", str(path)]), 0)
            return read_checkpoints([path])

    @torch.no_grad()
    def test_vit(self):
        remade = self.remade("ViT").vit
        net = ViT(**remade.options).eval()
        remade.load_into(net)
        self.assertLess(difference(net(remade.input)[0], remade.output), 1e-5)
        self.assertGreater(difference(remade.output, read_checkpoints().vit.output), 0.1)

    @torch.no_grad()
    def test_autoencoder(self):
        remade = self.remade("AutoencoderKL").autoencoder
        net = AutoencoderKL(**as_in_monai(remade.options)).eval()
        remade.load_into(net)
        self.assertLess(difference(net.reconstruct(remade.input), remade.output), 1e-5)
        self.assertGreater(difference(remade.output, read_checkpoints().autoencoder.output), 0.1)


if __name__ == "__main__":
    unittest.main()
