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

from monai.networks.blocks import TransformerBlock


class TestTransformerBlockTraining(unittest.TestCase):
    def test_every_parameter_gets_its_gradient(self):
        for cross in (False, True):
            net = TransformerBlock(16, 32, 2, with_cross_attention=cross)
            net(torch.rand(2, 8, 16), context=torch.rand(2, 5, 16) if cross else None).sum().backward()
            self.assertEqual([name for name, p in net.named_parameters() if p.requires_grad and p.grad is None], [])

    def test_matrix_of_cross_attention(self):
        net = TransformerBlock(16, 32, 2, with_cross_attention=True, save_attn=True)
        net(torch.rand(2, 8, 16), context=torch.rand(2, 5, 16))
        self.assertEqual(net.cross_attn.att_mat.shape, (2, 2, 8, 5))


if __name__ == "__main__":
    unittest.main()
