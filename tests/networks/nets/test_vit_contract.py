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

import contextlib
import io
import unittest
from itertools import product

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.networks.blocks import SABlock
from monai.networks.nets import ViT
from tests.differences import max_difference

torch.set_num_threads(1)

SIZES = {
    "in_channels": 2,
    "img_size": (16, 24),
    "patch_size": 8,
    "hidden_size": 24,
    "mlp_dim": 32,
    "num_layers": 2,
    "num_heads": 4,
    "spatial_dims": 2,
}

VOLUME = {**SIZES, "img_size": (8, 16, 8), "patch_size": (4, 8, 4), "spatial_dims": 3}

TEST_CASES = [
    {**sizes, "proj_type": proj_type, "pos_embed_type": position, **head}
    for sizes, proj_type, position, head in product(
        (SIZES, VOLUME),
        ("conv", "perceptron"),
        ("learnable", "sincos", "fourier", "none"),
        ({}, {"classification": True, "num_classes": 5, "qkv_bias": True, "dropout_rate": 0.2}),
    )
]

ILL_ARGUMENTS = [
    ("dropout above one", {"dropout_rate": 5.0}, ValueError, "5.0"),
    ("dropout below zero", {"dropout_rate": -1.0}, ValueError, "-1.0"),
    ("width not divisible", {"num_heads": 7}, ValueError, "24.*7"),
    ("patch above image", {"patch_size": 32}, ValueError, "32.*16"),
    ("a rest for perceptron", {"img_size": 17, "proj_type": "perceptron"}, ValueError, "17"),
    ("unknown projection", {"proj_type": "mlp"}, ValueError, "mlp"),
    ("unknown position", {"pos_embed_type": "rotary"}, ValueError, "rotary"),
    ("flash and matrix", {"use_flash_attention": True, "save_attn": True}, ValueError, "save_attn"),
    ("no bool", {"use_proj_attn": "no"}, TypeError, "'no'"),
]


def network(**kwargs) -> ViT:
    torch.manual_seed(0)
    return ViT(**{**SIZES, **kwargs}).eval()


def image_for(net: ViT, batch: int = 2) -> torch.Tensor:
    shape = (batch, 2, *net.patch_embedding.img_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def with_stale_keys(net: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict as MONAI 1.4 and 1.5 would have written it: with weights of a cross attention nobody used."""
    state = dict(net.state_dict())
    for key, value in net.state_dict().items():
        if ".attn.out_proj." in key:
            state[key.replace(".attn.", ".cross_attn.")] = value + 1
        if ".norm1." in key:
            state[key.replace(".norm1.", ".norm_cross_attn.")] = value + 1
    return state


class TestViT(unittest.TestCase):
    @parameterized.expand([(case,) for case in TEST_CASES])
    def test_shapes(self, kwargs):
        net = network(**kwargs)
        out, hidden_states = net(image_for(net))
        classification = kwargs.get("classification", False)
        tokens = net.patch_embedding.n_patches + classification
        self.assertEqual(out.shape, (2, 5) if classification else (2, tokens, 24))
        self.assertEqual([h.shape for h in hidden_states], [(2, tokens, 24)] * 2)

    @parameterized.expand(ILL_ARGUMENTS)
    def test_ill_arguments(self, _, kwargs, error, part):
        with self.assertRaisesRegex(error, part):
            ViT(**{**SIZES, **kwargs})

    @parameterized.expand([("2d", SIZES, (2, 2, 8, 24)), ("3d", VOLUME, (2, 2, 8, 8, 8))])
    def test_image_that_does_not_fit(self, _, kwargs, shape):
        with self.assertRaisesRegex(ValueError, "img_size"):
            network(**kwargs)(torch.ones(shape))

    def test_head(self):
        net = network(classification=True)
        net.classification_head[0].weight.data.fill_(9.0)
        logits = net(image_for(net))[0]
        self.assertLessEqual(float(logits.abs().max()), 1.0)
        bare = network(classification=True, post_activation="")
        self.assertIsInstance(bare.classification_head, nn.Linear)
        bare.load_state_dict({key.replace("head.0.", "head."): value for key, value in net.state_dict().items()})
        torch.testing.assert_close(bare(image_for(net))[0].tanh(), logits)

    def test_class_token_exists_only_for_classification(self):
        for classification in (True, False):
            net = network(classification=classification)
            for name in ("cls_token", "classification_head"):
                self.assertEqual(hasattr(net, name), classification)
                self.assertEqual(any(key.startswith(name) for key in net.state_dict()), classification)

    def test_hidden_states_are_the_tokens_after_each_block(self):
        net = network()
        out, hidden_states = net(image_for(net))
        torch.testing.assert_close(net.norm(hidden_states[-1]), out)
        torch.testing.assert_close(net.blocks[0](net.patch_embedding(image_for(net))), hidden_states[0])

    @parameterized.expand([("sincos", False), ("fourier", False), ("learnable", True)])
    def test_fixed_positions_do_not_learn(self, position, learns):
        net = network(pos_embed_type=position)
        self.assertEqual(net.patch_embedding.position_embeddings.requires_grad, learns)

    def test_options_reach_every_block(self):
        net = network(use_combined_linear=False, use_flash_attention=True, use_proj_attn=False, qkv_bias=True)
        blocks = [module for module in net.modules() if isinstance(module, SABlock)]
        self.assertEqual(len(blocks), 2)
        for block in blocks:
            self.assertTrue(block.use_flash_attention)
            self.assertIsInstance(block.out_proj, nn.Identity)
            self.assertIsNotNone(block.to_v.bias)

    def test_without_projection(self):
        net, bare = network(), network(use_proj_attn=False)
        for block in net.blocks:
            nn.init.eye_(block.attn.out_proj.weight)
            nn.init.zeros_(block.attn.out_proj.bias)
        bare.load_state_dict({key: value for key, value in net.state_dict().items() if "out_proj" not in key})
        self.assertLessEqual(max_difference(bare(image_for(net)), net(image_for(net))), 1e-6)
        with self.assertRaisesRegex(RuntimeError, "use_proj_attn=True"):
            bare.load_state_dict(net.state_dict())

    def test_saved_attention(self):
        net = network(save_attn=True, classification=True)
        net(image_for(net))
        for block in net.blocks:
            self.assertEqual(block.attn.att_mat.shape, (2, 4, 7, 7))
            torch.testing.assert_close(block.attn.att_mat.sum(-1), torch.ones(2, 4, 7))

    @parameterized.expand([("load_old_state_dict",), ("load_state_dict",)])
    def test_older_checkpoint(self, method):
        source, net = network(), network()
        state = with_stale_keys(source)
        keys = list(state)
        self.assertGreater(len(keys), len(source.state_dict()))
        for parameter in net.parameters():
            nn.init.normal_(parameter)
        getattr(net, method)(state)
        self.assertEqual(list(state), keys)
        self.assertEqual(max_difference(net(image_for(net)), source(image_for(net))), 0.0)

    def test_verbose_load_names_what_is_not_shared(self):
        net, printed = network(), io.StringIO()
        with contextlib.redirect_stdout(printed):
            net.load_old_state_dict(with_stale_keys(net), verbose=True)
        self.assertIn("blocks.0.cross_attn.out_proj.weight", printed.getvalue())

    def test_a_misfit_changes_nothing(self):
        net = network()
        before = {key: value.clone() for key, value in net.state_dict().items()}
        state = {key: value + 1 for key, value in with_stale_keys(net).items()}
        state["norm.weight"] = torch.ones(7)
        for load in (net.load_state_dict, net.load_old_state_dict):
            with self.assertRaisesRegex(RuntimeError, "norm.weight"):
                load(state)
            self.assertTrue(all(torch.equal(value, before[key]) for key, value in net.state_dict().items()))

    def test_every_parameter_learns(self):
        net = network(classification=True)
        net(image_for(net))[0].sum().backward()
        self.assertEqual([name for name, p in net.named_parameters() if p.requires_grad and p.grad is None], [])

    @parameterized.expand([(torch.bfloat16,), (torch.float16,), (torch.float64,)])
    def test_types(self, dtype):
        net = network().to(dtype)
        self.assertEqual(net(image_for(net).to(dtype))[0].dtype, dtype)

    def test_empty_batch(self):
        net = network(proj_type="perceptron")
        self.assertEqual(net(image_for(net, 0))[0].shape, (0, 6, 24))


if __name__ == "__main__":
    unittest.main()
