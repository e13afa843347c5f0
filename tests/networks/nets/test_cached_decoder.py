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
from parameterized import parameterized

from monai.networks.blocks import TransformerBlock
from monai.networks.blocks.attention.cache import CachedTransformerBlock
from monai.networks.nets import DecoderOnlyTransformer
from tests.differences import max_difference
from tests.scripting import assert_scripts

torch.set_num_threads(1)
SIZES = {
    "num_tokens": 11,
    "max_seq_len": 16,
    "attn_layers_dim": 24,
    "attn_layers_depth": 2,
    "attn_layers_heads": 4,
}
CASES = list(product((False, True), (False, True), (None, False)))
# how a sequence may arrive: token by token, a prefix at once, pieces
PIECES = [(1,) * 16, (9, 1, 1, 1, 1, 1, 1, 1), (16,), (1, 15), (5, 3, 1, 7)]


def network(cross: bool = False, combined: bool = False, use_proj_attn: bool | None = None) -> DecoderOnlyTransformer:
    torch.manual_seed(0)
    kwargs = {"with_cross_attention": cross, "use_combined_linear": combined, "use_proj_attn": use_proj_attn}
    net = DecoderOnlyTransformer(**SIZES, **kwargs).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return net


def tokens(batch: int = 2) -> torch.Tensor:
    return torch.randint(0, 11, (batch, 16), generator=torch.Generator().manual_seed(1))


def context(cross: bool) -> torch.Tensor | None:
    return torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(2)) if cross else None


def in_pieces(decoder, x: torch.Tensor, pieces: tuple[int, ...]) -> torch.Tensor:
    return torch.cat([decoder(part) for part in x.split(pieces, dim=1)], dim=1)


class TestCachedDecoder(unittest.TestCase):
    @parameterized.expand([(case, pieces) for case in CASES for pieces in PIECES])
    @torch.no_grad()
    def test_equals_the_whole_sequence(self, case, pieces):
        net, x = network(*case), tokens()
        expected = net(x, context=context(case[0]))
        decoder = net.cached(2, context(case[0]))
        for _ in range(2):
            self.assertLessEqual(max_difference(in_pieces(decoder, x, pieces), expected), 1e-5)
            decoder.reset()

    @torch.no_grad()
    def test_context_mask(self):
        net, x = network(True), tokens()
        mask = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0]])
        decoder = net.cached(2, context(True), mask)
        expected = net(x, context=context(True), context_mask=mask)
        self.assertLessEqual(max_difference(in_pieces(decoder, x, (4,) * 4), expected), 1e-5)

    @torch.no_grad()
    def test_a_context_is_projected_once(self):
        net = network(True)
        calls = []
        net.blocks[0].cross_attn.to_k.register_forward_hook(lambda *_: calls.append(1))
        in_pieces(net.cached(2, context(True)), tokens(), (1,) * 16)
        self.assertEqual(len(calls), 1)

    @parameterized.expand([(torch.bfloat16, 0.15), (torch.float16, 0.02), (torch.float64, 1e-12)])
    @torch.no_grad()
    def test_other_types(self, dtype, tolerance):
        net, x = network(True).to(dtype), tokens()
        decoder = net.cached(2, context(True).to(dtype))
        self.assertEqual(decoder.blocks[0].cache.keys_values.dtype, dtype)
        expected = net(x, context=context(True).to(dtype))
        self.assertLessEqual(max_difference(in_pieces(decoder, x, (9, *(1,) * 7)), expected), tolerance)

    @parameterized.expand([(cross,) for cross in (False, True)])
    @torch.no_grad()
    def test_script(self, cross):
        net, x = network(cross), tokens()
        decoder = assert_scripts(net.cached(2, context(cross)), (x,))
        decoder.reset()
        expected = net(x, context=context(cross))
        for pieces in PIECES:
            self.assertLessEqual(max_difference(in_pieces(decoder, x, pieces), expected), 1e-5)
            decoder.reset()

    @parameterized.expand([(cross,) for cross in (False, True)])
    @torch.no_grad()
    def test_compile(self, cross):
        """One graph serves every step: the position is a tensor."""
        torch.compiler.reset()
        net, x = network(cross), tokens()
        decoder = net.cached(2, context(cross))
        graphs = []

        def backend(graph, _):
            graphs.append(graph)
            return graph.forward

        step = torch.compile(decoder, fullgraph=True, dynamic=False, backend=backend)
        expected = net(x, context=context(cross))
        first = decoder(x[:, :5])
        rest = [step(x[:, i : i + 1]) for i in range(5, 12)]
        last = decoder(x[:, 12:])
        self.assertLessEqual(max_difference(torch.cat([first, *rest, last], dim=1), expected), 1e-5)
        self.assertEqual(len(graphs), 1)

    def test_memory_and_weights(self):
        """The cache is allocated once, and is no part of a state dict; the weights are the network's own."""
        net = network()
        keys = set(net.state_dict())
        decoder = net.cached(3)
        self.assertEqual(decoder.blocks[0].cache.keys_values.shape, (2, 3, 4, 16, 6))
        place = decoder.blocks[0].cache.keys_values.data_ptr()
        with torch.no_grad():
            decoder(tokens(3))
        self.assertEqual(decoder.blocks[0].cache.keys_values.data_ptr(), place)
        self.assertFalse(any("cache" in key or "position" == key for key in decoder.state_dict()))
        weight = net.blocks[1].mlp.linear1.weight
        self.assertEqual(decoder.blocks[1].linear1[0].data_ptr(), weight.data_ptr())
        self.assertEqual(set(net.state_dict()), keys)

    def test_ill_arguments(self):
        net = network()
        with self.assertRaisesRegex(ValueError, r"context=\[2, 5, 24\].*with_cross_attention=False"):
            net.cached(2, context(True))
        with self.assertRaisesRegex(ValueError, "context=None.*with_cross_attention=True"):
            network(True).cached(2)
        with self.assertRaisesRegex(ValueError, "2 sequences.*3"):
            network(True).cached(3, context(True))
        decoder = net.cached(2)
        with self.assertRaisesRegex(ValueError, "3 sequences.*decoder of 2"):
            decoder(tokens(3))
        with torch.no_grad():
            decoder(tokens())
        with self.assertRaisesRegex(ValueError, "17 tokens.*max_seq_len=16"):
            decoder(tokens()[:, :1])

    @parameterized.expand(
        [
            ("causal=False", {"causal": False}, None),
            ("save_attn=True", {"save_attn": True}, None),
            ("attn.to_v is Sequential, not Linear", {}, "attn.to_v"),
            ("mlp.linear2 is Sequential, not Linear", {}, "mlp.linear2"),
            ("norm2 is Sequential, not LayerNorm", {}, "norm2"),
            ("mlp.fn is Sequential, not GELU", {}, "mlp.fn"),
        ]
    )
    def test_blocks_that_cannot(self, reason, kwargs, replaced):
        """A step reads weights without calling layers, so a layer that computes something else is refused."""
        options = {"causal": True, "sequence_length": 16, "use_combined_linear": False, **kwargs}
        block = TransformerBlock(24, 32, 4, **options)
        if replaced:
            owner, _, name = replaced.rpartition(".")
            layer = block.get_submodule(replaced)
            setattr(block.get_submodule(owner), name, torch.nn.Sequential(layer, torch.nn.Hardtanh()))
        with self.assertRaisesRegex(ValueError, reason):
            CachedTransformerBlock(block, 2, 16)
        with self.assertRaisesRegex(ValueError, "Linear"):
            CachedTransformerBlock(torch.nn.Linear(2, 2), 2, 16)

    @torch.no_grad()
    def test_moves(self):
        """``to`` takes the weights and the context along, which no module registers."""
        net, x = network(True), tokens()
        decoder = net.cached(2, context(True)).double()
        expected = net.double()(x, context=context(True).double())
        self.assertLessEqual(max_difference(in_pieces(decoder, x, (3,) * 5 + (1,)), expected), 1e-5)

    def test_no_gradient(self):
        """A step in gradient mode leaves no graph behind, which would hold on to all earlier steps."""
        decoder = network().cached(2)
        self.assertFalse(decoder(tokens()[:, :4]).requires_grad)
        self.assertFalse(decoder.blocks[0].cache.keys_values.requires_grad)


if __name__ == "__main__":
    unittest.main()
