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

from monai.networks.blocks import CrossAttentionBlock, SABlock


class TestAttentionDropout(unittest.TestCase):
    @parameterized.expand([("self", SABlock), ("cross", CrossAttentionBlock)])
    def test_is_off_in_evaluation_alone(self, _, cls):
        torch.manual_seed(0)
        net, x = cls(16, 2, dropout_rate=0.5, use_flash_attention=True), torch.rand(2, 8, 16)
        self.assertFalse(torch.equal(net(x), net(x)))
        net.eval()
        self.assertTrue(torch.equal(net(x), net(x)))
        plain = cls(16, 2).eval()
        plain.load_state_dict(net.state_dict())
        torch.testing.assert_close(net(x), plain(x))


if __name__ == "__main__":
    unittest.main()
