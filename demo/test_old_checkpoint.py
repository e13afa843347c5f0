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

from demo.make_checkpoint import CHECKPOINT
from monai.networks.nets import ViT

torch.set_num_threads(1)

TEST_CASES = [({},), ({"save_attn": True},), ({"use_combined_linear": False},), ({"use_proj_attn": True},)]


def largest_difference(net: torch.nn.Module, saved: dict) -> float:
    with torch.no_grad():
        return float((net.eval()(saved["input"])[0] - saved["output"]).abs().max())


class TestOldCheckpoint(unittest.TestCase):
    """The file of MONAI 1.5.2, straight into the fork's ViT."""

    def setUp(self):
        self.saved = torch.load(CHECKPOINT, weights_only=True)

    def test_what_it_is(self):
        self.assertEqual((self.saved["monai"], self.saved["network"]), ("1.5.2", "ViT"))
        self.assertLess(CHECKPOINT.stat().st_size, 300_000)
        self.assertGreater(float(self.saved["output"].std()), 0.1)
        for stale in ("blocks.0.cross_attn.to_q.weight", "blocks.0.norm_cross_attn.weight"):
            self.assertIn(stale, self.saved["state_dict"])

    @parameterized.expand(TEST_CASES)
    def test_loads_strictly_with_the_same_output(self, options):
        net = ViT(**self.saved["options"], **options)
        self.assertGreater(largest_difference(net, self.saved), 0.1)
        net.load_state_dict(self.saved["state_dict"], strict=True)
        self.assertLess(largest_difference(net, self.saved), 1e-5)

    def test_a_trained_projection_does_not_fit_a_network_without_one(self):
        net = ViT(**self.saved["options"], use_proj_attn=False)
        with self.assertRaisesRegex(RuntimeError, "out_proj"):
            net.load_state_dict(self.saved["state_dict"], strict=True)

    def test_a_missing_weight_is_refused(self):
        del self.saved["state_dict"]["blocks.1.attn.qkv.weight"]
        with self.assertRaisesRegex(RuntimeError, "blocks.1.attn.qkv.weight"):
            ViT(**self.saved["options"]).load_state_dict(self.saved["state_dict"], strict=True)


if __name__ == "__main__":
    unittest.main()
