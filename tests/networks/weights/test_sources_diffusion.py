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

"""diffusers' autoencoder and U-Nets become ours to the same outputs, and ours theirs; what neither has is refused."""

from __future__ import annotations

import unittest
from functools import lru_cache
from typing import Any

import torch
from parameterized import parameterized

from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from monai.networks.weights.journal import Journal
from monai.networks.weights.source import translate, translate_back
from monai.networks.weights.sources_diffusion import DIFFUSERS, diffusers_config
from tests.networks.weights.foreign.files import kept
from tests.networks.weights.foreign.fuzz import silently_wrong
from tests.networks.weights.foreign.loading import build, difference, load, outputs
from tests.networks.weights.foreign.rows import TOLERANCE

AUTOENCODER = "diffusers==0.42.1, AutoencoderKL, one block"
CONDITIONED = "diffusers==0.42.1, UNet2DConditionModel, as Stable Diffusion 2"
UNCONDITIONED = "diffusers==0.42.1, UNet2DModel, sines first"
TEST_CASES = [[AUTOENCODER], [CONDITIONED], [UNCONDITIONED]]

# a file, arguments of our network, arguments of theirs, and what the refusal has to say
TEST_CASES_REFUSED: list[list[Any]] = [
    [AUTOENCODER, {"as_in_latent_diffusion": False}, {}, "as_in_latent_diffusion=True"],
    [AUTOENCODER, {"num_res_blocks": 2}, {}, "num_res_blocks=1"],
    [AUTOENCODER, {"norm_num_groups": 2}, {}, "norm_num_groups=4 in diffusers, 2 in this network"],
    [AUTOENCODER, {"norm_eps": 1e-5}, {}, "norm_eps=1e-06"],
    [AUTOENCODER, {"use_convtranspose": True}, {}, "use_convtranspose=False"],
    [AUTOENCODER, {"with_encoder_nonlocal_attn": False}, {}, "with_encoder_nonlocal_attn=True"],
    [AUTOENCODER, {}, {"act_fn": "mish"}, "act_fn='mish'"],
    [AUTOENCODER, {}, {"use_quant_conv": False}, "use_quant_conv=False"],
    [AUTOENCODER, {}, {"mid_block_add_attention": False}, "mid_block_add_attention=False"],
    [AUTOENCODER, {}, {"layers_per_block": 2}, "num_res_blocks=2"],
    [AUTOENCODER, {}, {"_class_name": "AutoencoderTiny"}, "AutoencoderTiny"],
    [AUTOENCODER, {}, {"of_next_year": 1}, "of_next_year=1"],
    [CONDITIONED, {"num_head_channels": (8, 4)}, {}, "num_head_channels=4"],
    [CONDITIONED, {"transformer_norm_eps": None}, {}, "transformer_norm_eps=1e-06"],
    [CONDITIONED, {"norm_eps": 1e-6}, {}, "norm_eps=1e-05"],
    [CONDITIONED, {"resblock_updown": True}, {}, "resblock_updown=False"],
    [CONDITIONED, {}, {"attention_head_dim": 2}, "2 heads attend in diffusers, and 4"],
    [CONDITIONED, {}, {"num_attention_heads": [2, 2]}, "2 heads attend in diffusers, and 4"],
    [CONDITIONED, {}, {"attention_head_dim": [2]}, "1 numbers of heads"],
    [CONDITIONED, {}, {"freq_shift": 1}, "freq_shift=1"],
    [CONDITIONED, {}, {"downsample_padding": 0}, "downsample_padding=0"],
    [CONDITIONED, {}, {"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"],
    [CONDITIONED, {}, {"only_cross_attention": [False, True]}, "only_cross_attention"],
    [CONDITIONED, {}, {"class_embed_type": "timestep"}, "class_embed_type"],
    [CONDITIONED, {}, {"_class_name": "UNet2DModel"}, "with_conditioning"],
    [UNCONDITIONED, {}, {"attn_norm_num_groups": 2}, "attn_norm_num_groups=2"],
    [UNCONDITIONED, {}, {"downsample_type": "resnet"}, "downsample_type"],
    [UNCONDITIONED, {}, {"attention_head_dim": 64}, "0 heads"],
]
TEST_CASES_FOREIGN_PARTS = [
    ["add_embedding.linear_1.weight", "Stable Diffusion XL"],
    ["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight", "LoRA"],
    ["time_embedding.cond_proj.weight", "condition"],
    ["down_blocks.0.downsamplers.0.norm1.weight", "change the size"],
    ["mid_block.attentions.0.transformer_blocks.0.attn1.norm_q.weight", "more parts"],
]
TEST_CASES_BACK: list[list[Any]] = [
    [AUTOENCODER, {"as_in_latent_diffusion": False}, "as_in_latent_diffusion=True"],
    [AUTOENCODER, {"spatial_dims": 3}, "3 spatial axes"],
    [AUTOENCODER, {"num_res_blocks": (1, 2)}, "num_res_blocks"],
    [CONDITIONED, {"spatial_dims": 3}, "3 spatial axes"],
    [CONDITIONED, {"transformer_norm_eps": 1e-5}, "transformer_norm_eps=1e-06"],
    [CONDITIONED, {"resblock_updown": True}, "resblock_updown=False"],
    [CONDITIONED, {"use_proj_attn": False}, "output projection"],
    [UNCONDITIONED, {"num_res_blocks": (2, 1)}, "num_res_blocks"],
]

_kept = lru_cache(kept)


class TestDiffusers(unittest.TestCase):
    @parameterized.expand(TEST_CASES)
    def test_same_outputs(self, name):
        row, reference = _kept(name)
        net = build(row)
        report = load(net, reference["state_dict"], DIFFUSERS, reference["config"])
        self.assertLessEqual(difference(outputs(net, reference["inputs"]), reference["output"]), TOLERANCE)
        self.assertEqual(len(report.parameters), len(net.state_dict()))
        self.assertEqual((report.left, report.ignored), ((), {}))

    @parameterized.expand(TEST_CASES)
    def test_back_and_again(self, name):
        row, reference = _kept(name)
        net, again = build(row), build(row)
        load(net, reference["state_dict"], DIFFUSERS, reference["config"])
        back = translate_back(net, net.state_dict(), DIFFUSERS)
        self.assertEqual(back.keys(), reference["state_dict"].keys())
        config = diffusers_config(net)
        for key in config.keys() & reference["config"].keys() - {"attention_head_dim", "layers_per_block"}:
            if key != "flip_sin_to_cos":  # ours are always written with the cosines first
                self.assertEqual(config[key], reference["config"][key], key)
        load(again, back, DIFFUSERS, config)
        for key, value in net.state_dict().items():
            self.assertTrue(torch.equal(value, again.state_dict()[key]), key)

    @parameterized.expand(TEST_CASES_REFUSED)
    def test_refused(self, name, ours, theirs, said):
        row, reference = _kept(name)
        journal = Journal(reference["state_dict"])
        with self.assertRaises(RuntimeError) as caught:
            translate(build(row, **ours), journal, DIFFUSERS, {**reference["config"], **theirs})
        self.assertIn(said, str(caught.exception))
        self.assertEqual(dict(journal), reference["state_dict"] | dict(journal))

    @parameterized.expand(TEST_CASES_FOREIGN_PARTS)
    def test_refused_by_name(self, key, said):
        row, reference = _kept(CONDITIONED)
        with self.assertRaisesRegex(RuntimeError, said):
            translate(
                build(row), Journal({**reference["state_dict"], key: torch.ones(2)}), DIFFUSERS, reference["config"]
            )

    @parameterized.expand(TEST_CASES_BACK)
    def test_no_way_back(self, name, ours, said):
        net = build(kept(name)[0], **ours)
        with self.assertRaisesRegex(RuntimeError, said):
            translate_back(net, net.state_dict(), DIFFUSERS)

    @parameterized.expand([[AUTOENCODER, CONDITIONED], [CONDITIONED, UNCONDITIONED], [CONDITIONED, AUTOENCODER]])
    def test_another_network(self, name, other):
        with self.assertRaises(RuntimeError):
            load(build(_kept(other)[0]), _kept(name)[1]["state_dict"], DIFFUSERS, _kept(name)[1]["config"])

    @parameterized.expand([[AUTOENCODER], [UNCONDITIONED]])
    def test_names_of_older_versions(self, name):
        row, reference = _kept(name)
        older = {}
        for key, value in reference["state_dict"].items():
            for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
                if f".attentions.0.{new}." in key:
                    key = key.replace(new, old)
                    value = value[..., None, None] if value.dim() == 2 else value  # as scripts converted them
            older[key] = value
        self.assertNotEqual(older.keys(), reference["state_dict"].keys())
        net = build(row)
        load(net, older, DIFFUSERS, reference["config"])
        self.assertLessEqual(difference(outputs(net, reference["inputs"]), reference["output"]), TOLERANCE)
        twice = {**older, **reference["state_dict"]}
        with self.assertRaisesRegex(RuntimeError, "there twice"):
            translate(net, Journal(twice), DIFFUSERS, reference["config"])

    @parameterized.expand([[AUTOENCODER], [CONDITIONED]])
    def test_three_dimensions(self, name):
        """A network in 3-D gets the tensors in 2-D, under its own names."""
        row, reference = _kept(name)
        solid = build(row, spatial_dims=3)
        journal = Journal(reference["state_dict"])
        translate(solid, journal, DIFFUSERS, reference["config"])
        self.assertEqual(journal.keys(), solid.state_dict().keys())
        for key, value in solid.state_dict().items():
            self.assertEqual(journal[key].shape, value.shape[: journal[key].dim()], key)

    @parameterized.expand(TEST_CASES)
    def test_without_a_configuration(self, name):
        row, reference = _kept(name)
        with self.assertRaisesRegex(RuntimeError, "config.json"):
            translate(build(row), Journal(reference["state_dict"]), DIFFUSERS)

    @parameterized.expand([[1, 768, 8, True], [2, 1024, (5, 10, 20, 20), True], [1, 768, 16, False]])
    def test_stable_diffusion(self, version, width, heads, fits):
        """The shapes of Stable Diffusion say how many heads attend."""
        levels = (320, 640, 1280, 1280)
        numbers = (heads,) * 4 if isinstance(heads, int) else heads
        with torch.device("meta"):
            net = DiffusionModelUNet(
                2, 4, 4, 2, levels, (True, True, True, False), norm_eps=1e-5, transformer_norm_eps=1e-6,
                num_head_channels=[channels // number for channels, number in zip(levels, numbers)],
                with_conditioning=True, cross_attention_dim=width,
            )  # fmt: skip
        state = translate_back(net, net.state_dict(), DIFFUSERS)
        if version == 2:
            state = {
                key: value.flatten(1) if value.dim() == 4 and ".proj_" in key else value for key, value in state.items()
            }
        journal = Journal(state)
        if fits:
            translate(net, journal, DIFFUSERS)
            self.assertEqual(journal.keys(), net.state_dict().keys())
        else:
            with self.assertRaisesRegex(RuntimeError, "8 heads attend in diffusers, and 16"):
                translate(net, journal, DIFFUSERS)

    def test_stable_diffusions_autoencoder(self):
        with torch.device("meta"):
            net = AutoencoderKL(
                2, 3, 3, 2, (128, 256, 512, 512), (False,) * 4, latent_channels=4, as_in_latent_diffusion=True
            )
        journal = Journal(translate_back(net, net.state_dict(), DIFFUSERS))
        self.assertIn("decoder.up_blocks.3.resnets.2.conv2.weight", journal)
        translate(net, journal, DIFFUSERS)
        self.assertEqual(journal.keys(), net.state_dict().keys())

    @parameterized.expand(TEST_CASES)
    def test_damaged_files(self, name):
        results = list(silently_wrong(*_kept(name), range(25)))
        self.assertEqual([what for what, verdict in results if verdict == "WRONG"], [])
        self.assertGreater(sum(verdict == "refused" for _, verdict in results), 12)


if __name__ == "__main__":
    unittest.main()
