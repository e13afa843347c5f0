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
"""
A position embedding that this package does not have, rotary positions, handed to the blocks: kernel, explicit path,
rows, cache, scripts and captures ask it, and no line of theirs knows of it.
"""

from __future__ import annotations

import unittest
from typing import Optional

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.networks.blocks import CrossAttentionBlock, SABlock, TransformerBlock
from monai.networks.blocks.attention.cache import CachedTransformerBlock, why_not_cached
from monai.networks.blocks.attention.config import attention_config
from monai.networks.blocks.attention.positions import Positions
from monai.networks.blocks.attention.relative_positions import DecomposedRelativePosEmbedding
from monai.visualize.attention.capture import capture_attention

torch.set_num_threads(1)
WIDTH, HEADS, TOKENS = 16, 2, 6


class Rope(Positions):
    """Pairs of channels turn by angles that grow with a token's number (Su et al., https://arxiv.org/abs/2104.09864)."""

    kind = "rope"
    token_by_token = True

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        frequencies = 100.0 ** -(torch.arange(0, head_dim, 2) / head_dim)
        self.frequencies: torch.Tensor
        self.register_buffer("frequencies", frequencies, persistent=False)

    def embed(
        self, q: torch.Tensor, k: torch.Tensor, positions: Optional[torch.Tensor] = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.turn(q, positions), self.turn(k, positions)

    def turn(self, x: torch.Tensor, positions: Optional[torch.Tensor]) -> torch.Tensor:
        if positions is None:
            positions = torch.arange(x.shape[2], device=x.device)
        angles = positions[:, None] * self.frequencies
        cos, sin = angles.cos(), angles.sin()
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)


class Distance(Positions):
    """Adds a learned number for each distance, in a forward of its own alone: it needs the whole matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: torch.Tensor, att_mat: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        places = torch.arange(att_mat.shape[2])
        return att_mat - self.slope * (places[:, None] - places).abs()


def tokens(number: int = TOKENS, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, number, WIDTH, generator=torch.Generator().manual_seed(seed))


def block(positions: nn.Module | None = None, cls: type = SABlock, **kwargs) -> SABlock:
    torch.manual_seed(3)
    return cls(
        WIDTH, HEADS, rel_pos_embedding=Rope(WIDTH // HEADS) if positions is None else positions, **kwargs
    ).eval()


def by_definition(net: SABlock, x: torch.Tensor) -> torch.Tensor:
    """Weights of attention whose logits depend on rotated queries and keys, pair by pair."""
    q, k, _ = net.project(x)
    rope, weights = net.rel_positional_embedding, torch.zeros(2, HEADS, TOKENS, TOKENS)
    for i in range(TOKENS):
        for j in range(TOKENS):
            back = rope.turn(k[:, :, j : j + 1], torch.tensor([j - i]))[:, :, 0]
            weights[:, :, i, j] = (q[:, :, i] * back).sum(-1) * net.scale
    return weights.softmax(-1)


class TestRotaryPositions(unittest.TestCase):
    def setUp(self):
        torch.compiler.reset()
        self.addCleanup(torch.compiler.reset)

    def test_depends_on_distances(self):
        net = block(save_attn=True)
        net(tokens())
        torch.testing.assert_close(net.att_mat, by_definition(net, tokens()), atol=1e-6, rtol=0)

    @parameterized.expand(
        [({},), ({"causal": True, "sequence_length": 4},), ({"attention_dtype": torch.float64},), ({"qkv_bias": True},)]
    )
    def test_paths_agree(self, kwargs):
        """The fused kernel, the matrix, a script, and a compiled graph."""
        net, explicit = block(**kwargs), block(save_attn=True, **kwargs)
        self.assertTrue(net.fuses)
        expected = explicit(tokens())
        for run in (net, torch.jit.script(net), torch.compile(net, backend="aot_eager", fullgraph=True)):
            torch.testing.assert_close(run(tokens()), expected, atol=1e-6, rtol=0)
        net.rel_positional_embedding = None
        self.assertGreater(float((expected - net(tokens())).abs().max()), 1e-3)

    def test_mask(self):
        mask = torch.ones(2, TOKENS)
        mask[:, 3:] = 0
        torch.testing.assert_close(
            block()(tokens(), attn_mask=mask), block(save_attn=True)(tokens(), attn_mask=mask), atol=1e-6, rtol=0
        )

    def test_gradients_agree(self):
        found = []
        for kwargs in ({}, {"save_attn": True}):
            net = block(**kwargs)
            net(tokens()).square().sum().backward()
            found.append(net.qkv.weight.grad)
        torch.testing.assert_close(*found, atol=1e-5, rtol=0)

    def test_cross_attention(self):
        net, explicit = block(cls=CrossAttentionBlock), block(cls=CrossAttentionBlock, save_attn=True)
        expected = explicit(tokens(), tokens(9, seed=1))
        torch.testing.assert_close(net(tokens(), tokens(9, seed=1)), expected, atol=1e-6, rtol=0)

    def test_rows_and_captures(self):
        net, explicit = block(), block(save_attn=True)
        explicit(tokens())
        with capture_attention(net, queries=torch.tensor([4, 1])) as capture:
            net(tokens())
        torch.testing.assert_close(capture.maps[0].weights, explicit.att_mat[:, :, [4, 1]], atol=1e-6, rtol=0)

    def test_cache(self):
        torch.manual_seed(0)
        net = TransformerBlock(WIDTH, 32, HEADS, causal=True, sequence_length=TOKENS).eval()
        plain = net(tokens())
        net.attn.rel_positional_embedding = Rope(WIDTH // HEADS)
        expected = net(tokens())
        self.assertGreater(float((expected - plain).abs().max()), 1e-3)
        with torch.no_grad():
            for make in (lambda cached: cached, torch.jit.script):
                cached = make(CachedTransformerBlock(net, 2, 16))
                first = cached(tokens()[:, :3], torch.arange(3), 0)
                rest = [cached(tokens()[:, i : i + 1], torch.tensor([i]), i) for i in range(3, TOKENS)]
                torch.testing.assert_close(torch.cat([first, *rest], dim=1), expected, atol=1e-6, rtol=0)

    def test_says_what_it_is(self):
        self.assertEqual([row["rel_pos"] for row in attention_config(block())], ["rope"])
        self.assertEqual([row["rel_pos"] for row in attention_config(block(Distance()))], ["Distance"])

    def test_hooks_are_called(self):
        """Whoever watches the positions has the matrix built, on which they are called."""
        net, seen = block(), []
        expected = net(tokens())
        net.rel_positional_embedding.register_forward_hook(lambda module, args, out: seen.append(out.shape))
        torch.testing.assert_close(net(tokens()), expected, atol=1e-6, rtol=0)
        self.assertEqual(seen, [(2, HEADS, TOKENS, TOKENS)])


class TestPositionsOnTheMatrix(unittest.TestCase):
    def test_forward_alone(self):
        net = block(Distance())
        self.assertFalse(net.fuses)
        q, k, v = net.project(tokens())
        places = torch.arange(TOKENS)
        logits = q @ k.transpose(-2, -1) * net.scale - 0.5 * (places[:, None] - places).abs()
        expected = net.join_heads(logits.softmax(-1) @ v)
        torch.testing.assert_close(net(tokens()), expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(torch.jit.script(net)(tokens()), expected, atol=1e-6, rtol=0)
        rows = net.attention_rows(tokens(), q, k, torch.tensor([2]))
        torch.testing.assert_close(rows, logits.softmax(-1)[:, :, [2]], atol=1e-6, rtol=0)

    def test_a_kernel_without_rows(self):
        """What does not say what it adds to some rows gets the whole matrix, so that maps do not lack it."""

        class Half(Distance):
            def forward(self, x: torch.Tensor, att_mat: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
                return att_mat + torch.arange(att_mat.shape[-1])

            def fused(self, q, k, v, mask, causal, scale, dropout_p):
                raise AssertionError("called, although maps would lack its terms")

        net, explicit = block(Half()), block(Half(), save_attn=True)
        self.assertFalse(net.fuses)
        expected = explicit(tokens())
        with capture_attention(net, queries=torch.tensor([4, 1])) as capture:
            torch.testing.assert_close(net(tokens()), expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(capture.maps[0].weights, explicit.att_mat[:, :, [4, 1]], atol=1e-6, rtol=0)

    def test_subclass_with_another_forward(self):
        """It has the fused kernel of the class that it comes from, which does not compute its forward."""

        class Halved(DecomposedRelativePosEmbedding):
            def forward(self, x, att_mat, q):
                return (super().forward(x, att_mat, q) + att_mat) / 2

        self.assertTrue(block(DecomposedRelativePosEmbedding((2, 3), 8, HEADS)).fuses)
        self.assertFalse(block(Halved((2, 3), 8, HEADS)).fuses)

    @parameterized.expand([(lambda: Distance(),), (lambda: DecomposedRelativePosEmbedding((2, 3), 8, HEADS),)])
    def test_no_cache(self, make):
        net = TransformerBlock(WIDTH, 32, HEADS, causal=True, sequence_length=TOKENS)
        self.assertIsNone(why_not_cached(net))
        net.attn.rel_positional_embedding = make()
        self.assertRegex(why_not_cached(net), "relative positions")


if __name__ == "__main__":
    unittest.main()
