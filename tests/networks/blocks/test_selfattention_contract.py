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

import copy
import pickle
import unittest
import warnings
from itertools import product

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.networks.blocks import SABlock
from tests.scripting import assert_scripts

torch.set_num_threads(1)

WIDTH, HEADS, TOKENS = 24, 4, 12

# option sets in which the release is right: its dropout is inactive in evaluation unless flash is on
TEST_CASES = [
    dict(include_fc=include_fc, use_combined_linear=combined, qkv_bias=bias, **extra)
    for include_fc, combined, bias, extra in product(
        (True, False),
        (True, False),
        (True, False),
        (
            {},
            {"dropout_rate": 0.3},
            {"causal": True, "sequence_length": TOKENS},
            {"causal": True, "sequence_length": 20, "save_attn": True},
            {"use_flash_attention": True},
            {"rel_pos_embedding": "decomposed", "input_size": (3, 4)},
            {"rel_pos_embedding": "decomposed", "input_size": (4, 3), "save_attn": True},
        ),
    )
]

WIDTHS = [
    {"dim_head": 8},
    {"dim_head": 5, "use_combined_linear": False},
    {"hidden_input_size": 16},
    {"hidden_input_size": 16, "dim_head": 6},
    {"hidden_input_size": 16, "dim_head": 4, "include_fc": False},
]

ILL_ARGUMENTS = [
    ("dropout above one", {"dropout_rate": 6.0}, "6.0"),
    ("negative dropout", {"dropout_rate": -0.1}, "-0.1"),
    ("width not divisible", {"hidden_size": 25}, "25"),
    ("no heads", {"num_heads": 0}, "0"),
    ("causal without length", {"causal": True}, "sequence_length"),
    ("flash and matrix", {"use_flash_attention": True, "save_attn": True}, "save_attn"),
    (
        "flash and positions",
        {"use_flash_attention": True, "rel_pos_embedding": "decomposed", "input_size": (3, 4)},
        "rel_pos_embedding",
    ),
    ("positions without grid", {"rel_pos_embedding": "decomposed"}, "None"),
    ("positions on a line", {"rel_pos_embedding": "decomposed", "input_size": (12,)}, "12"),
    ("no projection for this width", {"use_proj_attn": False, "dim_head": 8}, "32"),
    ("no fc for this width", {"include_fc": False, "hidden_input_size": 16}, "24"),
]


def block(**kwargs) -> SABlock:
    """A block in evaluation mode with random weights everywhere, positions included."""
    torch.manual_seed(0)
    net = SABlock(**{"hidden_size": WIDTH, "num_heads": HEADS, **kwargs})
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net.eval()


def tokens(width: int = WIDTH, batch: int = 2, length: int = TOKENS, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(seed))


class TestSABlock(unittest.TestCase):
    @parameterized.expand(ILL_ARGUMENTS)
    def test_ill_arguments(self, _, kwargs, part):
        with self.assertRaisesRegex(ValueError, part):
            SABlock(**{"hidden_size": WIDTH, "num_heads": HEADS, **kwargs})

    def test_projection_must_be_a_bool(self):
        with self.assertRaisesRegex(TypeError, "'yes'"):
            SABlock(WIDTH, HEADS, use_proj_attn="yes")

    @parameterized.expand([(None, True, True), (None, False, False), (True, False, True), (False, True, False)])
    def test_projection(self, use_proj_attn, include_fc, expected):
        net = block(include_fc=include_fc, use_proj_attn=use_proj_attn)
        self.assertIsInstance(net.out_proj, nn.Linear if expected else nn.Identity)
        self.assertEqual(any("out_proj" in key for key in net.state_dict()), expected)
        self.assertEqual(net(tokens()).shape, (2, TOKENS, WIDTH))

    def test_without_projection_it_is_the_attention_alone(self):
        net, bare = block(), block(use_proj_attn=False)
        bare.qkv.load_state_dict(net.qkv.state_dict())
        torch.testing.assert_close(net(tokens()), net.out_proj(bare(tokens())))

    @parameterized.expand([({},), ({"save_attn": True},)])
    def test_causal_mask_is_a_registered_buffer(self, kwargs):
        """Empty, as no path reads it, and of a type that averages of weights take."""
        for causal in (True, False):
            net = block(causal=causal, sequence_length=8, **kwargs)
            mask = dict(net.named_buffers())["causal_mask"]
            self.assertEqual((mask.dtype, mask.shape), (torch.float32, (0,)))
            self.assertNotIn("causal_mask", net.state_dict())

    @parameterized.expand([(length, save) for length in (1, 8, 12, 30) for save in (True, False)])
    def test_causal(self, length, save_attn):
        net = block(causal=True, sequence_length=12, save_attn=save_attn)
        x = tokens(length=length)
        out = net(x)
        for i in range(1, length + 1):
            torch.testing.assert_close(net(x[:, :i])[:, -1], out[:, i - 1], atol=1e-5, rtol=1e-5)
        if save_attn:
            self.assertEqual(net.att_mat.shape, (2, HEADS, length, length))
            self.assertEqual(float(net.att_mat.triu(1).abs().max()), 0.0)

    def test_matrix(self):
        net, watched = block(), block(save_attn=True)
        self.assertEqual(net(tokens()).shape, watched(tokens()).shape)
        self.assertEqual(net.att_mat.numel(), 0)
        self.assertEqual(watched.att_mat.shape, (2, HEADS, TOKENS, TOKENS))
        self.assertFalse(watched.att_mat.requires_grad)
        torch.testing.assert_close(watched.att_mat.sum(-1), torch.ones(2, HEADS, TOKENS))

    def test_matrix_can_be_asked_for_later(self):
        net = block(causal=True, sequence_length=8)
        out = net(tokens())
        net.save_attn = True
        torch.testing.assert_close(net(tokens()), out)
        self.assertEqual(float(net.att_mat.triu(1).abs().max()), 0.0)

    @parameterized.expand(
        [((2, TOKENS),), ((2, TOKENS, TOKENS),), ((2, 1, TOKENS, TOKENS),), ((2, HEADS, TOKENS, TOKENS),)]
    )
    def test_masks_agree_on_every_path(self, shape):
        mask = torch.rand(shape, generator=torch.Generator().manual_seed(3)) > 0.5
        mask[0] = mask[0] & (torch.arange(TOKENS) > 0)
        watched = block(save_attn=True)
        for extra in ({}, {"rel_pos_embedding": "decomposed", "input_size": (3, 4)}):
            net, watched = block(**extra), block(save_attn=True, **extra)
            torch.testing.assert_close(net(tokens(), attn_mask=mask), watched(tokens(), attn_mask=mask))
            full = mask if mask.dim() == 4 else (mask[:, None] if mask.dim() == 3 else mask[:, None, None])
            self.assertEqual(float(watched.att_mat[~full.expand_as(watched.att_mat)].abs().max()), 0.0)

    def test_masked_tokens_have_no_influence(self):
        net, x = block(), tokens()
        mask = torch.ones(2, TOKENS)
        mask[:, 8:] = 0
        other = x.clone()
        other[:, 8:] = 5.0
        torch.testing.assert_close(net(x, mask)[:, :8], net(other, mask)[:, :8])
        torch.testing.assert_close(net(x, mask)[:, :8], net(x[:, :8]))

    def test_mask_of_another_shape(self):
        with self.assertRaisesRegex(ValueError, r"\[2, 5\]"):
            block()(tokens(), attn_mask=torch.ones(2, 5))

    @parameterized.expand([(True,), (False,)])
    def test_mask_and_causal(self, save_attn):
        with self.assertRaisesRegex(ValueError, "Causal"):
            block(causal=True, sequence_length=TOKENS, save_attn=save_attn)(tokens(), attn_mask=torch.ones(2, TOKENS))

    @parameterized.expand([({},), ({"save_attn": True},)])
    def test_dropout_in_training_only(self, kwargs):
        net = block(dropout_rate=0.5, **kwargs)
        self.assertTrue(torch.equal(net(tokens()), net(tokens())))
        net.train()
        self.assertFalse(torch.equal(net(tokens()), net(tokens())))

    def test_monte_carlo_dropout(self):
        """Switching the dropout modules alone to training switches on the dropout of the weights, fused or not."""
        for kwargs in ({}, {"save_attn": True}):
            net = block(dropout_rate=0.5, **kwargs)
            net.drop_weights.train()
            self.assertFalse(torch.equal(net(tokens()), net(tokens())))

    @parameterized.expand([(torch.float16,), (torch.bfloat16,), (torch.float64,)])
    def test_types(self, dtype):
        for kwargs in ({}, {"save_attn": True}, {"rel_pos_embedding": "decomposed", "input_size": (3, 4)}):
            for attention_dtype in (None, torch.float32, torch.float64):
                net = block(attention_dtype=attention_dtype, **kwargs)
                expected = net(tokens())
                out = net.to(dtype)(tokens().to(dtype))
                self.assertEqual(out.dtype, dtype)
                torch.testing.assert_close(out.float(), expected, atol=0.1, rtol=0.1)

    def test_attention_dtype_holds_under_autocast(self):
        """Large keys overflow float16 logits: only attention in float32 stays finite."""
        finite = []
        for attention_dtype in (None, torch.float32):
            net = block(attention_dtype=attention_dtype, save_attn=True, qkv_bias=True)
            nn.init.constant_(net.qkv.bias, 200.0)
            with torch.autocast("cpu", dtype=torch.float16):
                finite.append(bool(net(tokens()).isfinite().all()))
        self.assertEqual(finite, [False, True])

    def test_empty_batch(self):
        for kwargs in ({}, {"save_attn": True}, {"rel_pos_embedding": "decomposed", "input_size": (3, 4)}):
            self.assertEqual(block(**kwargs)(tokens()[:0]).shape, (0, TOKENS, WIDTH))

    def test_needs_no_einops(self):
        """The block holds no layer of einops, and no module of the core imports it."""
        from monai.networks.blocks import crossattention, selfattention
        from monai.networks.blocks.attention import block as core
        from monai.networks.blocks.attention import kernels, mask, positions

        for module in (core, kernels, mask, positions, crossattention, selfattention):
            self.assertNotIn("einops", open(module.__file__).read())
        self.assertFalse([m for m in block().modules() if type(m).__module__.startswith("einops")])

    def test_custom_position_embedding(self):
        """A layer of the user's own knows only matrices of logits: it gets one."""
        from monai.networks.layers.factories import RelPosEmbedding

        class Distance(nn.Module):
            def __init__(self, num_heads):
                super().__init__()

            def forward(self, x, att_mat, q):
                position = torch.arange(q.shape[2], dtype=q.dtype)
                return att_mat - (position[:, None] - position[None]).abs()

        RelPosEmbedding.add_factory_callable("distance", lambda: Distance, "distance between tokens")
        net = block(rel_pos_embedding="distance")
        self.assertEqual(net(tokens()).shape, (2, TOKENS, WIDTH))
        self.assertFalse(torch.allclose(net(tokens()), block()(tokens())))

    def test_copies(self):
        net = block(causal=True, sequence_length=8)
        for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            twin.load_state_dict(net.state_dict())
            self.assertTrue(torch.equal(twin(tokens()), net(tokens())))

    def test_number_of_parameters(self):
        def count(**kwargs):
            return sum(p.numel() for p in SABlock(hidden_size=32, **kwargs).parameters())

        self.assertEqual(count(num_heads=4), count(num_heads=8))
        self.assertEqual(count(num_heads=4), count(num_heads=4, dim_head=8))
        self.assertEqual(count(num_heads=4), count(num_heads=4, use_combined_linear=False))
        self.assertEqual(count(num_heads=4), 4 * 32 * 32 + 32)
        self.assertEqual(count(num_heads=4, use_proj_attn=False), 3 * 32 * 32)
        self.assertEqual(count(num_heads=4, dim_head=16), 4 * 32 * 64 + 32)

    @parameterized.expand([(case,) for case in TEST_CASES[::3] + WIDTHS])
    def test_script(self, kwargs):
        width = kwargs.get("hidden_input_size", WIDTH)
        assert_scripts(block(**kwargs), (tokens(width),), (tokens(width, batch=3),))

    @parameterized.expand([({},), ({"save_attn": True},), ({"rel_pos_embedding": "decomposed", "input_size": (3, 4)},)])
    def test_script_with_mask(self, kwargs):
        mask = torch.ones(2, TOKENS)
        mask[0] = 0
        assert_scripts(block(**kwargs), (tokens(), mask), (tokens(batch=1), mask[1:]))

    def test_scripted_errors(self):
        scripted = torch.jit.script(block())
        with self.assertRaisesRegex(torch.jit.Error, "attn_mask has shape"):
            scripted(tokens(), torch.ones(2, 5))

    @parameterized.expand([({},), ({"causal": True, "sequence_length": 6},)])
    def test_export_with_dynamic_length(self, kwargs):
        net = block(**kwargs)
        dims = {0: torch.export.Dim("batch", min=1, max=8), 1: torch.export.Dim("length", min=2, max=64)}
        for strict in (True, False):
            exported = torch.export.export(net, (tokens(),), dynamic_shapes={"x": dims}, strict=strict)
            x = tokens(batch=3, length=20)
            torch.testing.assert_close(exported.module()(x), net(x), atol=1e-5, rtol=0)

    @parameterized.expand([({},), ({"save_attn": True},), ({"rel_pos_embedding": "decomposed", "input_size": (3, 4)},)])
    def test_compile_without_graph_breaks(self, kwargs):
        net = block(**kwargs)
        mask = torch.ones(2, TOKENS)
        mask[0, 3:] = 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
            out = compiled(tokens(), mask)
            torch.testing.assert_close(out, net(tokens(), mask), atol=1e-5, rtol=0)
            out.sum().backward()
        self.assertTrue(all(p.grad is not None for p in net.parameters()))


if __name__ == "__main__":
    unittest.main()
