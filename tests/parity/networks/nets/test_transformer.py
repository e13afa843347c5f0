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

"""DecoderOnlyTransformer beside the release."""

from __future__ import annotations

import unittest
from itertools import product

import torch
from parameterized import parameterized

from monai.networks.nets import DecoderOnlyTransformer
from tests.differences import max_difference
from tests.networks.nets.test_transformer_contract import SIZES, context, network, tokens
from tests.parity.release import assert_equal_to_release, release_run

torch.set_num_threads(1)

TARGET = "monai.networks.nets.DecoderOnlyTransformer"

TEST_CASES = [
    {**SIZES, "with_cross_attention": cross, "include_fc": include_fc, "use_combined_linear": combined, **extra}
    for cross, include_fc, combined, extra in product(
        (True, False),
        (True, False),
        (True, False),
        ({}, {"use_flash_attention": True, "embedding_dropout_rate": 0.3}),
    )
]


class TestDecoderOnlyTransformer(unittest.TestCase):
    @parameterized.expand([(case,) for case in TEST_CASES])
    def test_equals_the_release(self, kwargs):
        net = network(**kwargs)
        for length in (9, 4):
            arguments = (tokens(length), context()) if kwargs["with_cross_attention"] else (tokens(length),)
            self.assertEqual(net(*arguments).shape, (2, length, 11))
            assert_equal_to_release(net, TARGET, kwargs, arguments)

    def test_cross_attention_without_context_equals_the_release(self):
        kwargs = {**SIZES, "with_cross_attention": True}
        assert_equal_to_release(network(**kwargs), TARGET, kwargs, (tokens(),))

    @parameterized.expand([(True,), (False,)])
    def test_initial_weights(self, cross):
        kwargs = {**SIZES, "with_cross_attention": cross}
        expected = release_run(TARGET, kwargs, seed=0, call=None)
        torch.manual_seed(0)
        own = DecoderOnlyTransformer(**kwargs).state_dict()
        self.assertEqual(list(own), [key for key in expected if "causal_mask" not in key])
        for name in own:
            self.assertTrue(torch.equal(own[name], expected[name]), name)

    @parameterized.expand([(True,), (False,)])
    def test_release_checkpoint_with_masks(self, combined):
        """A strict load of what the release saves, its causal masks and unused norms included."""
        kwargs = {**SIZES, "use_combined_linear": True}
        state = release_run(TARGET, kwargs, seed=4, call=None)
        self.assertIn("blocks.1.attn.causal_mask", state)
        net = network(use_combined_linear=combined)
        net.load_state_dict(state)
        expected = release_run(TARGET, kwargs, (tokens(),), state=state)
        self.assertLessEqual(max_difference(net(tokens()), expected), 1e-5)


if __name__ == "__main__":
    unittest.main()
