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

from monai.networks.blocks import SpatialAttentionBlock


class TestEmptyBatch(unittest.TestCase):
    def test_comes_out_empty(self):
        for dims in (1, 2, 3):
            net = SpatialAttentionBlock(dims, 16, norm_num_groups=4)
            shape = (0, 16, *[4] * dims)
            self.assertEqual(net(torch.ones(shape)).shape, shape)

    def test_scripts(self):
        net, x = SpatialAttentionBlock(2, 16, norm_num_groups=4), torch.rand(2, 16, 4, 3)
        torch.testing.assert_close(torch.jit.script(net)(x), net(x))


if __name__ == "__main__":
    unittest.main()
