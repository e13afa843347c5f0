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

"""ViT beside the release."""

from __future__ import annotations

import unittest

import torch
from parameterized import parameterized

from tests.differences import max_difference
from tests.networks.nets.test_vit_contract import SIZES, TEST_CASES, image_for, network
from tests.parity.release import assert_equal_to_release, assert_initialized_like_the_release, release_run

torch.set_num_threads(1)

TARGET = "monai.networks.nets.ViT"

OPTIONS = [
    {},
    {"save_attn": True},
    {"use_flash_attention": True},
    {"use_combined_linear": False, "qkv_bias": True},
    {"use_proj_attn": True, "classification": True, "post_activation": None},
]


class TestViT(unittest.TestCase):
    @parameterized.expand([(case,) for case in TEST_CASES])
    def test_equals_the_release(self, kwargs):
        net = network(**kwargs)
        assert_equal_to_release(net, TARGET, kwargs, (image_for(net),))

    @parameterized.expand([(case,) for case in TEST_CASES[::5]])
    def test_initial_weights(self, kwargs):
        assert_initialized_like_the_release(network(**kwargs), TARGET, kwargs)

    @parameterized.expand([(case,) for case in OPTIONS])
    def test_options_equal_the_release(self, kwargs):
        """Whatever the form of the weights, the release's load and give the release's outputs."""
        known = {
            key: kwargs[key] for key in kwargs.keys() - {"use_flash_attention", "use_combined_linear", "use_proj_attn"}
        }
        reference = network(**known)
        net = network(**kwargs)
        net.load_state_dict(release_run(TARGET, {**SIZES, **known}, state=reference.state_dict(), call=None))
        x = image_for(net)
        expected = release_run(TARGET, {**SIZES, **known}, (x,), state=reference.state_dict())
        self.assertLessEqual(max_difference(net(x), expected), 1e-5)


if __name__ == "__main__":
    unittest.main()
