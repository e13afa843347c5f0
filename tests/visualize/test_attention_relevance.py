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

import dataclasses
import unittest
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.data import MetaTensor
from monai.networks.blocks import SABlock, TransformerBlock
from monai.networks.blocks.attention import block as attention_core
from monai.networks.nets import AutoencoderKL, DecoderOnlyTransformer, ViT
from monai.visualize.attention.capture import capture_attention
from monai.visualize.attention.maps import AttentionMap
from monai.visualize.attention.relevance import attention_relevance, attention_rollout
from tests.differences import max_difference
from tests.networks.nets.diffusion_cases import normal, randomized

torch.set_num_threads(1)
SLICE = {"in_channels": 1, "img_size": (16, 8), "patch_size": 4, "spatial_dims": 2, "hidden_size": 24, "mlp_dim": 32}
SLICE |= {"num_layers": 3, "num_heads": 4, "classification": True, "num_classes": 3}
LEVELS = {"num_res_blocks": (1, 1), "attention_levels": (False, True), "latent_channels": 4, "norm_num_groups": 4}
WORDS = {"num_tokens": 7, "max_seq_len": 9, "attn_layers_dim": 24, "attn_layers_depth": 2, "attn_layers_heads": 4}


def vit(**kwargs: Any) -> nn.Module:
    return randomized(ViT(**{**SLICE, **kwargs}))


def image(batch: int = 2) -> torch.Tensor:
    return normal(batch, 1, 16, 8)


def layers(net: nn.Module, x: torch.Tensor, **options: Any) -> list[AttentionMap]:
    with torch.no_grad(), capture_attention(net, **options) as capture:
        net(x)
    return capture.maps


def strong(target: torch.Tensor) -> Callable:
    """The logits of a class of each item, scaled so that the layers' matrices are far from commuting."""
    return lambda out: 1000 * out[0].gather(1, target[:, None])


def explicit_layers(net: nn.Module, x: torch.Tensor, target: Callable) -> list[torch.Tensor]:
    """
    The layers of the rule by its book, each (B, T, T): gradients that autograd takes of the matrices themselves.

    Args:
        net: the network; its blocks will save their matrices.
        x: its input.
        target: numbers to explain, from the output.
    """
    matrices: list[torch.Tensor] = []
    weights = attention_core.attention_weights

    def watched(logits, mask):
        matrices.append(weights(logits, mask))
        matrices[-1].retain_grad()
        return matrices[-1]

    for module in net.modules():
        if isinstance(module, SABlock):
            module.save_attn = True
    with mock.patch.object(attention_core, "attention_weights", watched):
        target(net(x)).sum().backward()
    return [(matrix.grad * matrix.detach()).clamp_min(0).mean(dim=1) for matrix in matrices]


def product(layers: list[torch.Tensor]) -> torch.Tensor:
    """Relevance from the first layer up: R = R + layer R."""
    relevance = torch.eye(layers[0].shape[-1]).expand(layers[0].shape[0], -1, -1)
    for layer in layers:
        relevance = relevance + layer @ relevance
    return relevance


class TestRollout(unittest.TestCase):
    def test_is_the_product_over_the_layers(self):
        maps = layers(vit(), image())
        expected = torch.eye(9).double().expand(2, -1, -1)
        for m in maps:
            expected = (0.5 * m.weights.double().mean(dim=1) + 0.5 * torch.eye(9)) @ expected
        rollout = attention_rollout(maps)
        self.assertLessEqual(max_difference(rollout.double(), expected), 1e-6)
        self.assertLessEqual(max_difference(rollout.sum(dim=-1), torch.ones(2, 9)), 1e-6)
        chosen = torch.tensor([0, 4])
        self.assertLessEqual(max_difference(attention_rollout(maps, tokens=chosen), rollout[:, chosen]), 1e-6)
        averaged = layers(vit(), image(), average_heads=True)
        self.assertLessEqual(max_difference(attention_rollout(averaged), rollout), 1e-6)

    def test_order_of_the_layers(self):
        """Token 0 looks at token 1, which looked at token 2 in the layer before."""
        first, second = torch.eye(3), torch.eye(3)
        first[1], second[0] = torch.tensor([0.0, 0, 1]), torch.tensor([0.0, 1, 0])
        maps = [
            AttentionMap(name, 0, matrix[None, None], torch.arange(3), None, None, 0, None)
            for name, matrix in (("first", first), ("second", second))
        ]
        expected = torch.tensor([0.5, 0.25, 0.25])
        self.assertEqual(max_difference(attention_rollout(maps)[0, 0], expected), 0.0)
        self.assertEqual(float(attention_rollout(maps[::-1])[0, 0, 2]), 0.0)

    def test_discards_the_smallest_weights_of_a_row(self):
        row = torch.tensor([0.4, 0.3, 0.2, 0.1])
        m = AttentionMap("m", 0, row.expand(1, 1, 4, 4), torch.arange(4), None, None, 0, None)
        rollout = attention_rollout([m], discard_ratio=0.5)
        expected = torch.tensor([4 / 7 / 2 + 0.5, 3 / 7 / 2, 0, 0])
        self.assertLessEqual(max_difference(rollout[0, 0], expected), 1e-6)

    def test_a_row_that_a_mask_emptied(self):
        block = randomized(SABlock(24, 4))
        mask = torch.ones(1, 5, 5)
        mask[0, 2] = 0
        with torch.no_grad(), capture_attention(block) as capture:
            block(normal(1, 5, 24), attn_mask=mask)
        rollout = attention_rollout(capture.maps, discard_ratio=0.5)
        self.assertEqual(max_difference(rollout[0, 2], torch.eye(5)[2]), 0.0)

    def test_folds_to_the_grid(self):
        maps = layers(vit(), image())
        rollout = attention_rollout(maps, tokens=torch.tensor([0]))
        folded = dataclasses.replace(maps[-1], weights=rollout[:, None]).on_grid()
        self.assertTrue(torch.equal(folded, rollout[:, None, :, 1:].unflatten(-1, (4, 2))))

    def test_refusals(self):
        maps = layers(vit(), image())
        for bad, options, message in (
            ([], {}, "at least one"),
            (layers(vit(), image(), queries="class"), {}, "blocks.0.attn.* 1 rows of 9"),
            (layers(vit(), image(), queries=torch.arange(9).flip(0)), {}, "blocks.0.attn"),
            (maps + layers(vit(classification=False), image()), {}, "8 rows of 8.*9"),
            (maps, {"discard_ratio": 1.0}, "1.0"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                attention_rollout(bad, **options)


class TestRelevance(unittest.TestCase):
    @parameterized.expand(
        [
            ({},),
            ({"use_proj_attn": False, "post_activation": ""},),
            ({"qkv_bias": True, "use_combined_linear": False},),
            ({"save_attn": True},),
        ]
    )
    def test_like_autograd_through_the_matrices(self, kwargs):
        net, x, target = vit(**kwargs), image(), strong(torch.tensor([2, 0]))
        relevance = attention_relevance(net, x, target)
        rows = attention_relevance(net, x, target, queries=torch.tensor([5, 0]), chunk_size=2)
        every = attention_relevance(net, x, target, queries="all")
        layers = explicit_layers(net, x, target)
        expected = product(layers)
        scale = float(expected.abs().max())
        self.assertGreater(max_difference(product(layers[::-1]), expected), 0.01 * scale)
        self.assertLessEqual(max_difference(every.weights[:, 0], expected), 1e-5 * scale)
        self.assertLessEqual(max_difference(relevance.weights, expected[:, None, :1]), 1e-5 * scale)
        self.assertLessEqual(max_difference(rows.weights, expected[:, None, [5, 0]]), 1e-5 * scale)
        self.assertEqual((relevance.name, relevance.key_grid, relevance.class_tokens), ("relevance", (4, 2), 1))
        self.assertEqual(list(relevance.on_grid().shape), [2, 1, 1, 4, 2])

    def test_leaves_no_trace(self):
        """No gradient, no hook, no change of the output; frozen networks and inference mode as well."""
        net, x = vit(), image()
        expected = attention_relevance(net, x, 1).weights
        self.assertTrue(all(p.grad is None for p in net.parameters()))
        self.assertFalse(any(m._forward_hooks or m._forward_pre_hooks for m in net.modules()))
        self.assertIsNone(x.grad)
        net.requires_grad_(False)
        with torch.no_grad():
            self.assertEqual(max_difference(attention_relevance(net, x, 1).weights, expected), 0.0)
        with torch.inference_mode():
            again = attention_relevance(net, MetaTensor(image()), 1).weights
        self.assertEqual(max_difference(again, expected), 0.0)
        self.assertIs(type(again), torch.Tensor)

    def test_targets(self):
        net, x = vit(), image()
        expected = attention_relevance(net, x, 1).weights
        for target in (torch.tensor([1, 1]), torch.tensor(1), lambda out: out[0][:, 1]):
            self.assertEqual(max_difference(attention_relevance(net, x, target).weights, expected), 0.0)
        other = attention_relevance(net, x, torch.tensor([1, 2])).weights
        self.assertEqual(max_difference(other[:1], expected[:1]), 0.0)
        self.assertGreater(max_difference(other[1:], expected[1:]), 1e-4)

    def test_chosen_layers(self):
        net, x, target = vit(), image(), strong(torch.tensor([1, 1]))
        last = attention_relevance(net, x, target, blocks="blocks.2", queries="all").weights[:, 0]
        first = attention_relevance(net, x, target, blocks=["blocks.0", "blocks.1"], queries="all").weights[:, 0]
        expected = product(explicit_layers(net, x, target))
        self.assertLessEqual(max_difference(last @ first, expected), 1e-5 * float(expected.max()))

    def test_activation_checkpointing(self):
        results = []
        for use_checkpoint in (False, True):
            torch.manual_seed(0)
            net = randomized(AutoencoderKL(2, **LEVELS, channels=(8, 16), use_checkpoint=use_checkpoint))
            m = attention_relevance(net, image(), lambda out: out[1].square(), "all", blocks="encoder")
            self.assertGreater(float(m.weights.max()), 1.0)
            results.append(m.weights)
        self.assertEqual(max_difference(*results), 0.0)

    def test_layers_that_the_target_does_not_reach(self):
        relevance = attention_relevance(vit(), image(), lambda out: out[1][0][:, 0], queries="all").weights[:, 0]
        first = attention_relevance(vit(), image(), lambda out: out[1][0][:, 0], "all", "blocks.0").weights[:, 0]
        self.assertTrue(torch.equal(relevance, first))

    def test_tokens_on_a_grid_and_in_a_sequence(self):
        net, x = vit(classification=False), image()
        m = attention_relevance(net, x, lambda out: out[0][:, 3], queries=[(15, 7)])
        self.assertEqual((m.queries.tolist(), m.image_size, list(m.on_grid().shape)), ([7], (16, 8), [2, 1, 1, 4, 2]))
        words = randomized(DecoderOnlyTransformer(**WORDS))
        tokens = torch.tensor([[1, 2, 3, 4]])
        m = attention_relevance(words, tokens, lambda out: out[:, 2, 5], queries=torch.tensor([2]))
        self.assertIsNone(m.key_grid)
        self.assertEqual(float(m.weights[..., 3]), 0.0)  # which lies behind the token in question
        self.assertGreater(float(m.weights[..., 0]), 0.0)

    def test_finds_the_patch_that_decides(self):
        """Trained to tell whether one patch is bright, the network's relevance lies there."""
        torch.manual_seed(0)
        net = ViT(**{**SLICE, "num_layers": 1, "num_classes": 2, "post_activation": ""})
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(150):
            x, bright = torch.randn(32, 1, 16, 8) * 0.3, torch.randint(2, (32,))
            x[:, :, 8:12, 4:] += 2.0 * bright[:, None, None, None]
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x)[0], bright).backward()
            optimizer.step()
        x = torch.randn(8, 1, 16, 8) * 0.3
        x[:, :, 8:12, 4:] += 2.0
        relevance = attention_relevance(net.eval(), x, 1).on_grid()[:, 0, 0]
        self.assertEqual(relevance.flatten(1).argmax(dim=1).tolist(), [2 * 2 + 1] * 8)

    @parameterized.expand(
        [
            ("training", lambda: vit(dropout_rate=0.1).train(), {}, RuntimeError, "net.eval()"),
            ("no such class", vit, {"target": 3}, ValueError, "3.*no class.*3"),
            (
                "no class token",
                lambda: vit(classification=False),
                {"target": lambda out: out[0].sum()},
                ValueError,
                "class token",
            ),
            ("no logits", lambda: vit(classification=False), {}, ValueError, r"\[2, 8, 24\]"),
            ("target of no type", vit, {"target": "liver"}, TypeError, "'liver'"),
            ("result of no type", vit, {"target": lambda out: 1.0}, TypeError, "float"),
            ("no such token", vit, {"queries": torch.tensor([9])}, ValueError, r"\[9\]"),
            ("no such block", vit, {"blocks": "encoder"}, ValueError, "'encoder'.*blocks.0.attn"),
            ("compiled", lambda: torch.compile(vit()), {}, RuntimeError, "_orig_mod"),
            (
                "several resolutions",
                lambda: randomized(AutoencoderKL(2, **{**LEVELS, "attention_levels": (True, True)}, channels=(8, 16))),
                {"target": lambda out: out[0].sum()},
                ValueError,
                "128 and 32|32 and 128",
            ),
        ]
    )
    def test_refusals(self, _name, make, options, error, message):
        net = make()
        with self.assertRaisesRegex(error, message):
            attention_relevance(net, image(), **{"target": 1, **options})
        self.assertFalse(any(m._forward_hooks or m._forward_pre_hooks for m in net.modules()))

    def test_refuses_cross_attention_and_blocks_that_do_not_run(self):
        block = randomized(TransformerBlock(24, 32, 4, with_cross_attention=True))
        with self.assertRaisesRegex(ValueError, "'cross_attn'.*context"):
            attention_relevance(block, normal(1, 5, 24), lambda out: out.sum(), queries="all")
        net = vit()
        net.spare = SABlock(24, 4)
        with self.assertRaisesRegex(RuntimeError, "spare"):
            attention_relevance(net, image(), 1, blocks="spare")


if __name__ == "__main__":
    unittest.main()
