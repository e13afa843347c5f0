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

from monai.networks.blocks import CrossAttentionBlock, SABlock
from monai.networks.blocks.diffusion.transformer import SpatialTransformer
from monai.networks.nets.diffusion_model_unet import (
    DiffusionModelEncoder,
    DiffusionModelUNet,
    DiffusionUNetTransformerBlock,
    get_timestep_embedding,
)
from tests.differences import max_difference
from tests.networks.nets.diffusion_cases import BASE, CONDITIONED, control, inputs, randomized
from tests.scripting import assert_scripts

torch.set_num_threads(1)

UNET = {**BASE, "out_channels": 2}

OPTIONS = [
    {},
    {"spatial_dims": 3},
    CONDITIONED,
    {**CONDITIONED, "spatial_dims": 3, "attention_levels": (True, True), "include_fc": False},
    {**CONDITIONED, "upcast_attention": True, "use_flash_attention": True},
    {"num_class_embeds": 3, "resblock_updown": True},
    {"include_fc": False, "num_head_channels": (1, 8)},
    {"use_combined_linear": True, "upcast_attention": True},
]

ILL_ARGUMENTS = [
    ("context without its width", {"with_conditioning": True}, ValueError, "cross_attention_dim"),
    (
        "width without a context",
        {"cross_attention_dim": 6},
        ValueError,
        "expects with_conditioning=True.*cross_attention_dim",
    ),
    ("groups", {"norm_num_groups": 3}, ValueError, "16.*3"),
    ("levels", {"attention_levels": (True,)}, ValueError, "8, 16.*True"),
    ("head widths", {"num_head_channels": (4, 4, 4)}, ValueError, "4, 4, 4"),
    ("residual blocks", {"num_res_blocks": (1,)}, ValueError, "num_res_blocks"),
    ("dropout", {"dropout_cattn": 3.0}, ValueError, "3.0"),
    ("no bool", {"use_proj_attn": "no"}, TypeError, "'no'"),
]


def unet(**kwargs) -> DiffusionModelUNet:
    return randomized(DiffusionModelUNet(**{**UNET, **kwargs}))


def attentions(net: torch.nn.Module, kind: type = SABlock) -> list:
    return [module for module in net.modules() if isinstance(module, kind)]


def renamed(state: dict[str, torch.Tensor], *table: tuple[str, str]) -> dict[str, torch.Tensor]:
    result = {}
    for key, value in state.items():
        for old, new in table:
            key = key.replace(old, new)
        result[key] = value
    return result


def generative_models(net: torch.nn.Module, *qkv: str) -> dict[str, torch.Tensor]:
    """The state dict of ``net`` in the keys of GenerativeModels, which called q, k and v ``qkv``."""
    table = [(f".attn.to_{letter}.", f".{name}.") for letter, name in zip("qkv", qkv)]
    table += [(".attn.out_proj.", ".proj_attn."), (".out_proj.", ".to_out.0.")]
    table += [("upsampler.postconv.", "upsampler.conv.")]
    return renamed(net.state_dict(), *table)


class TestDiffusionModelUNet(unittest.TestCase):
    @parameterized.expand([(case,) for case in [*OPTIONS, {"spatial_dims": 1}, {"use_proj_attn": False}]])
    def test_scripts(self, kwargs):
        net = unet(**kwargs)
        given = [inputs({**UNET, **kwargs}, batch) for batch in (2, 3)]
        order = ("x", "timesteps", "context", "class_labels")
        script = assert_scripts(net, *[tuple(values.get(name) for name in order) for values in given])
        residuals = control(net.conv_in.spatial_dims)
        with torch.no_grad():
            difference = max_difference(script(**given[0], **residuals), net(**given[0], **residuals))
        self.assertLessEqual(difference, 1e-5)

    @parameterized.expand([(None, True), (None, False), (True, False), (False, True)])
    def test_projection_reaches_every_attention(self, use_proj_attn, include_fc):
        expected = include_fc if use_proj_attn is None else use_proj_attn
        for conditioning in ({}, CONDITIONED):
            net = unet(use_proj_attn=use_proj_attn, include_fc=include_fc, **conditioning)
            self.assertEqual({block.use_proj_attn for block in attentions(net)}, {expected})
            cross = {block.use_proj_attn for block in attentions(net, CrossAttentionBlock)}
            self.assertEqual(cross, {use_proj_attn is not False} if conditioning else set())

    def test_norms_of_transformers(self):
        net = unet(**CONDITIONED, norm_eps=1e-5, transformer_norm_eps=1e-6)
        norms = [module for module in net.modules() if isinstance(module, torch.nn.GroupNorm)]
        transformers = [module.norm for module in net.modules() if isinstance(module, SpatialTransformer)]
        self.assertEqual({norm.eps for norm in transformers}, {1e-6})
        self.assertEqual({norm.eps for norm in norms if norm not in transformers}, {1e-5})

    @parameterized.expand([({},), (CONDITIONED,)])
    def test_upcast_reaches_every_attention(self, kwargs):
        net = unet(upcast_attention=True, **kwargs)
        blocks = attentions(net) + attentions(net, CrossAttentionBlock)
        self.assertEqual({block.attention_dtype for block in blocks}, {torch.float})

    @parameterized.expand([(torch.half, 2e-2), (torch.bfloat16, 1e-1), (torch.double, 1e-5)])
    def test_other_types(self, dtype, tolerance):
        for kwargs in ({"resblock_updown": True, "spatial_dims": 3}, {**CONDITIONED, "num_class_embeds": 3}):
            net, values = unet(**kwargs), inputs({**UNET, **kwargs})
            expected = net(**values).detach()
            out = net.to(dtype)(**{k: v.to(dtype) if v.is_floating_point() else v for k, v in values.items()})
            self.assertEqual(out.dtype, dtype)
            self.assertLess(float((out - expected).abs().max()), tolerance * float(expected.abs().max()))

    def test_autocast(self):
        net, values = unet(), inputs(UNET)
        expected = net(**values)
        with torch.autocast("cpu", torch.bfloat16):
            out = net(**values)
        self.assertEqual(out.dtype, torch.bfloat16)
        self.assertLess(float((out - expected).abs().max().detach()), 0.05 * float(expected.abs().max().detach()))

    @parameterized.expand(ILL_ARGUMENTS)
    def test_ill_arguments(self, _, kwargs, error, message):
        with self.assertRaisesRegex(error, message):
            unet(**kwargs)

    def test_ill_calls(self):
        for kwargs, change, message in [
            ({}, {"context": torch.zeros(2, 3, 6)}, "with_conditioning"),
            ({"num_class_embeds": 3}, {"class_labels": None}, "3 classes"),
            ({}, {"timesteps": torch.zeros(2, 1)}, r"\[2, 1\]"),
            ({}, {"down_block_additional_residuals": control()["down_block_additional_residuals"][1:]}, "4.*5"),
        ]:
            with self.subTest(message), self.assertRaisesRegex(ValueError, message):
                unet(**kwargs)(**{**inputs({**UNET, **kwargs}), **change})


class TestBlocks(unittest.TestCase):
    def test_classes_of_stages(self):
        names = [type(block).__name__ for block in (*unet().down_blocks, *unet(**CONDITIONED).up_blocks)]
        self.assertEqual(names, ["DownBlock", "AttnDownBlock", "CrossAttnUpBlock", "UpBlock"])

    @parameterized.expand([(8,), (7,)])
    def test_timestep_embedding(self, width):
        embedding = get_timestep_embedding(torch.tensor([0, 5]), width)
        self.assertEqual(embedding.shape, (2, width))
        expected = torch.tensor([1.0] * (width // 2) + [0.0] * (width - width // 2))
        torch.testing.assert_close(embedding[0], expected)
        self.assertAlmostEqual(float(embedding[1, 0]), 0.2836622, places=5)  # the cosine of 5


class TestDiffusionModelEncoder(unittest.TestCase):
    @parameterized.expand([({},), (CONDITIONED,), ({"num_class_embeds": 3, "use_proj_attn": False},)])
    def test_scripts(self, kwargs):
        kwargs = {**UNET, **kwargs, "input_shape": (8, 8)}
        net = randomized(DiffusionModelEncoder(**kwargs))
        order = ("x", "timesteps", "context", "class_labels")
        assert_scripts(net, *[tuple(inputs(kwargs, batch).get(name) for name in order) for batch in (2, 3)])


class TestOldCheckpoints(unittest.TestCase):
    def assert_loads(self, source, target, state, kwargs=None):
        values = inputs({**UNET, **(kwargs or {})})
        for load in (target.load_state_dict, target.load_old_state_dict):
            randomized(target)
            for parameter in target.parameters():
                parameter.data.add_(1)
            load(state)
            self.assertLessEqual(max_difference(target(**values), source(**values)), 1e-5)

    @parameterized.expand([(True,), (False,)])
    def test_first_layout_uses_its_projection(self, combined):
        source = unet()
        state = generative_models(source, "query", "key", "value")
        self.assertIn("middle_block.attention.query.weight", state)
        self.assert_loads(source, unet(use_combined_linear=combined), state)

    @parameterized.expand([(True, False), (False, True)])
    def test_later_layout_does_not(self, use_proj_attn, combined):
        source = unet(use_proj_attn=False)
        state = generative_models(source, "to_q", "to_k", "to_v")
        for key in [key for key in state if key.endswith(".to_q.weight")]:
            state[key.replace("to_q", "proj_attn")] = torch.randn(16, 16)
            state[key.replace("to_q.weight", "proj_attn.bias")] = torch.randn(16)
        self.assert_loads(source, unet(use_proj_attn=use_proj_attn, use_combined_linear=combined), state)

    def test_transformers(self):
        source = unet(**CONDITIONED)
        state = generative_models(source)
        self.assertTrue(any(".attn2.to_out.0.bias" in key for key in state))
        self.assert_loads(source, unet(**CONDITIONED), state, CONDITIONED)

    def test_used_projection_is_refused_by_a_network_without(self):
        target = unet(use_proj_attn=False)
        before = {key: value.clone() for key, value in target.state_dict().items()}
        with self.assertRaisesRegex(RuntimeError, "use_proj_attn=True"):
            target.load_old_state_dict(generative_models(unet(), "query", "key", "value"))
        self.assertTrue(all(torch.equal(value, before[key]) for key, value in target.state_dict().items()))

    def test_unscaled_attention_is_refused_and_the_remedy_works(self):
        """GenerativeModels 0.1.0 left out the scale; its keys are those of revisions that did not."""
        source = DiffusionUNetTransformerBlock(8, 2, 4, cross_attention_dim=6).eval()
        names = (("ff.linear1.", "ff.net.0.proj."), ("ff.linear2.", "ff.net.2."))
        target = unet(**CONDITIONED)
        state = renamed(target.state_dict(), *names)
        with self.assertRaisesRegex(RuntimeError, "sqrt"):
            target.load_state_dict(state)
        x, context = torch.randn(2, 5, 8), torch.randn(2, 3, 6)
        for attention in (source.attn1, source.attn2):
            attention.scale = 1.0
        expected = source(x, context)
        for attention in (source.attn1, source.attn2):
            attention.scale = 0.5
            attention.to_q.weight.data.mul_(2)
        self.assertLessEqual(max_difference(source(x, context), expected), 1e-5)


if __name__ == "__main__":
    unittest.main()
