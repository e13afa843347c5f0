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


def block(flash: bool, **options) -> SABlock:
    torch.manual_seed(0)
    return SABlock(16, 2, use_flash_attention=flash, **options)


class TestKeyMasks(unittest.TestCase):
    @parameterized.expand([(2, 8), (2, 2), (1, 8)])
    def test_masked_keys_do_not_matter(self, batch, length):
        x, mask = torch.rand(batch, length, 16), torch.ones(batch, length)
        mask[:, length // 2 :] = 0
        for flash in (True, False):
            net = block(flash)
            torch.testing.assert_close(net(x, mask)[:, : length // 2], net(x[:, : length // 2]))

    @parameterized.expand([(True,), (False,)])
    def test_nothing_to_attend_to(self, flash):
        net, mask = block(flash), torch.tensor([[0.0] * 8, [1.0] * 8])
        out = net(torch.rand(2, 8, 16), mask)
        torch.testing.assert_close(out[0], net.out_proj.bias.expand(8, 16))
        out[1].sum().backward()
        self.assertTrue(all(bool(p.grad.isfinite().all()) for p in net.parameters()))

    @parameterized.expand([(True,), (False,)])
    def test_beside_causal_is_refused(self, flash):
        with self.assertRaises(ValueError):
            block(flash, causal=True, sequence_length=8)(torch.rand(2, 8, 16), torch.ones(2, 8))

    def test_scripts(self):
        net, x, mask = block(True), torch.rand(2, 8, 16), torch.tensor([[1.0] * 4 + [0.0] * 4] * 2)
        torch.testing.assert_close(torch.jit.script(net)(x, mask), net(x, mask))


if __name__ == "__main__":
    unittest.main()
