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
import torch.nn as nn
from parameterized import parameterized

from monai.networks.blocks import CrossAttentionBlock, SABlock
from monai.networks.nets import DecoderOnlyTransformer
from monai.networks.nets.transformer import AbsolutePositionalEmbedding
from tests.differences import max_difference

torch.set_num_threads(1)

SIZES = {
    "num_tokens": 11,
    "max_seq_len": 9,
    "attn_layers_dim": 24,
    "attn_layers_depth": 2,
    "attn_layers_heads": 4,
}


def network(**kwargs) -> DecoderOnlyTransformer:
    torch.manual_seed(0)
    net = DecoderOnlyTransformer(**{**SIZES, **kwargs}).eval()
    for name, parameter in net.named_parameters():
        if "norm" in name:  # which would otherwise all be equal
            nn.init.normal_(parameter)
    return net


def tokens(length: int = 9, batch: int = 2) -> torch.Tensor:
    return torch.randint(0, 11, (batch, length), generator=torch.Generator().manual_seed(1))


def context(length: int = 5, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, length, 24, generator=torch.Generator().manual_seed(2))


def as_generative_models(net: DecoderOnlyTransformer) -> dict[str, torch.Tensor]:
    """The state dict as the GenerativeModels package, 0.2, wrote it."""
    renames = {"norm2": "norm3", "norm_cross_attn": "norm2"}
    state = {}
    for key, value in net.state_dict().items():
        parts = [renames.get(part, part) for part in key.split(".")]
        state[".".join(parts)] = value
    for number in range(net.attn_layers_depth):
        state[f"blocks.{number}.attn.causal_mask"] = torch.ones(9, 9).tril()[None, None]
    return state


class TestDecoderOnlyTransformer(unittest.TestCase):
    def test_ill_arguments(self):
        with self.assertRaisesRegex(ValueError, "24.*7"):
            network(attn_layers_heads=7)
        with self.assertRaisesRegex(TypeError, "use_proj_attn"):
            network(use_proj_attn="yes")

    def test_a_token_depends_on_earlier_ones_only(self):
        net = network(with_cross_attention=True)
        changed = tokens()
        changed[:, 5] = (changed[:, 5] + 1) % 11
        difference = (net(changed, context()) - net(tokens(), context())).abs().amax(dim=(0, 2))
        self.assertEqual(float(difference[:5].max()), 0.0)
        self.assertGreater(float(difference[5:].min()), 1e-4)

    def test_context_mask(self):
        net = network(with_cross_attention=True)
        mask = torch.ones(2, 5, dtype=torch.bool)
        mask[:, 3:] = False
        expected = net(tokens(), context()[:, :3])
        torch.testing.assert_close(net(tokens(), context(), context_mask=mask), expected)
        with self.assertRaisesRegex(ValueError, "4"):
            net(tokens(), context(), mask[:, :4])

    def test_too_many_tokens(self):
        for net, error in ((network(), ValueError), (torch.jit.script(network()), torch.jit.Error)):
            self.assertEqual(net(tokens(9)).shape, (2, 9, 11))
            with self.assertRaisesRegex(error, "10 tokens.*max_seq_len=9"):
                net(tokens(10))

    def test_positions(self):
        embedding = AbsolutePositionalEmbedding(max_seq_len=6, embedding_dim=3)
        out = embedding(torch.zeros(2, 4, dtype=torch.long))
        self.assertTrue(torch.equal(out, embedding.embedding.weight[:4].expand(2, 4, 3)))

    @parameterized.expand([(None, True, (True, True)), (None, False, (False, True)), (False, True, (False, False))])
    def test_projection_reaches_every_block(self, use_proj_attn, include_fc, expected):
        net = network(with_cross_attention=True, use_proj_attn=use_proj_attn, include_fc=include_fc)
        for kind, projects in zip((SABlock, CrossAttentionBlock), expected):
            blocks = [module for module in net.modules() if isinstance(module, kind)]
            self.assertEqual([isinstance(block.out_proj, nn.Linear) for block in blocks], [projects] * 2)

    def test_causal_mask_is_a_buffer_and_not_saved(self):
        net = network(max_seq_len=4096)
        masks = [buffer for name, buffer in net.named_buffers() if name.endswith("attn.causal_mask")]
        self.assertEqual(len(masks), 2)
        self.assertEqual(sum(mask.numel() for mask in masks), 0)
        self.assertFalse([key for key in net.state_dict() if "causal_mask" in key])

    @parameterized.expand([("load_old_state_dict",), ("load_state_dict",)])
    def test_generative_models_checkpoint(self, method):
        source, net = network(with_cross_attention=True), network(with_cross_attention=True)
        state = as_generative_models(source)
        keys = list(state)
        self.assertIn("blocks.0.norm3.weight", keys)
        for parameter in net.parameters():
            nn.init.normal_(parameter)
        getattr(net, method)(state)
        self.assertEqual(list(state), keys)
        self.assertEqual(max_difference(net(tokens(), context()), source(tokens(), context())), 0.0)

    def test_generative_models_checkpoint_needs_cross_attention(self):
        state = as_generative_models(network(with_cross_attention=True))
        with self.assertRaisesRegex(RuntimeError, "with_cross_attention=True"):
            network().load_old_state_dict(state)

    def test_every_parameter_learns(self):
        for cross in (True, False):
            net = network(with_cross_attention=cross)
            net(tokens(), context() if cross else None).sum().backward()
            self.assertEqual([name for name, p in net.named_parameters() if p.requires_grad and p.grad is None], [])

    def test_dropout_in_training_only(self):
        net = network(embedding_dropout_rate=0.5)
        self.assertTrue(torch.equal(net(tokens()), net(tokens())))
        net.train()
        self.assertFalse(torch.equal(net(tokens()), net(tokens())))

    def test_lengths_of_zero_and_one(self):
        self.assertEqual(network()(tokens(0)).shape, (2, 0, 11))
        self.assertEqual(network()(tokens(1, 0)).shape, (0, 1, 11))


if __name__ == "__main__":
    unittest.main()
