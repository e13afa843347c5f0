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

from monai.networks.blocks import SABlock


class TestRelativePositions3D(unittest.TestCase):
    @parameterized.expand([((2, 2, 2),), ((2, 1, 4),), ((4, 2, 1),), ((4, 2),)])
    def test_logits_of_every_pair_of_tokens(self, size):
        torch.manual_seed(0)
        net = SABlock(16, 2, rel_pos_embedding="decomposed", input_size=size, save_attn=True)
        tables = net.rel_positional_embedding.rel_pos_arr
        for table in tables:
            torch.nn.init.normal_(table)
        x = torch.randn(2, 8, 16)
        net(x)
        q, k, _ = net.qkv(x).reshape(2, 8, 3, 2, 8).permute(2, 0, 3, 1, 4)
        logits = q @ k.transpose(-2, -1) * 8**-0.5
        places = torch.cartesian_prod(*(torch.arange(side) for side in size)).tolist()
        for i, here in enumerate(places):
            for j, there in enumerate(places):
                for axis, table in enumerate(tables):
                    logits[:, :, i, j] += q[:, :, i] @ table[here[axis] - there[axis] + size[axis] - 1]
        torch.testing.assert_close(net.att_mat, logits.softmax(-1), atol=1e-5, rtol=1e-5)

    def test_empty_batch(self):
        net = SABlock(16, 2, rel_pos_embedding="decomposed", input_size=(4, 2))
        self.assertEqual(net(torch.ones(0, 8, 16)).shape, (0, 8, 16))


if __name__ == "__main__":
    unittest.main()
