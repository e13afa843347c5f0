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

import inspect
import unittest

import torch
from parameterized import parameterized

from monai.networks.blocks import TransformerBlock
from monai.networks.blocks.attention.options import (
    AttentionOptions,
    block_arguments,
    dropout_argument,
    resolve_projection,
    type_argument,
    upcast_argument,
)

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
        signature = inspect.signature(TransformerBlock).parameters
        for name, value in vars(AttentionOptions()).items():
            if name != "attention_dtype":
                self.assertEqual(signature[name].default, value, name)

    def test_added_arguments_are_left_out_where_they_say_nothing(self):
        self.assertEqual(block_arguments(True, False, None), {})
        self.assertEqual(
            block_arguments(False, True, False),
            dict.fromkeys(("use_combined_linear", "use_proj_attn"), False) | {"use_flash_attention": True},
        )
        self.assertEqual([upcast_argument(False), type_argument(None), dropout_argument(None)], [{}, {}, {}])
        self.assertEqual(dropout_argument(0.0), {"dropout": 0.0})
        self.assertEqual(type_argument(torch.half), {"attention_dtype": torch.half})
        self.assertEqual(upcast_argument(True), {"upcast_attention": True})


if __name__ == "__main__":
    unittest.main()
