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

"""SABlock beside the release."""

from __future__ import annotations

import unittest

import torch
from parameterized import parameterized

from monai.networks.blocks import SABlock
from tests.networks.blocks.test_selfattention_contract import HEADS, TEST_CASES, TOKENS, WIDTH, WIDTHS, block, tokens
from tests.parity.release import assert_equal_to_release, assert_initialized_like_the_release

torch.set_num_threads(1)

TARGET = "monai.networks.blocks.SABlock"


class TestAgainstRelease(unittest.TestCase):
    @parameterized.expand([(case,) for case in TEST_CASES + WIDTHS])
    def test_outputs_and_gradients(self, kwargs):
        net = block(**kwargs)
        x = tokens(kwargs.get("hidden_input_size", WIDTH))
        assert_equal_to_release(net, TARGET, {"hidden_size": WIDTH, "num_heads": HEADS, **kwargs}, (x,))

    @parameterized.expand([(True,), (False,)])
    def test_masks_over_keys(self, save_attn):
        mask = torch.rand(2, TOKENS, generator=torch.Generator().manual_seed(2)) > 0.4
        kwargs = {"hidden_size": WIDTH, "num_heads": HEADS, "save_attn": save_attn}
        assert_equal_to_release(block(save_attn=save_attn), TARGET, kwargs, (tokens(),), attn_mask=mask)
        assert_equal_to_release(block(save_attn=save_attn), TARGET, kwargs, (tokens(),), attn_mask=mask[:1])

    def test_initial_weights(self):
        for kwargs in ({}, {"use_combined_linear": False, "qkv_bias": True}):
            kwargs = {"hidden_size": WIDTH, "num_heads": HEADS, **kwargs}
            torch.manual_seed(7)
            assert_initialized_like_the_release(SABlock(**kwargs), TARGET, kwargs, seed=7)


if __name__ == "__main__":
    unittest.main()
