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

import importlib
import math
import os
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.apps.checkpoints import reference_worker
from monai.apps.checkpoints.network_config import NetworkConfig
from monai.apps.checkpoints.reference_process import reference_command, run_reference
from monai.apps.checkpoints.reference_worker import UnusableError, flat
from monai.apps.checkpoints.sample_inputs import read_inputs, sample_calls
from monai.apps.checkpoints.verification import Comparison, verify_checkpoint
from monai.networks.checkpoints.untrusted import CheckpointRefused
from monai.networks.nets import AutoencoderKL, ControlNet, DiffusionModelUNet, UNet, ViT
from tests.networks.exports.rows import ROWS

torch.set_num_threads(1)

NETWORKS = [row for row in ROWS if ".blocks." not in row.module]

UNET = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "num_res_blocks": 1, "channels": (8, 16)}

UNET |= {"attention_levels": (False, True), "norm_num_groups": 4, "num_head_channels": 4}

VIT = {"in_channels": 1, "img_size": 16, "patch_size": 8, "hidden_size": 24, "mlp_dim": 32, "num_layers": 1}

VIT |= {"num_heads": 4, "spatial_dims": 2}

CONTROL = {key: value for key, value in UNET.items() if key != "out_channels"}

CONTROL |= {"conditioning_embedding_in_channels": 1, "conditioning_embedding_num_channels": (8, 16)}


BARE = {"use_combined_linear": True, "include_fc": False}


def randomized(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return net.eval()


def config(cls: type[nn.Module], **arguments) -> NetworkConfig:
    return NetworkConfig(Path("net.json"), "", cls, arguments)


class OldNet(nn.Linear):
    """As an older package has it: other names, fewer arguments."""

    def __init__(self, num_channels: int, num_splits: int = 16, include_fc: bool = True) -> None:
        super().__init__(num_channels, 1)
        self.built = (num_channels, num_splits, include_fc)


class TestSampleInputs(unittest.TestCase):
    @parameterized.expand([(row.name, row) for row in NETWORKS])
    def test_the_calls_take_every_weight(self, _, row):
        cls = getattr(importlib.import_module(row.module), row.network)
        net = cls(**row.kwargs).eval()
        outputs = []
        for call in sample_calls(cls, row.kwargs):
            outputs += flat(getattr(net, call.method)(**call.inputs))
        torch.stack([out.float().sum() for out in outputs if out.requires_grad]).sum().backward()
        idle = [
            name for name, parameter in net.named_parameters() if parameter.requires_grad and parameter.grad is None
        ]
        self.assertEqual(idle, [])

    def test_seed_name_and_shape_decide(self):
        first, again, other = (sample_calls(ControlNet, CONTROL, seed=seed)[0].inputs for seed in (0, 0, 1))
        for name, value in first.items():
            self.assertTrue(torch.equal(value, again[name]), name)
            self.assertFalse(torch.equal(value, other[name]), name)
        with_classes = sample_calls(ControlNet, {**CONTROL, "num_class_embeds": 3})[0].inputs
        self.assertTrue(torch.equal(with_classes["x"], first["x"]))

    def test_sizes(self):
        self.assertEqual(sample_calls(DiffusionModelUNet, UNET)[0].inputs["x"].shape, (2, 1, 16, 16))
        for size, shape in (((8,), (8, 8)), ((8, 32), (8, 32))):
            call = sample_calls(DiffusionModelUNet, UNET, size=size, batch=3)[0]
            self.assertEqual(call.inputs["x"].shape, (3, 1, *shape))
        call = sample_calls(ControlNet, CONTROL, size=(8, 16))[0]
        self.assertEqual(call.inputs["controlnet_cond"].shape, (2, 1, 16, 32))

    @parameterized.expand(
        [
            (DiffusionModelUNet, UNET, (9,), "multiples of 2"),
            (DiffusionModelUNet, UNET, (8, 8, 8), "has 3 axes, the network's images have 2"),
            (ViT, VIT, (32,), r"img_size=\[16, 16\]"),
            (AutoencoderKL, {"spatial_dims": 2, "channels": (8, 8, 8), "attention_levels": (False,) * 3}, (6,), "of 4"),
        ]
    )
    def test_sizes_that_do_not_fit(self, cls, arguments, size, pattern):
        with self.assertRaisesRegex(ValueError, pattern):
            sample_calls(cls, arguments, size=size)

    def test_subclasses_and_strangers(self):
        class Mine(ViT):
            pass

        self.assertEqual(list(sample_calls(Mine, VIT)[0].inputs), ["x"])
        with self.assertRaisesRegex(ValueError, "--inputs FILE"):
            sample_calls(UNet, {})


class FolderCase(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.path = self.folder / "net.pt"

    def save(self, net: nn.Module) -> nn.Module:
        torch.save(net.state_dict(), self.path)
        return net


class TestVerification(FolderCase):
    def test_outputs(self):
        net = self.save(randomized(DiffusionModelUNet(**UNET)))
        report = verify_checkpoint(self.path, config(DiffusionModelUNet, **UNET), seed=3)
        (output,) = report.outputs
        expected = net(**sample_calls(DiffusionModelUNet, UNET, seed=3)[0].inputs)
        self.assertEqual((output.method, output.shapes), ("forward", [[2, 1, 16, 16]]))
        self.assertEqual(output.inputs, {"x": [2, 1, 16, 16], "timesteps": [2]})
        self.assertAlmostEqual(output.mean, float(expected.mean()), places=5)
        self.assertAlmostEqual(output.std, float(expected.std(correction=0)), places=5)
        self.assertEqual((output.min, output.max), (float(expected.min()), float(expected.max())))
        self.assertIsNone(report.comparison)
        self.assertEqual(verify_checkpoint(self.path, config(DiffusionModelUNet, **UNET), seed=3), report)
        with torch.no_grad():
            net.out[2].conv.bias += 1e-3
        self.save(net)
        changed = verify_checkpoint(self.path, config(DiffusionModelUNet, **UNET), seed=3)
        self.assertNotEqual(changed.outputs[0].sha256, output.sha256)

    def test_outputs_that_prove_nothing(self):
        """The last layer of a diffusion network is zero before it is trained."""
        self.save(DiffusionModelUNet(**UNET))
        with self.assertWarnsRegex(UserWarning, "Every output is zero"):
            verify_checkpoint(self.path, config(DiffusionModelUNet, **UNET))

    def test_encoder_and_decoder(self):
        arguments = {"spatial_dims": 2, "channels": (8, 8), "attention_levels": (False, True), "norm_num_groups": 4}
        arguments |= {"num_res_blocks": 1}
        self.save(randomized(AutoencoderKL(**arguments)))
        report = verify_checkpoint(self.path, config(AutoencoderKL, **arguments))
        self.assertEqual([output.method for output in report.outputs], ["encode", "decode"])
        self.assertEqual(report.outputs[0].shapes, [[2, 3, 8, 8]] * 2)

    def test_inputs_of_the_user(self):
        net = self.save(randomized(nn.Linear(3, 2)))
        x = torch.randn(4, 3)
        torch.save({"input": x}, self.folder / "inputs.pt")
        inputs = str(self.folder / "inputs.pt")
        report = verify_checkpoint(self.path, config(nn.Linear, in_features=3, out_features=2), inputs=inputs)
        self.assertAlmostEqual(report.outputs[0].mean, float(net(x).mean()), places=6)
        torch.save({"input": torch.randn(4, 5)}, inputs)
        with self.assertRaisesRegex(ValueError, r"Linear\.forward fails with input \[4, 5\]"):
            verify_checkpoint(self.path, config(nn.Linear, in_features=3, out_features=2), inputs=inputs)
        torch.save({"input": 3}, inputs)
        with self.assertRaisesRegex(ValueError, "'input' should be a tensor, got int"):
            read_inputs(inputs)

    def test_refusals(self):
        self.save(randomized(ViT(**VIT)))
        with self.assertRaisesRegex(RuntimeError, "size mismatch"):
            verify_checkpoint(self.path, config(ViT, **{**VIT, "mlp_dim": 48}))
        self.path.write_bytes(b"PK\x03\x04")
        with self.assertRaises(CheckpointRefused):
            verify_checkpoint(self.path, config(ViT, **VIT))

    @parameterized.expand([(1e-5, True), (2e-4, False), (math.inf, False), (math.nan, False)])
    def test_tolerance(self, difference, agrees):
        comparison = Comparison("monai", "ViT", "2", [], max_difference=difference, scale=1.0, tolerance=1e-4)
        self.assertEqual(comparison.agrees, agrees)


class TestEnvironments(unittest.TestCase):
    def test_forms(self):
        with mock.patch.dict(os.environ, {"PYTHONPATH": "ours"}):
            python, variables = reference_command(sys.executable)
        self.assertEqual(python, sys.executable)
        self.assertNotIn("PYTHONPATH", variables)
        python, _ = reference_command(str(Path(sys.executable).parents[1]))
        self.assertEqual(Path(python).resolve(), Path(sys.executable).resolve())
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "generative").mkdir()
            python, variables = reference_command(f"{folder}{os.pathsep}{folder}")
            self.assertEqual(python, sys.executable)
            self.assertEqual(variables["PYTHONPATH"].split(os.pathsep)[:2], [folder, folder])

    def test_what_is_none(self):
        with self.assertRaisesRegex(ValueError, "there is no '.*absent'"):
            reference_command("absent")
        with tempfile.TemporaryDirectory() as folder:
            with self.assertRaisesRegex(ValueError, "neither monai nor generative"):
                reference_command(folder)
            python = Path(folder) / "python"
            python.write_text("#!/bin/sh\necho it is broken >&2\nexit 3\n")
            python.chmod(0o755)
            with self.assertRaisesRegex(ValueError, "its process failed: it is broken"):
                run_reference(str(python), config(ViT, **VIT), {}, [])


class TestWorker(unittest.TestCase):
    """What the process of the older package does, in this one."""

    def answer(self, state: dict | None = None, **request) -> dict:
        state = nn.Linear(3, 1).state_dict() if state is None else state
        defaults = {"targets": [f"{__name__}.OldNet"], "arguments": {"channels": 3}, "defaults": {}, "seed": 0}
        defaults |= {"projection_used": None, "state": state, "calls": [("forward", {"input": torch.ones(2, 3)})]}
        return reference_worker.answer({**defaults, **request})

    def test_the_first_class_that_takes_the_file(self):
        state = nn.Linear(3, 1).state_dict()
        targets = ["no.such.Net", "torch.nn.NoSuchNet", "torch.nn.ReLU", f"{__name__}.OldNet"]
        reply = self.answer(state, targets=targets)
        self.assertEqual(reply["target"], f"{__name__}.OldNet")
        expected = torch.ones(2, 3) @ state["weight"].t() + state["bias"]
        torch.testing.assert_close(reply["outputs"], [[expected]])
        with self.assertRaisesRegex(UnusableError, "no.such.Net: there is no module 'no'"):
            self.answer(state, targets=targets[:2])
        with self.assertRaisesRegex(UnusableError, "Missing key"):
            self.answer({"weight": state["weight"]})

    def test_arguments(self):
        """Renamed; left out where that changes nothing; and refused where it would."""
        given = {"channels": 3, "use_proj_attn": True, "dropout_rate": 0.5, "norm_eps": 1e-6, "num_splits": 4}
        reply = self.answer(arguments=given, defaults={"norm_eps": 1e-6})
        self.assertEqual(reply["dropped"], ["dropout_rate", "norm_eps"])
        with self.assertRaisesRegex(UnusableError, "it has no argument norm_eps, which is 0.1 here"):
            self.answer(arguments={**given, "norm_eps": 0.1}, defaults={"norm_eps": 1e-6})
        with self.assertRaisesRegex(UnusableError, "norm_eps"):  # its own arguments are taken as they are
            self.answer(arguments={"num_channels": 3, "norm_eps": 1e-6}, defaults=None)

    @parameterized.expand(
        [
            ({}, None, {}, {}),
            ({"a.attn.to_q.weight": 0, "a.attn.out_proj.bias": 0}, None, {}, {"use_combined_linear": False}),
            ({"a.attn1.qkv.weight": 0}, None, {}, BARE),
            ({"a.attn.out_proj.bias": 0}, None, {"use_proj_attn": False}, {"include_fc": False}),
            ({"a.attn.out_proj.bias": 0}, True, {"use_proj_attn": False}, {"include_fc": True}),
            ({"b.cross_attn.out_proj.bias": 0, "b.attn.qkv.weight": 0}, None, {}, BARE),
        ]
    )
    def test_what_the_file_shows(self, state, used, arguments, expected):
        request = {"state": state, "projection_used": used, "arguments": arguments}
        self.assertEqual(reference_worker._stored_as(request), expected)


if __name__ == "__main__":
    unittest.main()
