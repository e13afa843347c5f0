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

"""TransformerBlock beside the release."""

from __future__ import annotations

import unittest

import torch
from parameterized import parameterized

from monai.networks.blocks import TransformerBlock
from tests.networks.blocks.test_transformerblock_contract import SIZES, TEST_CASES, block, tokens
from tests.parity.release import assert_equal_to_release, assert_initialized_like_the_release

torch.set_num_threads(1)

TARGET = "monai.networks.blocks.TransformerBlock"


class TestTransformerBlock(unittest.TestCase):
    @parameterized.expand([(case,) for case in TEST_CASES])
    def test_equals_the_release(self, kwargs):
        context = {"context": tokens(7, seed=2)} if kwargs["with_cross_attention"] else {}
        assert_equal_to_release(block(**kwargs), TARGET, kwargs, (tokens(),), **context)

    def test_mask_equals_the_release(self):
        mask = torch.rand(2, 12, generator=torch.Generator().manual_seed(3)) > 0.4
        assert_equal_to_release(block(), TARGET, SIZES, (tokens(),), attn_mask=mask)

    @parameterized.expand([(False,), (True,)])
    def test_initial_weights(self, cross):
        kwargs = {**SIZES, "with_cross_attention": cross}
        torch.manual_seed(5)
        assert_initialized_like_the_release(TransformerBlock(**kwargs), TARGET, kwargs, seed=5)


if __name__ == "__main__":
    unittest.main()
