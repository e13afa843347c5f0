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
import warnings
from itertools import product
from types import SimpleNamespace
from unittest.mock import patch

import torch
import torch.nn.functional as F
from parameterized import parameterized

from monai.networks.blocks import SABlock
from monai.networks.blocks.attention.kernels import (
    _logits_of_the_kernel,
    fused_attention,
    fused_attention_with_bias,
    sum_over_axes,
)
from monai.networks.blocks.attention.mask import attention_weights, lower_triangle, resolve_mask

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
        mask = torch.tensor([[0, 1, 1 if dtype.is_floating_point else 2, 0]]).to(dtype)
        self.assertEqual(resolve_mask(mask, 1, 1, 1, 4).flatten().tolist(), [False, True, True, False])


class TestFloatingMasks(unittest.TestCase):
    """Of another meaning than 0 and 1 they are refused, wherever values can be told."""

    @parameterized.expand(
        [
            ("added", [0.0, -torch.inf, 0.0, -torch.inf], "-inf"),
            ("finite bias", [0.0, -1024.0, 1.0, 0.5], "-1024.0, 0.5"),
            ("probabilities", [0.25, 1.0, 0.0, 0.0], "0.25"),
            ("not a number", [1.0, torch.nan, 0.0, 0.0], "nan"),
        ]
    )
    def test_other_values(self, _, values, named):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            with self.assertRaisesRegex(ValueError, f"0 and 1: {named}.*attn_mask == 0.*attn_mask > 0.5"):
                resolve_mask(torch.tensor([values]).to(dtype), 1, 1, 1, 4)

    def test_in_blocks(self):
        mask = torch.zeros(2, 5)
        mask[:, 3:] = -torch.inf
        for block in (SABlock(8, 2), SABlock(8, 2, save_attn=True), torch.jit.script(SABlock(8, 2))):
            with self.assertRaisesRegex(Exception, "other floating values than 0 and 1"):
                block(torch.randn(2, 5, 8), mask)
            block(torch.randn(2, 5, 8), mask == 0)

    def test_where_values_cannot_be_told(self):
        """A graph takes any value but 0 for "attend", as the release did."""
        net, x, mask = SABlock(8, 2).eval(), torch.randn(2, 5, 8), torch.tensor([[0.5, 0, 1, 1, 1], [1, 1, 0, 0, 2]])
        expected = net(x, mask != 0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(net, (x, (mask != 0).float()))  # whose check calls the network, too
            compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
            exported = torch.export.export(net, (x, mask)).module()
        for graph in (traced, compiled, exported):
            torch.testing.assert_close(graph(x, mask), expected, atol=1e-5, rtol=0)
        batched = torch.func.vmap(lambda a, m: net(a, m))(x[:, None], mask[:, None])
        torch.testing.assert_close(batched[:, 0], expected, atol=1e-5, rtol=0)
        with torch.device("meta"):
            self.assertEqual(SABlock(8, 2)(torch.randn(2, 5, 8), torch.ones(2, 5)).shape, (2, 5, 8))


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


class TestParts(unittest.TestCase):
    """Where a kernel would build the matrix, some queries are computed at a time: same results, same gradients."""

    def whole_and_parts(self, part: int, mask=None, causal=False, dropout_p=0.0, call=fused_attention):
        """Result and gradients of one call over all queries, and of calls over ``part`` logits each."""
        results = []
        for size in (2**40, part):
            inputs = qkv(torch.float64)
            torch.manual_seed(0)
            out = call(*inputs, mask, causal, 0.3, dropout_p, size)
            out.square().sum().backward()
            results.append([out.detach(), *[tensor.grad for tensor in inputs]])
        return results

    def assert_same(self, whole, parts):
        for expected, found in zip(whole, parts):
            torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)

    @parameterized.expand(product((48, 24, 1), (1, BATCH), (1, HEADS)))
    def test_masks(self, part, batch, heads):
        mask = torch.rand(batch, heads, QUERIES, KEYS, generator=torch.Generator().manual_seed(1)) > 0.5
        mask[0, 0, 2] = False
        self.assert_same(*self.whole_and_parts(part, mask))

    @parameterized.expand(
        [
            ("cuda", torch.float16, 64, 0.1, 0),
            ("cuda", torch.float32, 512, 0.0, 0),
            ("cuda", torch.float64, 64, 0.0, 480),
            ("cuda", torch.float32, 20, 0.0, 480),
            ("cpu", torch.float64, 20, 0.0, 0),
            ("cpu", torch.float32, 64, 0.1, 480),
            ("mps", torch.float32, 64, 0.0, 480),
        ]
    )
    def test_whose_kernel_builds_the_matrix(self, device, dtype, width, dropout_p, expected):
        """By device, type, width of a head and dropout; no such device is needed to tell."""
        on = {"is_cuda": device == "cuda", "is_cpu": device == "cpu", "dtype": dtype}
        q, k = (SimpleNamespace(shape=(2, 3, tokens, width), **on) for tokens in (8, 10))
        self.assertEqual(_logits_of_the_kernel(q, k, None, dropout_p), expected)

    @parameterized.expand(product((48, 1), (False, True)))
    def test_other_devices(self, part, causal):
        """As on a device whose kernel builds the matrix of every attention."""
        with patch("monai.networks.blocks.attention.kernels._logits_of_the_kernel", lambda q, k, mask, p: 120):
            found = self.whole_and_parts(part, causal=causal)[1]
        self.assert_same(self.whole_and_parts(2**40, causal=causal)[0], found)

    @parameterized.expand([("at once", 120), ("two queries", 48), ("one query", 1)])
    def test_dropout(self, _, part):
        """Gradients belong to the weights that were dropped, also where the backward pass draws them again."""
        q, k, v = qkv(torch.float64)
        torch.manual_seed(3)
        fused_attention(q, k, v, None, False, 0.3, 0.5, part).square().sum().backward()
        for tensor in (q, k, v):
            step = torch.zeros_like(tensor)
            step[1, 0, 2, 5] = 1e-6
            sides = []
            for sign in (1, -1):
                torch.manual_seed(3)
                moved = [t.detach() + sign * step if t is tensor else t.detach() for t in (q, k, v)]
                sides.append(fused_attention(*moved, None, False, 0.3, 0.5, part).square().sum())
            slope = float(sides[0] - sides[1]) / 2e-6
            self.assertAlmostEqual(slope, float(tensor.grad[1, 0, 2, 5]), places=6)

    def test_dropout_drops_in_every_part(self):
        torch.manual_seed(0)
        q, k, _ = qkv()
        v = torch.eye(KEYS).expand(BATCH, HEADS, KEYS, KEYS)
        mean = sum((fused_attention(q, k, v, None, False, 0.3, 0.25, 48) == 0).float() for _ in range(800)) / 800
        torch.testing.assert_close(mean, torch.full_like(mean, 0.25), atol=0.07, rtol=0)

    @parameterized.expand(
        [
            ("plain", None, False, 0.0, 1),
            ("mask of keys", (BATCH, 1, 1, KEYS), False, 0.0, 1),
            ("mask of pairs", (BATCH, 1, QUERIES, KEYS), False, 0.0, 5),
            ("causal", None, True, 0.0, 1),
            ("dropout", None, False, 0.5, 0),
        ]
    )
    def test_only_where_it_has_to(self, _, mask, causal, dropout_p, calls):
        """One call of the kernel where it works piece by piece itself; none where that has no dropout."""
        with patch.object(F, "scaled_dot_product_attention", wraps=F.scaled_dot_product_attention) as kernel:
            fused_attention(*qkv(), mask and torch.ones(mask, dtype=torch.bool), causal, 0.3, dropout_p, 1)
        self.assertEqual(kernel.call_count, calls)

    def test_script(self):
        scripted = torch.jit.script(fused_attention)
        for causal in (False, True):
            self.assert_same(*self.whole_and_parts(48, None, causal, call=scripted))
        mask = torch.rand(BATCH, 1, QUERIES, KEYS) > 0.5
        self.assert_same(*self.whole_and_parts(48, mask, call=scripted))
        self.assertEqual(scripted(*qkv(), None, True, 0.3, 0.5, 48).shape, (BATCH, HEADS, QUERIES, 8))


class TestBias(unittest.TestCase):
    @parameterized.expand(product((False, True), ("none", "keys", "per query"), (1, 2, 128)))
    def test_equals_the_explicit_path(self, causal, mask, size):
        """Terms of the axes of a 2 x 2 grid of keys, masks, rows without a key, for several queries at a time."""
        if causal and mask != "none":
            return
        q, k, v = (tensor.detach().double() for tensor in qkv())
        terms = [torch.randn(BATCH, HEADS, QUERIES, 2, dtype=torch.float64) for _ in range(2)]
        given = None if mask == "none" else TestPaths().masks()[mask]
        expected_mask = lower_triangle(QUERIES, KEYS) if causal else given
        logits = q @ k.transpose(-2, -1) * 0.3 + (terms[0][..., :, None] + terms[1][..., None, :]).flatten(-2)
        expected = attention_weights(logits, expected_mask) @ v
        found = fused_attention_with_bias(q, k, v, terms, given, causal, 0.3, size)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)

    def test_sum_over_axes(self):
        terms = [torch.tensor([100.0, 200.0]), torch.tensor([10.0, 20.0, 30.0]), torch.tensor([1.0, 2.0])]
        expected = [a + b + c for a, b, c in product(*[term.tolist() for term in terms])]
        self.assertEqual(sum_over_axes(terms).tolist(), expected)


if __name__ == "__main__":
    unittest.main()
