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
from itertools import product

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.networks.blocks.selfattention import SABlock
from monai.networks.nets import SPADEAutoencoderKL
from tests.differences import max_difference

torch.set_num_threads(1)

SIZES = {
    "spatial_dims": 2,
    "label_nc": 3,
    "num_res_blocks": (1, 1),
    "channels": (8, 16),
    "attention_levels": (False, True),
    "latent_channels": 4,
    "norm_num_groups": 4,
    "spade_intermediate_channels": 6,
}

ILL_ARGUMENTS = [
    ("groups", {"norm_num_groups": 3}, ValueError, "8.*3"),
    ("attention levels", {"attention_levels": (True,)}, ValueError, "attention_levels"),
    ("residual blocks", {"num_res_blocks": (1, 1, 1)}, ValueError, "num_res_blocks"),
    ("no bool", {"use_proj_attn": "no"}, TypeError, "'no'"),
]


def network(**kwargs) -> SPADEAutoencoderKL:
    torch.manual_seed(0)
    return SPADEAutoencoderKL(**{**SIZES, **kwargs}).eval()


def arguments(dims: int = 2, batch: int = 2, channels: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """An image and its segmentation."""
    draw = torch.Generator().manual_seed(1)
    image = torch.randn(batch, channels, *[8] * dims, generator=draw)
    return image, torch.rand(batch, 3, *[8] * dims, generator=draw)


class TestSPADEAutoencoderKL(unittest.TestCase):
    @parameterized.expand(ILL_ARGUMENTS)
    def test_ill_arguments(self, _, kwargs, error, part):
        with self.assertRaisesRegex(error, part):
            network(**kwargs)

    @parameterized.expand([(False, True), (True, False), (None, True), (None, False)])
    def test_options_reach_every_attention(self, use_proj_attn, include_fc):
        net = network(use_proj_attn=use_proj_attn, include_fc=include_fc, use_combined_linear=True)
        projects = include_fc if use_proj_attn is None else use_proj_attn
        for part in (net.encoder, net.decoder):
            blocks = [module for module in part.modules() if isinstance(module, SABlock)]
            self.assertEqual(len(blocks), 2)
            for block in blocks:
                self.assertIsInstance(block.out_proj, nn.Linear if projects else nn.Identity)
                self.assertTrue(block.use_combined_linear)

    def test_segmentation_is_used(self):
        net, (image, seg) = network(), arguments()
        self.assertGreater(max_difference(net.reconstruct(image, seg), net.reconstruct(image, 1 - seg)), 1e-3)

    @parameterized.expand([({},), ({"spatial_dims": 3, "use_proj_attn": False, "use_combined_linear": True},)])
    def test_scripted_methods(self, kwargs):
        net = network(**kwargs)
        inputs = arguments(kwargs.get("spatial_dims", 2))
        script = torch.jit.script(net)
        self.assertEqual(max_difference(script.reconstruct(*inputs), net.reconstruct(*inputs)), 0.0)
        self.assertEqual(max_difference(script.encode(inputs[0]), net.encode(inputs[0])), 0.0)

    @parameterized.expand(product((True, False), (True, False)))
    def test_generative_models(self, projects, combined):
        """Its attention saved projections that it never used."""
        source, net = network(), network(use_proj_attn=projects, use_combined_linear=combined)
        state = {
            key.replace(".attn.out_proj.", ".proj_attn.").replace(".attn.", ".").replace(".postconv.", ".conv."): value
            for key, value in source.state_dict().items()
        }
        self.assertEqual(sum("proj_attn" in key for key in state), 8)
        net.load_old_state_dict(state)
        for block in source.modules():
            if isinstance(block, SABlock):
                nn.init.eye_(block.out_proj.weight)
                nn.init.zeros_(block.out_proj.bias)
        self.assertLessEqual(max_difference(net.reconstruct(*arguments()), source.reconstruct(*arguments())), 1e-5)

    @parameterized.expand([(torch.float16,), (torch.bfloat16,), (torch.float64,)])
    def test_types(self, dtype):
        out = network().to(dtype)(*(part.to(dtype) for part in arguments()))
        self.assertEqual({part.dtype for part in out}, {dtype})

    def test_autocast(self):
        with torch.autocast("cpu", torch.bfloat16):
            self.assertEqual(network().reconstruct(*arguments()).dtype, torch.bfloat16)

    @parameterized.expand([(dims,) for dims in (1, 2, 3)])
    def test_empty_batch(self, dims):
        out = network(spatial_dims=dims)(*arguments(dims, batch=0))
        self.assertEqual(out[0].shape, (0, 1, *[8] * dims))


if __name__ == "__main__":
    unittest.main()
