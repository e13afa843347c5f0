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

"""UNETR beside the release."""

from __future__ import annotations

import unittest

import torch
from parameterized import parameterized

from tests.differences import max_difference
from tests.networks.nets.test_unetr_contract import SIZES, image_for, network
from tests.parity.release import assert_equal_to_release, assert_initialized_like_the_release, release_run

torch.set_num_threads(1)

TARGET = "monai.networks.nets.UNETR"

VOLUME = {**SIZES, "img_size": (32, 16, 16), "spatial_dims": 3}

# an instance norm over a grid of a few cells amplifies rounding: gradients are compared with batch norm
TEST_CASES = [
    ("2d", {**SIZES, "norm_name": "batch"}),
    ("2d_square_perceptron", {**SIZES, "img_size": 32, "proj_type": "perceptron", "norm_name": "batch"}),
    ("2d_plain_blocks", {**SIZES, "conv_block": False, "res_block": False, "norm_name": "batch"}),
    ("3d", {**VOLUME, "norm_name": "batch", "dropout_rate": 0.1}),
    ("3d_perceptron", {**VOLUME, "proj_type": "perceptron", "qkv_bias": True, "norm_name": ("batch", {"eps": 1e-3})}),
]

FORWARD_CASES = [
    ("2d_instance", SIZES),
    ("3d_instance", VOLUME),
    ("2d_group", {**SIZES, "norm_name": ("group", {"num_groups": 2}), "save_attn": True}),
]


class TestUNETR(unittest.TestCase):
    @parameterized.expand(TEST_CASES)
    def test_equals_the_release(self, _, kwargs):
        net = network(**kwargs)
        x = image_for(net)
        self.assertEqual(net(x).shape, (2, 3, *x.shape[2:]))
        assert_equal_to_release(net, TARGET, kwargs, (x,))

    @parameterized.expand(FORWARD_CASES)
    def test_outputs_equal_the_release(self, _, kwargs):
        net = network(**kwargs)
        x = image_for(net)
        expected = release_run(TARGET, kwargs, (x,), state=net.state_dict())
        self.assertLessEqual(max_difference(net(x), expected), 1e-5)

    @parameterized.expand([(SIZES,), (VOLUME,)])
    def test_initial_weights(self, kwargs):
        assert_initialized_like_the_release(network(**kwargs), TARGET, kwargs)


if __name__ == "__main__":
    unittest.main()
