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
from monai.networks.nets import SPADEDiffusionModelUNet
from tests.differences import max_difference
from tests.networks.nets.diffusion_cases import BASE, CONDITIONED, inputs, randomized
from tests.scripting import assert_scripts

torch.set_num_threads(1)

SIZES = {**BASE, "out_channels": 2, "label_nc": 3, "spade_intermediate_channels": 8}

# the release keeps include_fc and use_combined_linear from its upward path, and its checkpoints are built so
LINEARS_BELOW = {"include_fc": False, "use_combined_linear": True}

OPTIONS = [{}, {"spatial_dims": 3}, CONDITIONED, {"num_class_embeds": 3, "resblock_updown": True}]

OPTIONS += [LINEARS_BELOW, {**CONDITIONED, **LINEARS_BELOW}]

ORDER = ("x", "timesteps", "seg", "context", "class_labels")


class TestSPADEDiffusionModelUNet(unittest.TestCase):
    @parameterized.expand([(case,) for case in [*OPTIONS, {"spatial_dims": 1}, {"use_proj_attn": False}]])
    def test_scripts(self, kwargs):
        kwargs = {**SIZES, **kwargs}
        net = randomized(SPADEDiffusionModelUNet(**kwargs))
        given = [inputs(kwargs, batch) for batch in (2, 3)]
        assert_scripts(net, *[tuple(values.get(name) for name in ORDER) for values in given])

    @parameterized.expand([(True,), (False,)])
    def test_projection_reaches_every_attention(self, use_proj_attn):
        for conditioning in ({}, CONDITIONED):
            net = SPADEDiffusionModelUNet(
                **{**SIZES, **conditioning}, include_fc=not use_proj_attn, use_proj_attn=use_proj_attn
            )
            blocks = [module for module in net.modules() if isinstance(module, (SABlock, CrossAttentionBlock))]
            self.assertEqual({block.use_proj_attn for block in blocks}, {use_proj_attn})

    def test_generative_models_checkpoint(self):
        source = randomized(SPADEDiffusionModelUNet(**SIZES, use_proj_attn=False))
        state = {}
        for key, value in source.state_dict().items():
            key = key.replace(".attn.to_", ".to_").replace("param_free_norm.", "param_free_norm.N.")
            state[key.replace("upsampler.postconv.", "upsampler.conv.")] = value
            if ".to_q." in key:  # it saved projections that it never used
                state[key.replace(".to_q.", ".proj_attn.")] = torch.ones_like(value)
        self.assertIn("up_blocks.0.resnets.0.norm1.param_free_norm.N.weight", state)
        target = SPADEDiffusionModelUNet(**SIZES).eval()
        target.load_old_state_dict(state)
        values = inputs(SIZES)
        self.assertLessEqual(max_difference(target(**values), source(**values)), 1e-5)


if __name__ == "__main__":
    unittest.main()
