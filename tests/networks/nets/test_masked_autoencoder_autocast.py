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

from monai.networks.nets import MaskedAutoEncoderViT


class TestAutocast(unittest.TestCase):
    def test_trains(self):
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "mlp_dim": 32, "num_layers": 1, "num_heads": 2, "decoder_hidden_size": 16}
        sizes.update(decoder_mlp_dim=32, decoder_num_layers=1, decoder_num_heads=2, masking_ratio=0.5, spatial_dims=2)
        net = MaskedAutoEncoderViT(in_channels=1, img_size=(8, 8), patch_size=(2, 2), **sizes)
        image = torch.rand(2, 1, 8, 8)
        torch.manual_seed(1)
        expected, mask = net(image)
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out, other = net(image)
        self.assertTrue(torch.equal(mask, other))
        torch.testing.assert_close(out.float(), expected, atol=5e-2, rtol=5e-2)
        out.sum().backward()
        self.assertGreater(float(net.mask_tokens.grad.abs().max()), 0.0)


if __name__ == "__main__":
    unittest.main()
