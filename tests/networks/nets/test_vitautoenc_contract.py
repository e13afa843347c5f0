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
import torch.nn as nn
from parameterized import parameterized

from monai.networks.blocks import SABlock
from monai.networks.nets import ViTAutoEnc
from tests.differences import max_difference
from tests.networks.nets.test_vit_contract import with_stale_keys

torch.set_num_threads(1)

SIZES = {
    "in_channels": 2,
    "img_size": (16, 32),
    "patch_size": (4, 16),
    "hidden_size": 24,
    "mlp_dim": 32,
    "num_layers": 2,
    "num_heads": 4,
    "spatial_dims": 2,
}

ILL_ARGUMENTS = [
    ("patch no square", {"img_size": 25, "patch_size": 5}, "5"),
    ("one patch size no square", {"patch_size": (4, 8)}, "8"),
    ("a rest", {"img_size": (18, 32)}, "18"),
    ("width not divisible", {"num_heads": 5}, "24.*5"),
    ("dropout above one", {"dropout_rate": 3.0}, "3.0"),
    ("unknown projection", {"proj_type": "mlp"}, "mlp"),
    ("flash and matrix", {"use_flash_attention": True, "save_attn": True}, "save_attn"),
]


def network(**kwargs) -> ViTAutoEnc:
    torch.manual_seed(0)
    return ViTAutoEnc(**{**SIZES, **kwargs}).eval()


def image_for(net: ViTAutoEnc, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 2, *net.img_size, generator=torch.Generator().manual_seed(1))


class TestViTAutoEnc(unittest.TestCase):
    @parameterized.expand(ILL_ARGUMENTS)
    def test_ill_arguments(self, _, kwargs, part):
        with self.assertRaisesRegex(ValueError, part):
            ViTAutoEnc(**{**SIZES, **kwargs})

    def test_image_that_does_not_fit(self):
        with self.assertRaisesRegex(ValueError, "img_size"):
            network()(torch.ones(1, 2, 8, 32))

    def test_options_reach_every_block(self):
        net = network(use_combined_linear=False, use_flash_attention=True, use_proj_attn=False)
        blocks = [module for module in net.modules() if isinstance(module, SABlock)]
        self.assertEqual(len(blocks), 2)
        for block in blocks:
            self.assertTrue(block.use_flash_attention)
            self.assertIsInstance(block.out_proj, nn.Identity)
            self.assertIsInstance(block.to_q, nn.Linear)

    @parameterized.expand([("load_old_state_dict",), ("load_state_dict",)])
    def test_older_checkpoint(self, method):
        source, net = network(), network()
        state = with_stale_keys(source)
        keys = list(state)
        for parameter in net.parameters():
            nn.init.normal_(parameter)
        getattr(net, method)(state)
        self.assertEqual(list(state), keys)
        self.assertEqual(max_difference(net(image_for(net)), source(image_for(net))), 0.0)

    def test_separate_linears_from_combined(self):
        source, net = network(), network(use_combined_linear=False)
        net.load_state_dict(source.state_dict())
        self.assertLessEqual(max_difference(net(image_for(net)), source(image_for(net))), 1e-5)


if __name__ == "__main__":
    unittest.main()
