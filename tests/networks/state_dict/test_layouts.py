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
import torch.nn as nn
from parameterized import parameterized

from monai.networks.state_dict.layouts import recognize_layouts, rivals
from monai.networks.state_dict.untrained import departure, never_trained, only_one_untrained

torch.set_num_threads(1)
LAYOUTS = [
    ("model.attn_layers.layers.0.0.0.weight", "x-transformers"),
    ("input_blocks.1.0.in_layers.0.weight", "input_blocks"),
    ("net.output_blocks.0.0.in_layers.0.weight", "input_blocks"),
    ("down_blocks.1.attentions.0.query.weight", "query"),
    ("query.weight", "query"),
    ("encoder.blocks.4.q.conv.weight", "q.conv"),
    ("middle_block.attention.transformer_blocks.0.ff.net.0.proj.weight", "ff.net"),
    ("middle_block.attention.to_q.weight", "to_q"),
    ("module.decoder.blocks.2.to_q.weight", "to_q"),
    ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0.bias", "to_out"),
    ("blocks.3.norm3.weight", "norm3"),
    ("decoder.blocks.0.norm1.param_free_norm.N.weight", "param_free_norm.N"),
    ("encoder.0.conv.weight", "flat VQVAE"),
    ("blocks.0.attn.causal_mask", "saved mask"),
    ("blocks.0.cross_attn.to_q.weight", "cross_attn"),
    ("blocks.0.norm_cross_attn.weight", "norm_cross_attn"),
    ("vit.blocks.0.attn.qkv.weight", "MONAI"),
    ("down_blocks.1.attentions.0.attn.to_q.weight", "MONAI"),
    ("middle_block.attention.transformer_blocks.0.attn1.to_q.weight", "MONAI"),
]
NO_LAYOUT = [
    "middle_block.attention.transformer_blocks.0.norm3.weight",
    "encoder.blocks.0.conv.weight",
    "down_blocks.1.attentions.0.proj_out.conv.weight",
    "head.weight",
]


class TestLayouts(unittest.TestCase):
    @parameterized.expand(LAYOUTS)
    def test_recognized_by_one_key(self, key, name):
        found = recognize_layouts(["head.weight", key])
        self.assertEqual([layout.name for layout in found], [name])
        self.assertEqual(found[0].evidence, key)
        self.assertTrue(found[0].source and found[0].meaning)

    @parameterized.expand([(key,) for key in NO_LAYOUT])
    def test_no_evidence(self, key):
        self.assertEqual(recognize_layouts([key]), [])

    def test_rivals(self):
        new, old = "encoder.blocks.4.attn.to_q.weight", "decoder.blocks.2.to_v.bias"
        self.assertEqual(rivals([new, "encoder.blocks.6.attn.out_proj.bias", "norm.weight"]), [new])
        self.assertEqual(set(rivals([new, old])), {new, old})
        transformer = "attentions.0.transformer_blocks.0.attn1.to_q.weight"
        self.assertEqual(rivals([transformer, "attentions.0.proj_out.conv.weight"]), [])


class TestNeverTrained(unittest.TestCase):
    @parameterized.expand([(w, t) for w in (8, 64, 256) for t in (torch.float32, torch.float16, torch.bfloat16)])
    def test_new_linears(self, width, dtype):
        torch.manual_seed(width)
        for _ in range(20):
            linear = nn.Linear(width, width).to(dtype)
            self.assertTrue(never_trained(linear.weight, linear.bias))

    @parameterized.expand([("normal",), ("smaller",), ("larger",), ("one outside",), ("not a number",), ("zero",)])
    def test_other_weights(self, change):
        torch.manual_seed(0)
        weight = nn.Linear(32, 32).weight.detach()
        changed = {
            "normal": torch.randn(32, 32) * weight.std(),
            "smaller": weight * 0.95,
            "larger": weight * 1.01,
            "one outside": weight.clone().index_put_((torch.tensor(3), torch.tensor(4)), torch.tensor(0.18)),
            "not a number": weight.clone().index_put_((torch.tensor(3), torch.tensor(4)), torch.tensor(torch.nan)),
            "zero": torch.zeros(32, 32),
        }[change]
        self.assertTrue(never_trained(weight))
        self.assertFalse(never_trained(changed))

    def test_large_weights(self):
        """They are sampled; but one value outside of the bound tells, wherever it lies."""
        torch.manual_seed(0)
        weight = nn.Linear(512, 1024).weight.detach()
        self.assertLess(departure(weight).count, departure(weight).total)
        self.assertTrue(never_trained(weight))
        self.assertTrue(only_one_untrained([weight], [weight + 1e-3 * torch.randn(1024, 512).sign()]))
        weight[1, 7] = 0.05
        self.assertFalse(never_trained(weight))

    def test_values_not_at_hand(self):
        for weight in (torch.ones(32, 32, device="meta"), torch.ones(32, 32, dtype=torch.int), torch.ones(0, 32)):
            self.assertIsNone(departure(weight))
            self.assertFalse(never_trained(weight))
        self.assertIsNone(departure())
        self.assertFalse(never_trained(nn.Linear(7, 7).weight))  # too few to tell

    def test_beside_others(self):
        torch.manual_seed(0)
        one, same, other = nn.Linear(64, 64), nn.Linear(64, 64).weight, torch.randn(64, 64)
        self.assertTrue(only_one_untrained([one.weight, one.bias], [other, same]))
        self.assertFalse(only_one_untrained([one.weight, one.bias], [same]))
        self.assertFalse(only_one_untrained([other], [other]))
        self.assertFalse(only_one_untrained([one.weight], []))

    def test_a_departure_that_would_not_show(self):
        """The others moved, but so little that the one may have moved as far unseen."""
        torch.manual_seed(0)
        one, other = nn.Linear(64, 64).weight, nn.Linear(64, 64).weight.detach()
        moved = other + 1e-4 * torch.randn(64, 64).sign()
        self.assertFalse(never_trained(moved))
        self.assertFalse(only_one_untrained([one], [moved]))
        self.assertTrue(only_one_untrained([one], [other + 1e-2 * torch.randn(64, 64).sign()]))


if __name__ == "__main__":
    unittest.main()
