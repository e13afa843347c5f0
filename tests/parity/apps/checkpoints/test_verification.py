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

"""Checkpoints verified against the release and the packages that wrote them."""

from __future__ import annotations

import os
import subprocess
import sys
import unittest

import pytest
import torch

from fork.packages import environment, unpacked
from fork.wheel import pristine
from monai.apps.checkpoints.verification import verify_checkpoint
from monai.networks.checkpoints import CheckpointFacts
from monai.networks.nets import UNETR, DecoderOnlyTransformer, DiffusionModelUNet
from monai.networks.state_dict.release import release_state_dict
from tests.apps.checkpoints.test_verification import UNET, FolderCase, config, randomized

torch.set_num_threads(1)

DECODER = {"num_tokens": 7, "max_seq_len": 9, "attn_layers_dim": 24, "attn_layers_depth": 2, "attn_layers_heads": 4}

SEGMENTER = {"in_channels": 1, "out_channels": 2, "img_size": (32, 32), "feature_size": 4, "hidden_size": 24}

SEGMENTER |= {"mlp_dim": 32, "num_heads": 4, "spatial_dims": 2}

# builds a network of GenerativeModels, in a process that has it, and saves its state dict
ORIGINAL = """
import sys, torch
from generative.networks.nets import DiffusionModelUNet
torch.manual_seed(0)
net = DiffusionModelUNet(2, 1, 1, 1, (8, 16), (False, True), norm_num_groups=4, num_head_channels=4)
for parameter in net.parameters():
    torch.nn.init.normal_(parameter, std=0.3)
torch.save(net.state_dict(), sys.argv[1])
"""


class TestAgainstTheRelease(FolderCase):
    """In a process of the release; test_cli.py has a case that differs."""

    def test_same_outputs(self):
        release = str(pristine())
        net = randomized(DecoderOnlyTransformer(**DECODER))
        torch.save(release_state_dict(net, net.state_dict()), self.path)
        mine = config(DecoderOnlyTransformer, **DECODER)
        report = verify_checkpoint(self.path, mine, against=release)
        self.assertTrue(report.comparison.agrees)
        self.assertEqual(report.comparison.target, "monai.networks.nets.DecoderOnlyTransformer")
        self.assertEqual(report.comparison.package, "monai 1.6.1")
        self.assertLess(report.comparison.max_difference, 1e-5 * report.comparison.scale)


@pytest.mark.slow
class TestAgainstOlderPackages(FolderCase):
    def test_generative_models(self):
        packages = ("monai-generative==0.2.3", "monai==1.3.2")
        command = [sys.executable, "-W", "ignore", "-c", ORIGINAL, str(self.path)]
        subprocess.run(command, check=True, env=environment(*packages), cwd=self.folder)
        folders = os.pathsep.join(str(unpacked(package)) for package in packages)
        for use_proj_attn in (True, False):
            net = config(DiffusionModelUNet, **UNET, use_proj_attn=use_proj_attn)
            report = verify_checkpoint(self.path, net, against=folders)
            self.assertTrue(report.comparison.agrees)
            self.assertEqual(report.comparison.package, "monai-generative 0.2.3")
            self.assertEqual(report.written_by[0].name, "to_q")

    def test_monai_1_2(self):
        """Which calls proj_type pos_embed."""
        arguments = {**SEGMENTER, "proj_type": "perceptron"}
        state = randomized(UNETR(**arguments)).state_dict()
        torch.save({key: value for key, value in state.items() if "norm_cross_attn" not in key}, self.path)  # as of 1.2
        report = verify_checkpoint(self.path, config(UNETR, **arguments), against=str(unpacked("monai==1.2.0")))
        self.assertTrue(report.comparison.agrees)

    def test_monai_1_4_without_projection(self):
        net = randomized(DiffusionModelUNet(**UNET))  # 1.4.0 saves projections that it does not use
        self.save(net)
        without = config(DiffusionModelUNet, **UNET, use_proj_attn=False)
        facts = CheckpointFacts(projection_used=False)
        report = verify_checkpoint(self.path, without, facts=facts, against=str(unpacked("monai==1.4.0")))
        self.assertTrue(report.comparison.agrees)
        used = verify_checkpoint(self.path, config(DiffusionModelUNet, **UNET), against=str(unpacked("monai==1.4.0")))
        self.assertTrue(used.comparison.agrees)
        self.assertNotEqual(used.outputs, report.outputs)


if __name__ == "__main__":
    unittest.main()
