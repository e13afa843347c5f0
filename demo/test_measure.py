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
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn as nn
from parameterized import parameterized

import monai
from demo import release
from demo.checks import Check, DemoError
from demo.measure import difference, scripted_difference
from demo.release import Release
from demo.work import causal_checks
from monai.networks.blocks import TransformerBlock
from monai.networks.nets import DecoderOnlyTransformer

torch.set_num_threads(1)

DECODER = {
    "num_tokens": 17,
    "max_seq_len": 12,
    "attn_layers_dim": 8,
    "attn_layers_depth": 2,
    "attn_layers_heads": 2,
}
TEST_CASE_CHECK = [(1e-6, True), (1e-5, True), (2e-5, False), (float("nan"), False), (float("inf"), False)]


class AnotherWhenScripted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1e-3 if torch.jit.is_scripting() else x


class BothWays(nn.Module):
    """A decoder whose blocks see later tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(17, 8)
        self.blocks = nn.ModuleList([TransformerBlock(8, 16, 2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[0](self.embedding(x))


class TestChecks(unittest.TestCase):
    @parameterized.expand(TEST_CASE_CHECK)
    def test_check(self, value, passed):
        self.assertEqual(Check("difference", value, 1e-5).passed, passed)

    def test_difference(self):
        a, b = torch.zeros(2, 3), torch.zeros(3)
        self.assertEqual(difference((a, [b]), (a, [b + 0.5])), 0.5)
        self.assertEqual(difference(a, b), float("inf"))

    def test_scripted_difference(self):
        self.assertAlmostEqual(scripted_difference(AnotherWhenScripted(), torch.zeros(2, 3)), 1e-3, places=6)
        self.assertEqual(scripted_difference(nn.Linear(3, 3), torch.zeros(2, 3)), 0)

    def test_causal_checks(self):
        tokens = torch.arange(24).view(2, 12) % 16
        held = causal_checks(DecoderOnlyTransformer(**DECODER).eval(), tokens)
        self.assertEqual([check.passed for check in held], [True, True, True])
        broken = causal_checks(BothWays().eval(), tokens)
        self.assertEqual([check.passed for check in broken][1:], [False, True])


class TestRelease(unittest.TestCase):
    def test_compare(self):
        torch.manual_seed(0)
        net, tokens = DecoderOnlyTransformer(**DECODER, use_proj_attn=False).eval(), torch.arange(24).view(2, 12) % 16
        with Release() as other:
            self.assertNotEqual(other.version(), "")
            worst, ours, theirs = other.compare("DecoderOnlyTransformer", {**DECODER, "include_fc": False}, net, tokens)
            self.assertLess(worst, 1e-5)
            self.assertGreater(min(ours, theirs), 0)
            with self.assertRaisesRegex(DemoError, "missing keys .*out_proj"):
                other.compare("DecoderOnlyTransformer", DECODER, net, tokens)
            with torch.no_grad():
                output = other.ask(
                    "load", "DecoderOnlyTransformer", {**DECODER, "include_fc": False}, net.state_dict(), tokens
                )
                net.to_logits.bias += 1e-3
                self.assertGreater(difference(net(tokens), output), 1e-5)

    def test_the_release_is_not_compared_with_itself(self):
        with patch.object(release, "pristine", return_value=Path(monai.__file__).parents[1]):
            with self.assertRaisesRegex(DemoError, "install the fork"):
                Release()


if __name__ == "__main__":
    unittest.main()
