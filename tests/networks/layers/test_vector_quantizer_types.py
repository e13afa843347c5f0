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

from monai.networks.layers.vector_quantizer import EMAQuantizer, VectorQuantizer


class TestTypes(unittest.TestCase):
    @parameterized.expand([(torch.float16,), (torch.bfloat16,), (torch.float64,), (torch.float32,)])
    def test_quantizes(self, dtype):
        torch.manual_seed(0)
        net = VectorQuantizer(EMAQuantizer(spatial_dims=2, num_embeddings=8, embedding_dim=4)).to(dtype)
        x = torch.randn(2, 4, 4, 4).to(dtype)
        net.train()
        loss, out = net(x)
        self.assertEqual((out.dtype, out.shape), (dtype, x.shape))
        self.assertTrue(bool(loss.isfinite()))
        net.eval()
        weight = net.quantizer.embedding.weight.float()
        nearest = torch.cdist(x.float().movedim(1, -1).reshape(-1, 4), weight).argmin(1)
        self.assertTrue(torch.equal(net.quantize(x).flatten(), nearest))


if __name__ == "__main__":
    unittest.main()
