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

"""
What MONAI's helpers that copy weights by names did wrong up to MONAI 1.6.1, a test a defect.

It uses nothing but the public interface of that release.
"""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path

import torch
import torch.nn as nn
from ignite.engine import Engine

from monai.handlers import CheckpointLoader
from monai.networks.nets import DiffusionModelUNet
from monai.networks.utils import copy_model_state

torch.set_num_threads(1)


class TestDefects(unittest.TestCase):
    def test_19_the_loader_copies_what_fits(self):
        """With strict_shape=False it copied nothing."""
        source, net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)), nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5))
        engine = Engine(lambda engine, batch: None)
        engine.state.max_epochs, engine.state.epoch = 1, 0
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "net.pt")
            torch.save({"net": source.state_dict()}, path)
            CheckpointLoader(str(path), {"net": net}, strict=False, strict_shape=False)(engine)
        self.assertTrue(torch.equal(net[0].weight, source[0].weight))

    def test_19_a_network_of_generative_models_is_copied_whole(self):
        """It copied some of the weights, and left others as they were made."""
        sizes = {"in_channels": 1, "num_res_blocks": 1, "norm_num_groups": 4, "num_head_channels": 4}
        sizes.update(spatial_dims=2, attention_levels=(False, True), channels=(8, 8), out_channels=1)
        source, net = DiffusionModelUNet(**sizes), DiffusionModelUNet(**sizes)
        old = {}
        for key, value in source.state_dict().items():
            if ".attn.out_proj." not in key:
                old[key.replace(".attn.to_", ".to_").replace("upsampler.postconv", "upsampler.conv")] = value
            else:
                old[key.replace(".attn.out_proj.", ".proj_attn.")] = value
        copy_model_state(net, old)
        for name, value in net.state_dict().items():
            if ".out_proj." not in name:
                self.assertTrue(torch.equal(value, source.state_dict()[name]), name)


if __name__ == "__main__":
    unittest.main()
