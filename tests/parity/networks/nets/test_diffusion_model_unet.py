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

"""DiffusionModelUNet, their blocks, DiffusionModelEncoder beside the release."""

from __future__ import annotations

import unittest

import torch
from parameterized import parameterized

from monai.networks.nets import diffusion_model_unet
from monai.networks.nets.diffusion_model_unet import DiffusionModelEncoder, DiffusionModelUNet
from tests.networks.nets.diffusion_cases import control
from tests.networks.nets.test_diffusion_model_unet_contract import OPTIONS, UNET
from tests.parity.networks.nets.like_the_release import assert_built_and_computing_like_the_release
from tests.parity.release import assert_initialized_like_the_release

torch.set_num_threads(1)

MODULE = "monai.networks.nets.diffusion_model_unet"

BLOCK = {"spatial_dims": 2, "in_channels": 8, "out_channels": 16, "temb_channels": 5, "num_res_blocks": 2}

NORM = {"norm_num_groups": 4, "norm_eps": 1e-5}

ATTENTION = {"num_head_channels": 4, "include_fc": True, "use_combined_linear": True, "use_flash_attention": False}

TRANSFORMER = {
    "num_head_channels": 4,
    "transformer_num_layers": 2,
    "cross_attention_dim": 6,
    "upcast_attention": False,
    "dropout_cattn": 0.1,
    "include_fc": False,
    "use_combined_linear": True,
    "use_flash_attention": False,
}

DOWN = {**BLOCK, **NORM, "add_downsample": True, "resblock_updown": False, "downsample_padding": 1}

MID = {"spatial_dims": 2, "in_channels": 8, "temb_channels": 5, **NORM}

UP = {"spatial_dims": 2, "in_channels": 4, "prev_output_channel": 8, "out_channels": 16, "temb_channels": 5}

UP = {**UP, "num_res_blocks": 2, **NORM, "add_upsample": True, "resblock_updown": True}

KIND = {"with_attn": False, "with_cross_attn": True}

BLOCKS = [
    ("DownBlock", DOWN),
    ("AttnDownBlock", {**DOWN, **ATTENTION}),
    ("CrossAttnDownBlock", {**DOWN, **TRANSFORMER}),
    ("AttnMidBlock", {**MID, **ATTENTION}),
    ("CrossAttnMidBlock", {**MID, **TRANSFORMER}),
    ("UpBlock", UP),
    ("AttnUpBlock", {**UP, **ATTENTION}),
    ("CrossAttnUpBlock", {**UP, **TRANSFORMER}),
    ("get_down_block", {**BLOCK, **NORM, "add_downsample": False, "resblock_updown": False, **KIND, **TRANSFORMER}),
    ("get_mid_block", {**MID, "with_conditioning": True, **TRANSFORMER}),
    ("get_up_block", {**UP, **KIND, **TRANSFORMER}),
]


class TestDiffusionModelUNet(unittest.TestCase):
    @parameterized.expand([(case,) for case in OPTIONS])
    def test_equals_the_release(self, kwargs):
        kwargs = {**UNET, **kwargs}
        assert_built_and_computing_like_the_release(DiffusionModelUNet, f"{MODULE}.DiffusionModelUNet", kwargs)

    @parameterized.expand([(2, list), (3, tuple)])
    def test_residuals_of_a_controlnet(self, spatial_dims, kind):
        residuals = control(spatial_dims)
        residuals["down_block_additional_residuals"] = kind(residuals["down_block_additional_residuals"])
        kwargs = {**UNET, "spatial_dims": spatial_dims}
        name = f"{MODULE}.DiffusionModelUNet"
        assert_built_and_computing_like_the_release(DiffusionModelUNet, name, kwargs, **residuals)


class TestBlocks(unittest.TestCase):
    @parameterized.expand(BLOCKS)
    def test_positional_arguments_and_weights_of_the_release(self, name, kwargs):
        torch.manual_seed(0)
        net = getattr(diffusion_model_unet, name)(*kwargs.values())
        assert_initialized_like_the_release(net, f"{MODULE}.{name}", kwargs)


class TestDiffusionModelEncoder(unittest.TestCase):
    @parameterized.expand([(case,) for case in OPTIONS])
    def test_equals_the_release(self, kwargs):
        kwargs = {**UNET, **kwargs, "num_res_blocks": (1, 2, 2, 2)}
        kwargs["input_shape"] = [8] * kwargs["spatial_dims"]
        assert_built_and_computing_like_the_release(DiffusionModelEncoder, f"{MODULE}.DiffusionModelEncoder", kwargs)


if __name__ == "__main__":
    unittest.main()
