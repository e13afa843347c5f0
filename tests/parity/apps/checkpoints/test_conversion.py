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

"""What ``convert`` writes for the release, loaded and run by the release."""

from __future__ import annotations

import importlib
import unittest

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.apps.checkpoints.conversion import convert_checkpoint
from monai.apps.checkpoints.reference_worker import flat
from monai.apps.checkpoints.sample_inputs import sample_calls
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.networks.blocks import SABlock
from monai.networks.nets import VQVAE, DiffusionModelUNet, ViT
from monai.networks.state_dict.release import release_arguments, release_state_dict
from tests.apps.checkpoints.test_conversion import DECODER, UNET, VIT, FolderCase, config, randomized
from tests.differences import max_difference
from tests.networks.exports.rows import ROWS
from tests.parity.release import ReleaseError, release_run

torch.set_num_threads(1)

# the release cannot split volumes this small, and computes half norms on a GPU alone
PLAIN = {"num_splits": 1, "norm_float16": False}

NETWORKS = [row for row in ROWS if ".blocks." not in row.module]


class TestReleaseLayout(unittest.TestCase):
    """The release itself loads it strictly, nothing filled in, and gives the same outputs."""

    def agrees_with_the_release(self, module: str, name: str, arguments: dict) -> None:
        cls = getattr(importlib.import_module(module), name)
        net = randomized(cls(**arguments))
        state = release_state_dict(net, net.state_dict())
        there = release_arguments(net, arguments)
        for call in sample_calls(cls, arguments):
            torch.manual_seed(0)
            with torch.no_grad():
                expected = getattr(net, call.method)(**call.inputs)
            options = {"state": state, "call_kwargs": call.inputs, "seed": 0, "fill": False, "call": call.method}
            found = release_run(f"{module}.{name}", there, **options)
            scale = max(1.0, *(float(tensor.abs().max()) for tensor in flat(expected)))
            self.assertLessEqual(max_difference(found, expected), 1e-4 * scale)

    @parameterized.expand([(row.name, row) for row in NETWORKS])
    def test_networks(self, _, row):
        arguments = {name: PLAIN.get(name, value) for name, value in row.kwargs.items()}
        if row.network == "AutoencoderKlMaisi":
            arguments |= PLAIN
        self.agrees_with_the_release(row.module, row.network, arguments)

    @parameterized.expand(
        [
            ("ViT", {**VIT, "use_proj_attn": False, "use_combined_linear": False}),
            ("DecoderOnlyTransformer", {**DECODER, "with_cross_attention": True, "use_proj_attn": False}),
            ("DecoderOnlyTransformer", {**DECODER, "include_fc": False, "use_combined_linear": True}),
            ("DiffusionModelUNet", {**UNET, "include_fc": False, "use_proj_attn": True}),
        ]
    )
    def test_options(self, name, arguments):
        self.agrees_with_the_release("monai.networks.nets", name, arguments)

    def test_networks_inside_of_others(self):
        """A subclass of a network, as a part of another one, is built as the release builds that network."""

        class Mine(ViT):
            pass

        net = nn.ModuleDict({"encoder": Mine(**VIT, use_proj_attn=False, use_combined_linear=False)})
        inner = release_state_dict(net["encoder"], net["encoder"].state_dict())
        state = release_state_dict(net, net.state_dict())
        self.assertEqual(state.keys(), {f"encoder.{key}" for key in inner})
        release_run("monai.networks.nets.ViT", VIT, state=inner, fill=False, call=None)

    @parameterized.expand(
        [
            ("monai.networks.nets.DiffusionModelUNet", DiffusionModelUNet, {**UNET, "spatial_dims": 1}),
            (
                "monai.networks.nets.VQVAE",
                VQVAE,
                {"spatial_dims": 1, "in_channels": 1, "out_channels": 1, "channels": (8, 8), "num_res_channels": (8, 8)}
                | {"downsample_parameters": (2, 4, 1, 1), "upsample_parameters": (2, 4, 1, 1, 0), "num_res_layers": 1},
            ),
            (
                "monai.apps.generation.maisi.networks.autoencoderkl_maisi.AutoencoderKlMaisi",
                AutoencoderKlMaisi,
                {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "num_res_blocks": (1, 1), **PLAIN}
                | {"num_channels": (8, 8), "attention_levels": (False, False), "norm_num_groups": 4},
            ),
        ]
    )
    def test_what_the_release_cannot_run(self, target, cls, arguments):
        net = randomized(cls(**arguments))
        call = sample_calls(cls, arguments)[0]
        with self.assertRaises(ReleaseError):
            options = {"state": net.state_dict(), "call_kwargs": call.inputs, "call": call.method}
            release_run(target, arguments, **options)
        with self.assertRaisesRegex(ValueError, "cannot run .* spatial_dims"):
            release_state_dict(net, net.state_dict())

    def test_what_the_release_computes_wrongly(self):
        arguments = {"hidden_size": 24, "num_heads": 4, "rel_pos_embedding": "decomposed", "input_size": (2, 2, 2)}
        net, x = randomized(SABlock(**arguments)), torch.randn(1, 8, 24)
        found = release_run("monai.networks.blocks.SABlock", arguments, (x,), state=net.state_dict())
        self.assertGreater(max_difference(found, net(x)), 1e-3)
        with self.assertRaisesRegex(ValueError, "relative positions"):
            release_state_dict(net, net.state_dict())
        flat = SABlock(24, 4, rel_pos_embedding="decomposed", input_size=(2, 4))
        release_state_dict(flat, flat.state_dict())


class TestConversion(FolderCase):
    def test_the_release_loads_the_file(self):
        self.save_generative_models()
        target = self.folder / "new.pt"
        report = convert_checkpoint(
            self.source, target, config(DiffusionModelUNet, **UNET, use_proj_attn=False), layout="monai-1.6"
        )
        net = DiffusionModelUNet(**UNET, use_proj_attn=False).eval()
        net.load_state_dict(torch.load(self.source, weights_only=True)["state_dict"])
        inputs = sample_calls(DiffusionModelUNet, UNET)[0].inputs
        state = torch.load(target, weights_only=True)
        found = release_run(
            "monai.networks.nets.DiffusionModelUNet", report.arguments, state=state, call_kwargs=inputs, fill=False
        )
        self.assertEqual(report.arguments["include_fc"], False)
        self.assertLessEqual(max_difference(found, net(**inputs)), 1e-5)


if __name__ == "__main__":
    unittest.main()
