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

from monai.networks.blocks import PatchEmbeddingBlock


class TestImageSize(unittest.TestCase):
    @parameterized.expand([("conv", 4), ("perceptron", 4), ("conv", 12), ("perceptron", 12)])
    def test_another_size_is_refused(self, proj_type, side):
        net = PatchEmbeddingBlock(1, (8, 8), (4, 4), 16, 2, proj_type=proj_type, spatial_dims=2)
        self.assertEqual(net(torch.rand(2, 1, 8, 8)).shape, (2, 4, 16))
        with self.assertRaises(ValueError):
            net(torch.rand(2, 1, side, side))


if __name__ == "__main__":
    unittest.main()
