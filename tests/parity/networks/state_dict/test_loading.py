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

"""State dicts of the release, loaded."""

from __future__ import annotations

import unittest

import torch
from parameterized import parameterized

from monai.networks.blocks import TransformerBlock
from tests.differences import max_difference
from tests.networks.state_dict.test_loading import SIZES, tokens
from tests.parity.release import release_run

torch.set_num_threads(1)

RELEASE = "monai.networks.blocks.TransformerBlock"

# options that a checkpoint of the release may have been written with
RELEASE_CASES = [
    {},
    {"qkv_bias": True, "use_combined_linear": False},
    {"include_fc": False},
    {"causal": True, "sequence_length": 6},
    {"with_cross_attention": True},
    {"with_cross_attention": True, "causal": True, "sequence_length": 6},
]


class TestCheckpointsOfTheRelease(unittest.TestCase):
    @parameterized.expand([(case,) for case in RELEASE_CASES])
    def test_strict_load_gives_the_same_outputs(self, kwargs):
        """Saved causal masks and unused norms of the cross attention included."""
        kwargs = {**SIZES, **kwargs}
        state = release_run(RELEASE, kwargs, seed=3, call=None)
        state = {k: v if k.endswith("mask") else torch.randn_like(v) * 0.3 for k, v in state.items()}
        expected = release_run(RELEASE, kwargs, (tokens(),), state=state, fill=False)
        before = dict(state)
        net = TransformerBlock(**kwargs).eval()
        net.load_state_dict(state)
        self.assertLessEqual(max_difference(net(tokens()), expected), 1e-5)
        self.assertEqual(list(state), list(before))

    def test_the_release_saves_masks(self):
        """Otherwise the test above would not cover them."""
        state = release_run(RELEASE, {**SIZES, "causal": True, "sequence_length": 6}, call=None)
        self.assertEqual(state["attn.causal_mask"].shape, (1, 1, 6, 6))


if __name__ == "__main__":
    unittest.main()
