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

"""ViTAutoEnc beside the release."""

from __future__ import annotations

import unittest
from itertools import product

import torch
from parameterized import parameterized

from tests.differences import max_difference
from tests.networks.nets.test_vitautoenc_contract import SIZES, image_for, network
from tests.parity.release import assert_equal_to_release, assert_initialized_like_the_release, release_run

torch.set_num_threads(1)

TARGET = "monai.networks.nets.ViTAutoEnc"

VOLUME = {**SIZES, "img_size": (8, 4, 12), "patch_size": 4, "spatial_dims": 3}

TEST_CASES = [
    {**sizes, "proj_type": proj_type, **extra}
    for sizes, proj_type, extra in product(
        (SIZES, VOLUME),
        ("conv", "perceptron"),
        ({}, {"out_channels": 3, "deconv_chns": 5, "qkv_bias": True, "dropout_rate": 0.1}, {"save_attn": True}),
    )
]


class TestViTAutoEnc(unittest.TestCase):
    @parameterized.expand([(case,) for case in TEST_CASES])
    def test_equals_the_release(self, kwargs):
        net = network(**kwargs)
        out, hidden_states = net(image_for(net))
        self.assertEqual(out.shape, (2, kwargs.get("out_channels", 1), *net.img_size))
        self.assertEqual(len(hidden_states), 2)
        assert_equal_to_release(net, TARGET, kwargs, (image_for(net),))

    @parameterized.expand([(SIZES,), (VOLUME,)])
    def test_initial_weights(self, kwargs):
        assert_initialized_like_the_release(network(**kwargs), TARGET, kwargs)

    def test_image_laid_out_otherwise(self):
        """As many patches, but in other places: the image comes back in its own size, as in the release."""
        net, x = network(), torch.randn(1, 2, 8, 64)
        with self.assertWarnsRegex(UserWarning, "grid"):
            out = net(x)[0]
        self.assertEqual(out.shape, (1, 1, 8, 64))
        expected = release_run(TARGET, SIZES, (x,), state=net.state_dict())
        self.assertLessEqual(max_difference(out, expected[0]), 1e-5)


if __name__ == "__main__":
    unittest.main()
