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

from monai.networks.blocks import SABlock


class TestHeadWidth(unittest.TestCase):
    def test_frees_the_hidden_size(self):
        self.assertEqual(SABlock(16, 3, dim_head=4)(torch.rand(2, 8, 16)).shape, (2, 8, 16))

    def test_hidden_size_without_it(self):
        with self.assertRaises(ValueError):
            SABlock(16, 3)

    def test_width_that_cannot_come_out(self):
        with self.assertRaises(ValueError):
            SABlock(16, 2, dim_head=4, include_fc=False)
        self.assertEqual(SABlock(16, 2, dim_head=8, include_fc=False)(torch.rand(2, 8, 16)).shape, (2, 8, 16))


if __name__ == "__main__":
    unittest.main()
