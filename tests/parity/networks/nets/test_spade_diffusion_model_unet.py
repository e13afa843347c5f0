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

"""SPADEDiffusionModelUNet beside the release."""

from __future__ import annotations

import unittest

import torch
from parameterized import parameterized

from monai.networks.nets import SPADEDiffusionModelUNet, spade_diffusion_model_unet
from tests.networks.nets.diffusion_cases import control
from tests.networks.nets.test_spade_diffusion_model_unet_contract import OPTIONS, SIZES
from tests.parity.networks.nets.like_the_release import assert_built_and_computing_like_the_release
from tests.parity.release import assert_initialized_like_the_release

torch.set_num_threads(1)

MODULE = "monai.networks.nets.spade_diffusion_model_unet"


UP = {"spatial_dims": 2, "in_channels": 4, "prev_output_channel": 8, "out_channels": 16, "temb_channels": 5}

TAIL = {"norm_num_groups": 4, "norm_eps": 1e-5, "add_upsample": True, "resblock_updown": True}

LABELED = {**UP, "label_nc": 3, "num_res_blocks": 2, **TAIL}

HEADS = {"num_head_channels": 4, "transformer_num_layers": 2}

CROSS = {"cross_attention_dim": 6, "upcast_attention": False, "spade_intermediate_channels": 8}

LINEARS = {"include_fc": True, "use_combined_linear": True, "use_flash_attention": False}

BLOCKS = [
    ("SPADEUpBlock", {**LABELED, "spade_intermediate_channels": 8}),
    ("SPADEAttnUpBlock", {**LABELED, "num_head_channels": 4, "spade_intermediate_channels": 8, **LINEARS}),
    ("SPADECrossAttnUpBlock", {**LABELED, **HEADS, **CROSS, **LINEARS}),
    (
        "get_spade_up_block",
        {**UP, "num_res_blocks": 2, **TAIL, "with_attn": True, "with_cross_attn": False, **HEADS, "label_nc": 3}
        | {**CROSS, **LINEARS},
    ),
    (
        "get_spade_up_block",
        {**UP, "num_res_blocks": 2, **TAIL, "with_attn": False, "with_cross_attn": True, **HEADS, "label_nc": 3}
        | {**CROSS, **LINEARS, "include_fc": False},
    ),
]


class TestSPADEDiffusionModelUNet(unittest.TestCase):
    @parameterized.expand([(case,) for case in OPTIONS])
    def test_equals_the_release(self, kwargs):
        target = f"{MODULE}.SPADEDiffusionModelUNet"
        assert_built_and_computing_like_the_release(SPADEDiffusionModelUNet, target, {**SIZES, **kwargs})

    def test_residuals_of_a_controlnet(self):
        target = f"{MODULE}.SPADEDiffusionModelUNet"
        assert_built_and_computing_like_the_release(SPADEDiffusionModelUNet, target, SIZES, **control())

    @parameterized.expand(BLOCKS)
    def test_positional_arguments_and_weights_of_the_release(self, name, kwargs):
        torch.manual_seed(0)
        net = getattr(spade_diffusion_model_unet, name)(*kwargs.values())
        assert_initialized_like_the_release(net, f"{MODULE}.{name}", kwargs)


if __name__ == "__main__":
    unittest.main()
