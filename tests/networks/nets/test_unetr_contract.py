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
from monai.networks.nets import UNETR
from tests.differences import max_difference
from tests.networks.nets.test_vit_contract import with_stale_keys

torch.set_num_threads(1)

SIZES = {
    "in_channels": 1,
    "out_channels": 3,
    "img_size": (32, 48),
    "feature_size": 4,
    "hidden_size": 24,
    "mlp_dim": 32,
    "num_heads": 4,
    "spatial_dims": 2,
}

ILL_ARGUMENTS = [
    ("dropout above one", {"dropout_rate": 5.0}, "5.0"),
    ("width not divisible", {"num_heads": 7}, "24.*7"),
    ("image below a patch", {"img_size": 8}, "16.*8"),
    ("a rest for perceptron", {"img_size": 40, "proj_type": "perceptron"}, "40.*16"),
    ("unknown projection", {"proj_type": "mlp"}, "mlp"),
    ("flash and matrix", {"use_flash_attention": True, "save_attn": True}, "save_attn"),
]


def network(**kwargs) -> UNETR:
    torch.manual_seed(0)
    return UNETR(**{**SIZES, **kwargs}).eval()


def image_for(net: UNETR, batch: int = 2) -> torch.Tensor:
    shape = (batch, 1, *net.vit.patch_embedding.img_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


class TestUNETR(unittest.TestCase):
    @parameterized.expand(ILL_ARGUMENTS)
    def test_ill_arguments(self, _, kwargs, part):
        with self.assertRaisesRegex(ValueError, part):
            UNETR(**{**SIZES, **kwargs})

    def test_image_that_does_not_fit(self):
        for shape in ((1, 1, 32, 32), (1, 1, 16, 16)):
            with self.assertRaisesRegex(ValueError, "img_size"):
                network()(torch.ones(shape))
        with self.assertRaises(RuntimeError):  # as many patches, but no grid that fits the image
            network()(torch.ones(1, 1, 48, 32))

    def test_tokens_become_a_grid(self):
        net = network()
        tokens = torch.arange(2 * 6 * 24.0).reshape(2, 6, 24)
        grid = net.proj_feat(tokens)
        self.assertEqual(grid.shape, (2, 24, 2, 3))
        self.assertTrue(torch.equal(grid[:, :, 1, 2], tokens[:, 5]))
        self.assertTrue(torch.equal(grid[:, :, 0, 1], tokens[:, 1]))

    def test_options_reach_every_block(self):
        net = network(use_combined_linear=False, use_flash_attention=True, use_proj_attn=False)
        blocks = [module for module in net.modules() if isinstance(module, SABlock)]
        self.assertEqual(len(blocks), 12)
        for block in blocks:
            self.assertTrue(block.use_flash_attention)
            self.assertIsInstance(block.out_proj, nn.Identity)
            self.assertIsInstance(block.to_k, nn.Linear)

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

    def test_a_misfit_deep_inside_changes_nothing(self):
        net = network()
        before = {key: value.clone() for key, value in net.state_dict().items()}
        state = {key: value + 1 for key, value in before.items()}
        state["vit.blocks.11.attn.qkv.weight"] = torch.ones(3, 3)
        with self.assertRaisesRegex(RuntimeError, "vit.blocks.11.attn.qkv.weight"):
            net.load_state_dict(state)
        self.assertTrue(all(torch.equal(value, before[key]) for key, value in net.state_dict().items()))

    def test_every_parameter_learns(self):
        net = network()
        net(image_for(net)).sum().backward()
        self.assertEqual([name for name, p in net.named_parameters() if p.requires_grad and p.grad is None], [])


if __name__ == "__main__":
    unittest.main()
