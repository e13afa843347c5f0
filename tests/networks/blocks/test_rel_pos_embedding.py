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

import math
import unittest

import torch
import torch.nn as nn
import torch.nn.functional as F
from parameterized import parameterized

from monai.networks.blocks import CrossAttentionBlock, SABlock
from monai.networks.blocks.attention_utils import add_decomposed_rel_pos, get_rel_pos
from monai.networks.blocks.rel_pos_embedding import DecomposedRelativePosEmbedding
from tests.scripting import assert_scripts

torch.set_num_threads(1)
# grid of the queries, grid of the keys
GRIDS = [
    ((4, 3), (4, 3)),
    ((2, 5), (2, 5)),
    ((3, 3, 3), (3, 3, 3)),
    ((2, 3, 4), (2, 3, 4)),
    ((4, 4, 1), (4, 4, 1)),
    ((1, 6), (1, 6)),
    ((4, 4), (2, 2)),
    ((2, 2), (6, 6)),
    ((4, 2, 2), (2, 1, 1)),
    ((4, 6, 1), (2, 3, 1)),
]
UNEQUAL = [((4, 4), (2, 3)), ((2, 3, 4), (3, 2, 2))]


def embedding(queries, keys=None) -> DecomposedRelativePosEmbedding:
    torch.manual_seed(0)
    net = DecomposedRelativePosEmbedding(queries, 8, 2, keys)
    for table in net.rel_pos_arr:
        nn.init.normal_(table)
    return net


def by_hand(q, net, q_size, k_size) -> torch.Tensor:
    """Positional logits one pair of tokens at a time, (B, heads, Q, K)."""
    out = torch.zeros(q.shape[0], q.shape[1], q.shape[2], math.prod(k_size))
    for i, where in enumerate(torch.cartesian_prod(*[torch.arange(n) for n in q_size]).tolist()):
        for j, other in enumerate(torch.cartesian_prod(*[torch.arange(n) for n in k_size]).tolist()):
            for axis, table in enumerate(net.rel_pos_arr):
                n, k = q_size[axis], k_size[axis]
                if 2 * max(n, k) - 1 != len(table):
                    table = F.interpolate(table.t()[None], size=2 * max(n, k) - 1, mode="linear")[0].t()
                step_q, step_k = max(k / n, 1.0), max(n / k, 1.0)
                distance = where[axis] * step_q - other[axis] * step_k + (k - 1) * step_k
                out[:, :, i, j] += q[:, :, i] @ table[int(distance)]
    return out


def inputs(q_size, k_size, dtype=torch.float32):
    torch.manual_seed(1)
    q, k = torch.randn(2, 2, math.prod(q_size), 8), torch.randn(2, 2, math.prod(k_size), 8)
    return q.to(dtype), k.to(dtype)


class TestDecomposedRelativePosEmbedding(unittest.TestCase):
    @parameterized.expand([(*grids, False) for grids in GRIDS] + [(*grids, True) for grids in UNEQUAL])
    @torch.no_grad()
    def test_both_forms_are_the_formula(self, q_size, k_size, given):
        net = embedding(q_size, k_size if given else None)
        q, k = inputs(q_size, k_size)
        logits = q @ k.transpose(-2, -1) * 0.3
        expected = logits + by_hand(q, net, q_size, k_size)
        torch.testing.assert_close(net(q, logits, q), expected, atol=1e-5, rtol=0)
        wide_q, wide_k = net.extend(q, k, 0.3)
        torch.testing.assert_close(wide_q @ wide_k.transpose(-2, -1), expected, atol=1e-5, rtol=0)

    @torch.no_grad()
    def test_keys_off_the_grid_have_no_position(self):
        net = embedding((4, 4))
        q, k = inputs((4, 4), (7,))
        logits = q @ k.transpose(-2, -1)
        with self.assertWarnsRegex(UserWarning, "no relative position"):
            self.assertTrue(torch.equal(net(q, logits, q), logits))
        wide_q, wide_k = net.extend(q, k, 0.5)
        torch.testing.assert_close(wide_q @ wide_k.transpose(-2, -1), logits * 0.5)

    def test_queries_off_the_grid(self):
        net = embedding((4, 4))
        q, k = inputs((5, 3), (4, 4))
        with self.assertRaisesRegex(ValueError, r"15 query tokens.*\(4, 4\)"):
            net.extend(q, k, 1.0)

    def test_keys_off_a_given_grid(self):
        q, k = inputs((4, 4), (5,))
        with self.assertRaisesRegex(ValueError, r"5 context tokens.*\(2, 3\)"):
            embedding((4, 4), (2, 3)).extend(q, k, 1.0)

    @parameterized.expand([(None,), ((4,),), ((2, 2, 2, 2),), (5,)])
    def test_ill_grids(self, grid):
        with self.assertRaisesRegex(ValueError, "s_input_dims"):
            DecomposedRelativePosEmbedding(grid, 8, 2)
        with self.assertRaisesRegex(ValueError, "s_context_dims"):
            DecomposedRelativePosEmbedding((2, 2), 8, 2, (2, 2, 2))

    def test_tables(self):
        net = DecomposedRelativePosEmbedding((3, 4, 5), 8, 2)
        self.assertEqual([tuple(table.shape) for table in net.rel_pos_arr], [(5, 8), (7, 8), (9, 8)])
        self.assertEqual(list(net.state_dict()), ["rel_pos_arr.0", "rel_pos_arr.1", "rel_pos_arr.2"])
        self.assertEqual(sum(float(table.abs().sum()) for table in net.parameters()), 0.0)


class TestFunctions(unittest.TestCase):
    def test_lookup(self):
        table = torch.arange(5.0)[:, None]
        self.assertEqual(get_rel_pos(3, 3, table)[..., 0].tolist(), [[2, 1, 0], [3, 2, 1], [4, 3, 2]])
        self.assertEqual(
            get_rel_pos(4, 2, torch.arange(7.0)[:, None])[..., 0].tolist(), [[2, 0], [3, 1], [4, 2], [5, 3]]
        )
        self.assertEqual(get_rel_pos(4, 4, table).shape, (4, 4, 1))

    @parameterized.expand([(torch.float16,), (torch.bfloat16,), (torch.float64,)])
    @torch.no_grad()
    def test_types(self, dtype):
        net = embedding((2, 3, 4))
        q, k = inputs((2, 3, 4), (2, 3, 4), dtype)
        out = net(q, q @ k.transpose(-2, -1), q)
        self.assertEqual(out.dtype, dtype)
        torch.testing.assert_close(
            out.float(), (q.float() @ k.float().transpose(-2, -1)) + by_hand(q.float(), net, (2, 3, 4), (2, 3, 4)),
            atol=0.3, rtol=0.1,
        )  # fmt: skip

    @torch.no_grad()
    def test_public_function_keeps_its_signature(self):
        net = embedding((2, 3, 4))
        q, k = inputs((2, 3, 4), (2, 3, 4))
        logits = (q @ k.transpose(-2, -1)).flatten(0, 1)
        out = add_decomposed_rel_pos(logits, q.flatten(0, 1), net.rel_pos_arr, (2, 3, 4), (2, 3, 4))
        expected = logits + by_hand(q, net, (2, 3, 4), (2, 3, 4)).flatten(0, 1)
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


class TestInBlocks(unittest.TestCase):
    @parameterized.expand([((4, 4),), ((2, 3, 4),), ((4, 4, 1),)])
    def test_fused_equals_explicit(self, grid):
        torch.manual_seed(0)
        kwargs = {"hidden_size": 16, "num_heads": 2, "rel_pos_embedding": "decomposed", "input_size": grid}
        net, watched = SABlock(**kwargs).double(), SABlock(**kwargs, save_attn=True).double()
        for table in net.rel_positional_embedding.rel_pos_arr:
            nn.init.normal_(table)
        watched.load_state_dict(net.state_dict())
        x = torch.randn(2, math.prod(grid), 16, dtype=torch.float64)
        torch.testing.assert_close(net(x), watched(x), atol=1e-12, rtol=0)
        with torch.no_grad():  # then the terms are a bias
            mask = torch.rand(2, 1, x.shape[1], x.shape[1]) > 0.5
            torch.testing.assert_close(net(x), watched(x), atol=1e-12, rtol=0)
            torch.testing.assert_close(net(x, mask), watched(x, mask), atol=1e-12, rtol=0)
        for module in (net, watched):
            module(x).square().sum().backward()
        for (name, p), other in zip(net.named_parameters(), watched.parameters()):
            torch.testing.assert_close(p.grad, other.grad, atol=1e-9, rtol=0, msg=name)

    @parameterized.expand([(4,), (16,), (64,), (7,)])
    def test_context_of_another_length(self, length):
        torch.manual_seed(0)
        kwargs = {"hidden_size": 16, "num_heads": 2, "rel_pos_embedding": "decomposed", "input_size": (4, 4)}
        net, watched = CrossAttentionBlock(**kwargs).eval(), CrossAttentionBlock(**kwargs, save_attn=True).eval()
        for table in net.rel_positional_embedding.rel_pos_arr:
            nn.init.normal_(table)
        watched.load_state_dict(net.state_dict())
        x, context = torch.randn(2, 16, 16), torch.randn(2, length, 16)
        torch.testing.assert_close(net(x, context), watched(x, context), atol=1e-5, rtol=0)
        with torch.no_grad():
            torch.testing.assert_close(net(x, context), watched(x, context), atol=1e-5, rtol=0)
        assert_scripts(net, (x, context), (x[:1], context[:1]))

    def test_given_grid_of_the_context(self):
        positions = ("decomposed", {"s_context_dims": (2, 3)})
        net = CrossAttentionBlock(16, 2, rel_pos_embedding=positions, input_size=(4, 4)).eval()
        self.assertEqual(net(torch.randn(2, 16, 16), torch.randn(2, 6, 16)).shape, (2, 16, 16))
        with self.assertRaisesRegex(ValueError, "s_context_dims"):
            net(torch.randn(2, 16, 16), torch.randn(2, 4, 16))


if __name__ == "__main__":
    unittest.main()
