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

from monai.networks.blocks import TransformerBlock
from tests.scripting import assert_scripts

torch.set_num_threads(1)

SIZES = {"hidden_size": 24, "mlp_dim": 32, "num_heads": 4}

TEST_CASES = [
    {**SIZES, "with_cross_attention": cross, "include_fc": include_fc, "use_combined_linear": combined, **extra}
    for cross, include_fc, combined, extra in product(
        (True, False),
        (True, False),
        (True, False),
        (
            {},
            {"dropout_rate": 0.2, "qkv_bias": True},
            {"causal": True, "sequence_length": 12},
            {"use_flash_attention": True},
        ),
    )
]

ILL_ARGUMENTS = [
    ("dropout above one", {"dropout_rate": 2.0}, "2.0"),
    ("width not divisible", {"num_heads": 5}, "5"),
    ("causal without length", {"causal": True}, "sequence_length"),
    ("flash and matrix", {"use_flash_attention": True, "save_attn": True}, "save_attn"),
]


def block(**kwargs) -> TransformerBlock:
    torch.manual_seed(0)
    net = TransformerBlock(**{**SIZES, **kwargs})
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net.eval()


def tokens(length: int = 12, batch: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, length, 24, generator=torch.Generator().manual_seed(seed))


class TestTransformerBlock(unittest.TestCase):
    @parameterized.expand(ILL_ARGUMENTS)
    def test_ill_arguments(self, _, kwargs, part):
        with self.assertRaisesRegex(ValueError, part):
            TransformerBlock(**{**SIZES, **kwargs})

    @parameterized.expand([(True,), (False,)])
    def test_every_parameter_learns(self, cross):
        net = block(with_cross_attention=cross)
        net(tokens(), context=tokens(7, seed=2)).sum().backward()
        without = [name for name, p in net.named_parameters() if p.grad is None]
        self.assertEqual(without, [name for name, p in net.named_parameters() if not p.requires_grad])
        self.assertEqual(without, [] if cross else ["norm_cross_attn.weight", "norm_cross_attn.bias"])

    def test_projection_reaches_both_attentions(self):
        for use_proj_attn, include_fc, expected in (
            (None, True, [True, True]),
            (None, False, [False, True]),
            (False, True, [False, False]),
            (True, False, [True, True]),
        ):
            net = block(with_cross_attention=True, use_proj_attn=use_proj_attn, include_fc=include_fc)
            found = [f"{name}.out_proj.weight" in net.state_dict() for name in ("attn", "cross_attn")]
            self.assertEqual(found, expected)

    def test_matrices_of_both_attentions(self):
        net = block(with_cross_attention=True, save_attn=True)
        net(tokens(), context=tokens(7))
        self.assertEqual(net.attn.att_mat.shape, (2, 4, 12, 12))
        self.assertEqual(net.cross_attn.att_mat.shape, (2, 4, 12, 7))

    def test_context_mask(self):
        net = block(with_cross_attention=True)
        mask = torch.ones(2, 7)
        mask[:, 4:] = 0
        context = tokens(7, seed=2)
        expected = net(tokens(), context=context[:, :4])
        torch.testing.assert_close(net(tokens(), context=context, context_mask=mask), expected)

    @parameterized.expand([(case,) for case in TEST_CASES[::3]])
    def test_script(self, kwargs):
        assert_scripts(block(**kwargs), (tokens(), tokens(7)), (tokens(5, 3), tokens(9, 3)))

    def test_script_with_masks(self):
        net = block(with_cross_attention=True)
        mask, context_mask = torch.ones(2, 12), torch.ones(2, 7)
        mask[0, 3:], context_mask[1] = 0, 0
        assert_scripts(net, (tokens(), tokens(7), mask, context_mask))

    @parameterized.expand([({},), ({"causal": True, "sequence_length": 12, "with_cross_attention": True},)])
    def test_compile_without_graph_breaks(self, kwargs):
        net = block(**kwargs)
        out = torch.compile(net, fullgraph=True, backend="aot_eager")(tokens(), tokens(7))
        torch.testing.assert_close(out, net(tokens(), tokens(7)), atol=1e-5, rtol=0)
        out.sum().backward()


if __name__ == "__main__":
    unittest.main()
