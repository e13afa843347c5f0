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

from monai.networks.blocks.attention.options import AttentionOptions, resolve_projection

torch.set_num_threads(1)


class TestResolveProjection(unittest.TestCase):
    @parameterized.expand([(None, True, True), (None, False, False), (True, False, True), (False, True, False)])
    def test_given_wins(self, use_proj_attn, include_fc, expected):
        self.assertIs(resolve_projection(use_proj_attn, include_fc), expected)

    @parameterized.expand([("yes",), (1,), (0.0,)])
    def test_other_types_are_refused(self, value):
        with self.assertRaisesRegex(TypeError, repr(value)):
            resolve_projection(value)


class TestAttentionOptions(unittest.TestCase):
    def test_defaults_are_those_of_the_transformer_block(self):
        import inspect

        from monai.networks.blocks import TransformerBlock

        signature = inspect.signature(TransformerBlock).parameters
        for name, value in AttentionOptions().arguments("attention_dtype").items():
            self.assertEqual(signature[name].default, value, name)


if __name__ == "__main__":
    unittest.main()
