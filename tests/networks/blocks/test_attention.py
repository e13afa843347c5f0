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

from monai.networks.blocks.attention import (
    AttentionOptions,
    attention_weights,
    fused_attention,
    lower_triangle,
    resolve_mask,
    resolve_projection,
)

torch.set_num_threads(1)
BATCH, HEADS, QUERIES, KEYS = 3, 2, 5, 4

# shape of the mask, shape it is resolved to
MASKS = [
    ((3, 4), (3, 1, 1, 4)),
    ((1, 4), (1, 1, 1, 4)),
    ((3, 5, 4), (3, 1, 5, 4)),
    ((3, 1, 5, 4), (3, 1, 5, 4)),
    ((3, 2, 5, 4), (3, 2, 5, 4)),
    ((1, 1, 5, 4), (1, 1, 5, 4)),
]
BAD_MASKS = [
    ((4,),),
    ((3, 5),),
    ((2, 4),),
    ((3, 4, 4),),
    ((3, 3, 5, 4),),
    ((3, 2, 1, 4),),
    ((3, 2, 5, 4, 1),),
    ((3, 1, 4),),
]
MASK_TYPES = [(torch.bool,), (torch.uint8,), (torch.int64,), (torch.float32,)]


def qkv(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(BATCH, HEADS, tokens, 8) for tokens in (QUERIES, KEYS, KEYS)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, allowed: torch.Tensor, scale: float) -> torch.Tensor:
    """Attention written out one query at a time, in double precision."""
    out = torch.zeros(BATCH, HEADS, QUERIES, v.shape[-1], dtype=torch.float64)
    allowed = allowed.expand(BATCH, HEADS, QUERIES, KEYS)
    for b, h, i in torch.cartesian_prod(torch.arange(BATCH), torch.arange(HEADS), torch.arange(QUERIES)).tolist():
        keys = allowed[b, h, i].nonzero().flatten()
        if len(keys):
            weights = torch.softmax(k[b, h, keys].double() @ q[b, h, i].double() * scale, 0)
            out[b, h, i] = weights @ v[b, h, keys].double()
    return out


class TestResolveMask(unittest.TestCase):
    @parameterized.expand(MASKS)
    def test_shapes(self, shape, expected):
        mask = torch.arange(torch.Size(shape).numel()).reshape(shape) % 3
        resolved = resolve_mask(mask, BATCH, HEADS, QUERIES, KEYS)
        self.assertEqual(resolved.shape, expected)
        self.assertEqual(resolved.dtype, torch.bool)
        self.assertTrue(torch.equal(resolved.flatten(), mask.flatten() != 0))

    @parameterized.expand(BAD_MASKS)
    def test_other_shapes_are_refused(self, shape):
        with self.assertRaises(ValueError) as caught:
            resolve_mask(torch.ones(shape), BATCH, HEADS, QUERIES, KEYS)
        for text in (str(list(shape)), "[3, 4]", "[3, 5, 4]", "[3, 2, 5, 4]"):
            self.assertIn(text, str(caught.exception))

    @parameterized.expand(MASK_TYPES)
    def test_types(self, dtype):
        mask = torch.tensor([[0, 1, 2, 0]]).to(dtype)
        self.assertEqual(resolve_mask(mask, 1, 1, 1, 4).flatten().tolist(), [False, True, True, False])


class TestResolveProjection(unittest.TestCase):
    @parameterized.expand([(None, True, True), (None, False, False), (True, False, True), (False, True, False)])
    def test_given_wins(self, use_proj_attn, include_fc, expected):
        self.assertIs(resolve_projection(use_proj_attn, include_fc), expected)

    @parameterized.expand([("yes",), (1,), (0.0,)])
    def test_other_types_are_refused(self, value):
        with self.assertRaisesRegex(TypeError, repr(value)):
            resolve_projection(value)


class TestPaths(unittest.TestCase):
    def masks(self) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        per_query = torch.rand(BATCH, 1, QUERIES, KEYS, generator=generator) > 0.5
        per_query[0, 0, 2] = False
        keys = torch.rand(BATCH, 1, 1, KEYS, generator=generator) > 0.5
        keys[1] = False
        return {"none": torch.ones(1, 1, 1, KEYS, dtype=torch.bool), "keys": keys, "per query": per_query}

    @parameterized.expand([("none",), ("keys",), ("per query",)])
    def test_both_paths_are_attention(self, name):
        q, k, v = qkv()
        mask = self.masks()[name]
        expected = by_hand(q, k, v, mask, 0.3)
        fused = fused_attention(q, k, v, mask, False, 0.3, 0.0)
        explicit = attention_weights(q @ k.transpose(-2, -1) * 0.3, mask) @ v
        torch.testing.assert_close(fused.double(), expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(explicit.double(), expected, atol=1e-6, rtol=0)

    @parameterized.expand([("fused",), ("explicit",)])
    def test_a_query_without_keys_gives_zeros_and_no_gradient(self, path):
        q, k, v = qkv()
        mask = torch.ones(BATCH, 1, 1, KEYS, dtype=torch.bool)
        mask[1] = False
        if path == "fused":
            out = fused_attention(q, k, v, mask, False, 0.3, 0.0)
        else:
            out = attention_weights(q @ k.transpose(-2, -1) * 0.3, mask) @ v
        self.assertEqual(float(out[1].detach().abs().max()), 0.0)
        out.square().sum().backward()
        for tensor in (q, k, v):
            self.assertTrue(bool(tensor.grad.isfinite().all()))
            self.assertEqual(float(tensor.grad[1].abs().max()), 0.0)
            self.assertGreater(float(tensor.grad[0].abs().max()), 0.0)

    def test_causal(self):
        q, k, v = qkv()
        mask = lower_triangle(QUERIES, KEYS)
        self.assertEqual(mask[0, 0].int().tolist(), [[int(j <= i) for j in range(KEYS)] for i in range(QUERIES)])
        torch.testing.assert_close(
            fused_attention(q, k, v, None, True, 0.3, 0.0).double(), by_hand(q, k, v, mask, 0.3), atol=1e-6, rtol=0
        )

    @parameterized.expand([(torch.float16,), (torch.bfloat16,), (torch.float64,)])
    def test_types(self, dtype):
        q, k, v = qkv(dtype)
        for mask in self.masks().values():
            out = fused_attention(q, k, v, mask, False, 0.3, 0.0)
            self.assertEqual(out.dtype, dtype)
            torch.testing.assert_close(out.double(), by_hand(q, k, v, mask, 0.3), atol=2e-2, rtol=0)

    def test_dropout_keeps_the_mean(self):
        torch.manual_seed(0)
        q, k, v = qkv()
        mean = torch.stack([fused_attention(q, k, v, None, False, 0.3, 0.5) for _ in range(4000)]).mean(0)
        torch.testing.assert_close(mean, fused_attention(q, k, v, None, False, 0.3, 0.0), atol=0.1, rtol=0)


class TestAttentionOptions(unittest.TestCase):
    def test_defaults_are_those_of_the_transformer_block(self):
        import inspect

        from monai.networks.blocks import TransformerBlock

        signature = inspect.signature(TransformerBlock).parameters
        for name, value in AttentionOptions().arguments("attention_dtype").items():
            self.assertEqual(signature[name].default, value, name)


if __name__ == "__main__":
    unittest.main()
