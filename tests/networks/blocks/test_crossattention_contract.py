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
from itertools import product

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.networks.blocks import CrossAttentionBlock
from tests.scripting import assert_scripts

torch.set_num_threads(1)

WIDTH, HEADS, TOKENS = 24, 4, 12

# options in which the release is right, and the number of context tokens (None: self attention)
TEST_CASES = [
    ({"qkv_bias": bias, **extra}, context)
    for bias, (extra, contexts) in product(
        (True, False),
        (
            ({}, (None, 7, 12)),
            ({"dropout_rate": 0.3, "save_attn": True}, (7,)),
            ({"dim_head": 8}, (7,)),
            ({"dim_head": 5, "hidden_input_size": 16}, (7,)),
            ({"causal": True, "sequence_length": 20}, (None, 7, 20)),
            ({"causal": True, "sequence_length": 20, "save_attn": True}, (7, 20)),
            ({"use_flash_attention": True}, (7,)),
            ({"rel_pos_embedding": "decomposed", "input_size": (3, 4)}, (None, 12)),
            ({"rel_pos_embedding": "decomposed", "input_size": (3, 4), "save_attn": True}, (12,)),
        ),
    )
    for context in contexts
]

ILL_ARGUMENTS = [
    ("dropout above one", {"dropout_rate": 4.0}, "4.0"),
    ("width not divisible", {"hidden_size": 25}, "25"),
    ("causal without length", {"causal": True}, "sequence_length"),
    ("flash and matrix", {"use_flash_attention": True, "save_attn": True}, "save_attn"),
    (
        "flash and positions",
        {"use_flash_attention": True, "rel_pos_embedding": "decomposed", "input_size": (3, 4)},
        "rel_pos_embedding",
    ),
    ("no projection for this width", {"use_proj_attn": False, "dim_head": 8}, "32"),
]


def block(**kwargs) -> CrossAttentionBlock:
    """A block in evaluation mode with random weights everywhere, positions included."""
    torch.manual_seed(0)
    net = CrossAttentionBlock(**{"hidden_size": WIDTH, "num_heads": HEADS, **kwargs})
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net.eval()


def tokens(length: int, width: int = WIDTH, batch: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(seed))


class TestCrossAttentionBlock(unittest.TestCase):
    @parameterized.expand(ILL_ARGUMENTS)
    def test_ill_arguments(self, _, kwargs, part):
        with self.assertRaisesRegex(ValueError, part):
            CrossAttentionBlock(**{"hidden_size": WIDTH, "num_heads": HEADS, **kwargs})

    @parameterized.expand([(None, True), (True, True), (False, False)])
    def test_projection(self, use_proj_attn, expected):
        net = block(use_proj_attn=use_proj_attn)
        self.assertIsInstance(net.out_proj, nn.Linear if expected else nn.Identity)
        self.assertEqual(any("out_proj" in key for key in net.state_dict()), expected)
        self.assertEqual(net(tokens(TOKENS), tokens(7)).shape, (2, TOKENS, WIDTH))

    @parameterized.expand([({},), ({"save_attn": True},)])
    def test_causal_mask_is_a_registered_buffer(self, kwargs):
        """Empty, as no path reads it, and of a type that averages of weights take."""
        for causal in (True, False):
            net = block(causal=causal, sequence_length=8, **kwargs)
            mask = dict(net.named_buffers())["causal_mask"]
            self.assertEqual((mask.dtype, mask.shape), (torch.float32, (0,)))
            self.assertNotIn("causal_mask", net.state_dict())

    @parameterized.expand([(True,), (False,)])
    def test_causal_sees_earlier_context_only(self, save_attn):
        net = block(causal=True, sequence_length=4, save_attn=save_attn)
        x, context = tokens(TOKENS), tokens(9, seed=2)
        other = context.clone()
        other[:, 5:] = 3.0
        torch.testing.assert_close(net(x, context)[:, :5], net(x, other)[:, :5])
        self.assertFalse(torch.allclose(net(x, context)[:, 5], net(x, other)[:, 5]))

    @parameterized.expand([((2, 7),), ((2, TOKENS, 7),), ((2, 1, TOKENS, 7),), ((2, HEADS, TOKENS, 7),)])
    def test_masks(self, shape):
        mask = torch.rand(shape, generator=torch.Generator().manual_seed(3)) > 0.5
        mask[0] = False
        net, watched = block(), block(save_attn=True)
        x, context = tokens(TOKENS), tokens(7, seed=2)
        out = net(x, context, mask)
        torch.testing.assert_close(out, watched(x, context, mask))
        torch.testing.assert_close(out[0], net.out_proj.bias.expand(TOKENS, WIDTH))
        self.assertEqual(watched.att_mat.shape, (2, HEADS, TOKENS, 7))

    def test_masked_context_has_no_influence(self):
        net, x, context = block(), tokens(TOKENS), tokens(7, seed=2)
        mask = torch.ones(2, 7)
        mask[:, 4:] = 0
        torch.testing.assert_close(net(x, context, attn_mask=mask), net(x, context[:, :4]))

    def test_mask_of_another_shape(self):
        with self.assertRaisesRegex(ValueError, r"\[2, 12\].*\[2, 7\]"):
            block()(tokens(TOKENS), tokens(7), torch.ones(2, TOKENS))

    def test_mask_and_causal(self):
        with self.assertRaisesRegex(ValueError, "Causal"):
            block(causal=True, sequence_length=8)(tokens(TOKENS), tokens(7), torch.ones(2, 7))

    def test_dropout_in_training_only(self):
        net = block(dropout_rate=0.5)
        x, context = tokens(TOKENS), tokens(7)
        self.assertTrue(torch.equal(net(x, context), net(x, context)))
        net.train()
        self.assertFalse(torch.equal(net(x, context), net(x, context)))

    @parameterized.expand([(torch.float16,), (torch.bfloat16,), (torch.float64,)])
    def test_types(self, dtype):
        for attention_dtype in (None, torch.float32):
            net = block(attention_dtype=attention_dtype)
            expected = net(tokens(TOKENS), tokens(7))
            out = net.to(dtype)(tokens(TOKENS).to(dtype), tokens(7).to(dtype))
            self.assertEqual(out.dtype, dtype)
            torch.testing.assert_close(out.float(), expected, atol=0.1, rtol=0.1)

    def test_empty_batch(self):
        self.assertEqual(block()(tokens(TOKENS)[:0], tokens(7)[:0]).shape, (0, TOKENS, WIDTH))

    @parameterized.expand([(kwargs, length) for kwargs, length in TEST_CASES[::2]])
    def test_script(self, kwargs, length):
        width = kwargs.get("hidden_input_size", WIDTH)
        arguments = [(tokens(TOKENS, width, batch), tokens(length or TOKENS, WIDTH, batch)) for batch in (2, 3)]
        assert_scripts(block(**kwargs), *arguments)

    def test_script_with_mask(self):
        mask = torch.ones(2, 7)
        mask[0] = 0
        assert_scripts(block(), (tokens(TOKENS), tokens(7), mask), (tokens(5, batch=1), None, None))


if __name__ == "__main__":
    unittest.main()
