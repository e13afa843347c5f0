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
from parameterized import parameterized_class

from monai.networks.blocks import CrossAttentionBlock, SABlock


@parameterized_class(
    ("cls", "flash"), [(cls, flash) for cls in (SABlock, CrossAttentionBlock) for flash in (True, False)]
)
class TestUpcast(unittest.TestCase):
    def test_half_types(self):
        for dtype in (torch.float16, torch.bfloat16):
            torch.manual_seed(0)
            net = self.cls(16, 2, attention_dtype=torch.float32, use_flash_attention=self.flash)
            x = torch.rand(2, 8, 16)
            expected = net(x)
            out = net.to(dtype)(x.to(dtype))
            self.assertEqual(out.dtype, dtype)
            torch.testing.assert_close(out.float(), expected, atol=2e-2, rtol=2e-2)


if __name__ == "__main__":
    unittest.main()
