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

"""CrossAttentionBlock beside the release."""

from __future__ import annotations

import unittest

import torch
from parameterized import parameterized

from tests.networks.blocks.test_crossattention_contract import HEADS, TEST_CASES, TOKENS, WIDTH, block, tokens
from tests.parity.release import assert_equal_to_release

torch.set_num_threads(1)

TARGET = "monai.networks.blocks.CrossAttentionBlock"


class TestAgainstRelease(unittest.TestCase):
    @parameterized.expand(TEST_CASES)
    def test_outputs_and_gradients(self, kwargs, length):
        arguments = (tokens(TOKENS, kwargs.get("hidden_input_size", WIDTH)),)
        if length is not None:
            arguments += (tokens(length, seed=2),)
        kwargs = {"hidden_size": WIDTH, "num_heads": HEADS, **kwargs}
        assert_equal_to_release(block(**kwargs), TARGET, kwargs, arguments)

    def test_context_of_another_width(self):
        kwargs = {"hidden_size": WIDTH, "num_heads": HEADS, "context_input_size": 10}
        assert_equal_to_release(block(**kwargs), TARGET, kwargs, (tokens(TOKENS), tokens(7, 10, seed=2)))


if __name__ == "__main__":
    unittest.main()
