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

BLOCKS = [("self", SABlock), ("cross", CrossAttentionBlock)]


class TestCausalMask(unittest.TestCase):
    @parameterized.expand(BLOCKS)
    def test_is_a_buffer_of_every_block(self, _, cls):
        for options in ({}, {"causal": True, "sequence_length": 4}):
            net = cls(8, 2, **options).double()
            self.assertIn("causal_mask", dict(net.named_buffers()))
            self.assertEqual(net.causal_mask.dtype, torch.float64)
            self.assertNotIn("causal_mask", net.state_dict())

    @parameterized.expand(BLOCKS)
    def test_older_state_dict_loads_strictly(self, _, cls):
        net = torch.nn.ModuleList([cls(8, 2, causal=True, sequence_length=4)])
        net.load_state_dict({**net.state_dict(), "0.causal_mask": torch.ones(4, 4).tril().view(1, 1, 4, 4)})

    @parameterized.expand(BLOCKS)
    def test_later_tokens_do_not_matter(self, _, cls):
        net, x = cls(8, 2, causal=True, sequence_length=4).eval(), torch.rand(2, 4, 8)
        other = torch.cat([x[:, :3], torch.rand(2, 1, 8)], 1)
        torch.testing.assert_close(net(x)[:, :3], net(other)[:, :3])


class TestProjection(unittest.TestCase):
    @parameterized.expand(BLOCKS)
    def test_is_left_out(self, _, cls):
        net, full, x = cls(8, 2, use_proj_attn=False), cls(8, 2, use_proj_attn=True), torch.rand(2, 4, 8)
        self.assertEqual([key for key in net.state_dict() if "out_proj" in key], [])
        full.load_state_dict({**net.state_dict(), "out_proj.weight": torch.eye(8), "out_proj.bias": torch.zeros(8)})
        torch.testing.assert_close(net(x), full(x))
        torch.testing.assert_close(torch.jit.script(net)(x), net(x))

    def test_follows_include_fc(self):
        for include_fc, use in ((True, None), (False, None), (True, False), (False, True)):
            net = SABlock(8, 2, include_fc=include_fc, use_proj_attn=use)
            self.assertEqual(isinstance(net.out_proj, torch.nn.Linear), include_fc if use is None else use)

    @parameterized.expand(BLOCKS)
    def test_width_that_cannot_come_out(self, _, cls):
        with self.assertRaises(ValueError):
            cls(8, 2, dim_head=2, use_proj_attn=False)


if __name__ == "__main__":
    unittest.main()
