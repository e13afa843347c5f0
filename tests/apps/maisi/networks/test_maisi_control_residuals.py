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

import unittest

import torch

from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi

SIZES = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "num_channels": (8, 8), "num_res_blocks": 1}
SIZES.update(attention_levels=(False, True), norm_num_groups=4, num_head_channels=4)


class TestControlResiduals(unittest.TestCase):
    def test_backward(self):
        torch.manual_seed(0)
        net = DiffusionModelUNetMaisi(**SIZES)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        residuals = [torch.rand(2, 8, side, side) for side in (8, 8, 4, 4)]
        copies = [each.clone() for each in residuals]
        out = net(torch.rand(2, 1, 8, 8), torch.arange(2), down_block_additional_residuals=residuals)
        out.pow(2).sum().backward()
        self.assertGreater(float(net.conv_in.conv.weight.grad.abs().max()), 0.0)
        self.assertTrue(all(torch.equal(*pair) for pair in zip(residuals, copies)))

    def test_flash_without_cuda(self):
        net = DiffusionModelUNetMaisi(**SIZES, use_flash_attention=True)
        self.assertEqual(net(torch.rand(2, 1, 8, 8), torch.arange(2)).shape, (2, 1, 8, 8))


if __name__ == "__main__":
    unittest.main()
