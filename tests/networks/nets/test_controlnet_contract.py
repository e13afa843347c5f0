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
from parameterized import parameterized

from monai.networks.blocks import CrossAttentionBlock, SABlock
from monai.networks.nets import ControlNet, DiffusionModelUNet
from tests.networks.nets.diffusion_cases import BASE, CONDITIONED, inputs, randomized
from tests.scripting import assert_scripts

torch.set_num_threads(1)

SIZES = {**BASE, "conditioning_embedding_in_channels": 2, "conditioning_embedding_num_channels": (4, 8)}

OPTIONS = [
    {},
    {"spatial_dims": 3, "include_fc": False},
    {**CONDITIONED, "upcast_attention": True},
    {"num_class_embeds": 3, "resblock_updown": True, "use_combined_linear": True},
]

ORDER = ("x", "timesteps", "controlnet_cond", "conditioning_scale", "context", "class_labels")


class TestControlNet(unittest.TestCase):
    @parameterized.expand([(case,) for case in [*OPTIONS, {"spatial_dims": 1}, {"use_proj_attn": False}]])
    def test_scripts(self, kwargs):
        kwargs = {**SIZES, **kwargs}
        given = [{**inputs(kwargs, batch), "conditioning_scale": 0.5} for batch in (2, 3)]
        net = randomized(ControlNet(**kwargs))
        assert_scripts(net, *[tuple(values.get(name) for name in ORDER) for values in given])

    def test_steers_a_unet(self):
        net, control = randomized(DiffusionModelUNet(**BASE, out_channels=2)), randomized(ControlNet(**SIZES))
        values = inputs(SIZES)
        down, mid = control(**values)
        plain = net(values["x"], values["timesteps"])
        steered = net(values["x"], values["timesteps"], None, None, down, mid)
        self.assertGreater(float((steered - plain).abs().max()), 1e-3)
        still = control(**values, conditioning_scale=0.0)
        self.assertTrue(torch.equal(net(values["x"], values["timesteps"], None, None, *still), plain))

    @parameterized.expand([(True,), (False,)])
    def test_projection_reaches_every_attention(self, use_proj_attn):
        net = ControlNet(**{**SIZES, **CONDITIONED}, include_fc=not use_proj_attn, use_proj_attn=use_proj_attn)
        blocks = [module for module in net.modules() if isinstance(module, (SABlock, CrossAttentionBlock))]
        self.assertEqual({block.use_proj_attn for block in blocks}, {use_proj_attn})

    def test_the_input_stays_as_it_is(self):
        values = inputs(SIZES)
        before = {key: value.clone() for key, value in values.items()}
        randomized(ControlNet(**SIZES))(**values)
        self.assertTrue(all(torch.equal(value, before[key]) for key, value in values.items()))

    @parameterized.expand(
        [
            ("groups", {"norm_num_groups": 3}, "16.*3"),
            ("levels", {"attention_levels": (True,)}, "ControlNet.*attention_levels"),
            ("context", {"with_conditioning": True}, "cross_attention_dim"),
        ]
    )
    def test_ill_arguments(self, _, kwargs, message):
        with self.assertRaisesRegex(ValueError, message):
            ControlNet(**{**SIZES, **kwargs})


if __name__ == "__main__":
    unittest.main()
