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
from unittest import mock

import torch
import torch.nn as nn
import torch.utils.checkpoint
from parameterized import parameterized

from monai.networks.blocks.selfattention import SABlock
from monai.networks.nets import AutoencoderKL
from tests.differences import max_difference
from tests.scripting import assert_scripts

torch.set_num_threads(1)

SIZES = {
    "spatial_dims": 2,
    "num_res_blocks": (1, 1),
    "channels": (8, 16),
    "attention_levels": (False, True),
    "latent_channels": 4,
    "norm_num_groups": 4,
}

ILL_ARGUMENTS = [
    ("groups", {"norm_num_groups": 3}, ValueError, "8.*3"),
    ("attention levels", {"attention_levels": (True,)}, ValueError, "attention_levels"),
    ("residual blocks", {"num_res_blocks": (1, 1, 1)}, ValueError, "num_res_blocks"),
    ("no bool", {"use_proj_attn": "no"}, TypeError, "'no'"),
]


def network(**kwargs) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(**{**SIZES, **kwargs}).eval()


def image(net: nn.Module, batch: int = 2, size: int = 8) -> torch.Tensor:
    """An image that ``net`` takes."""
    first = net.encoder.blocks[0].conv
    shape = batch, first.in_channels, *[size] * len(first.kernel_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def generative_models(net: AutoencoderKL, layout: str) -> dict[str, torch.Tensor]:
    """The state dict of ``net`` as GenerativeModels wrote it: "A1", before 0.2.0, or "A2"."""
    state = {}
    for key, value in net.state_dict().items():
        key = key.replace(".postconv.", ".conv.")
        head, attention, rest = key.partition(".attn.")
        if attention and layout == "A2":
            key = f"{head}.{rest.replace('out_proj', 'proj_attn')}"
        elif attention:
            name, kind = rest.split(".")
            key = f"{head}.{name.removeprefix('to_').replace('out_proj', 'proj_out')}.conv.{kind}"
            value = value[:, :, None, None] if kind == "weight" else value
        state[key] = value
    return state


class TestAutoencoderKL(unittest.TestCase):
    def test_release_order_of_arguments(self):
        positional = AutoencoderKL(2, 1, 1, 1, (8,), (True,), 3, 4, 1e-6, False, False, True, True, False, True, True)
        self.assertTrue(positional.use_checkpoint)
        block = next(module for module in positional.modules() if isinstance(module, SABlock))
        self.assertTrue(block.use_combined_linear and block.use_flash_attention and not block.include_fc)
        last = AutoencoderKL(2, 1, 1, 1, (8,), (True,), 3, 4, 1e-6, True, True, True, True, False, True, True, True)
        self.assertIsInstance(last.encoder.blocks[2].attn.out_proj, nn.Linear)

    @parameterized.expand(ILL_ARGUMENTS)
    def test_ill_arguments(self, _, kwargs, error, part):
        with self.assertRaisesRegex(error, part):
            AutoencoderKL(**{**SIZES, **kwargs})

    @parameterized.expand([(False, True), (True, False), (None, True), (None, False)])
    def test_projection_reaches_every_attention(self, use_proj_attn, include_fc):
        net = network(use_proj_attn=use_proj_attn, include_fc=include_fc, use_combined_linear=True)
        blocks = [module for module in net.modules() if isinstance(module, SABlock)]
        self.assertEqual(len(blocks), 4)
        projects = include_fc if use_proj_attn is None else use_proj_attn
        for block in blocks:
            self.assertIsInstance(block.out_proj, nn.Linear if projects else nn.Identity)
            self.assertTrue(block.use_combined_linear)

    def test_checkpointing(self):
        plain, again = network(), network(use_checkpoint=True)
        x = image(plain)
        with mock.patch.object(torch.utils.checkpoint, "checkpoint", wraps=torch.utils.checkpoint.checkpoint) as spy:
            for net in (plain, again):
                torch.manual_seed(3)
                sum(part.pow(2).sum() for part in net(x)).backward()
        self.assertEqual(spy.call_count, 2)
        grads = [[p.grad for p in net.parameters()] for net in (plain, again)]
        self.assertEqual(max_difference(*grads), 0.0)

    def test_as_in_latent_diffusion(self):
        net = network(as_in_latent_diffusion=True)
        for half, blocks in ((net.encoder, 1), (net.decoder, 2)):
            self.assertIsInstance(half.blocks[-2], nn.SiLU)
            self.assertEqual(set(half.num_res_blocks), {blocks})
        mean, deviation = net.encode(image(net))
        self.assertEqual((net.quant_conv_mu.conv.in_channels, mean.shape[1], deviation.shape[1]), (8, 4, 4))
        self.assertEqual(net.decode(mean).shape, image(net).shape)

    @parameterized.expand(
        [
            ({},),
            ({"use_checkpoint": True, "use_proj_attn": False},),
            ({"use_convtranspose": True},),
            ({"as_in_latent_diffusion": True},),
        ]
    )
    def test_scripted_methods(self, kwargs):
        net = network(**kwargs)
        x = image(net)
        torch.manual_seed(3)
        expected = net(x)
        torch.manual_seed(3)
        script = torch.jit.script(net)
        self.assertEqual(max_difference(script(x), expected), 0.0)
        for method, argument in (("encode", x), ("reconstruct", x), ("decode", expected[1])):
            result = getattr(script, method)(argument)
            self.assertLessEqual(max_difference(result, getattr(net, method)(argument)), 1e-6)
        assert_scripts(net.decoder, (expected[1],), (expected[1][:1],))

    @parameterized.expand([(torch.float16,), (torch.bfloat16,), (torch.float64,)])
    def test_types(self, dtype):
        net = network().to(dtype)
        self.assertEqual({part.dtype for part in net(image(net).to(dtype))}, {dtype})
        with torch.autocast("cpu", torch.bfloat16):
            self.assertEqual(network().reconstruct(image(net)).dtype, torch.bfloat16)

    @parameterized.expand([(dims,) for dims in (1, 2, 3)])
    def test_empty_batch(self, dims):
        net = network(spatial_dims=dims)
        reconstruction, z_mu, _ = net(image(net, 0))
        self.assertEqual(reconstruction.shape, (0, 1, *[8] * dims))
        self.assertEqual(z_mu.shape, (0, 4, *[4] * dims))


class TestOldCheckpoints(unittest.TestCase):
    def identity_projections(self, net: AutoencoderKL) -> None:
        for block in net.modules():
            if isinstance(block, SABlock):
                nn.init.eye_(block.out_proj.weight)
                nn.init.zeros_(block.out_proj.bias)

    @parameterized.expand(product(("A1", "A2"), (True, False), ("load_state_dict", "load_old_state_dict")))
    def test_generative_models(self, layout, combined, method):
        source, net = network(), network(use_combined_linear=combined)
        state = generative_models(source, layout)
        keys = list(state)
        if layout == "A2":  # which never used the projections that it saved
            self.identity_projections(source)
        for parameter in net.parameters():
            nn.init.normal_(parameter)
        getattr(net, method)(state)
        self.assertEqual(list(state), keys)
        x = image(net)
        self.assertLessEqual(max_difference(net.reconstruct(x), source.reconstruct(x)), 1e-5)

    def test_unused_projections_are_dropped(self):
        source, bare = network(), network(use_proj_attn=False)
        bare.load_state_dict(generative_models(source, "A2"))
        self.identity_projections(source)
        x = image(bare)
        self.assertLessEqual(max_difference(bare.reconstruct(x), source.reconstruct(x)), 1e-5)

    def test_nested(self):
        source, nested = network(), nn.ModuleDict({"stage1": network()})
        for parameter in nested.parameters():
            nn.init.normal_(parameter)
        nested.load_state_dict({f"stage1.{key}": value for key, value in generative_models(source, "A1").items()})
        x = image(source)
        self.assertEqual(max_difference(nested["stage1"].reconstruct(x), source.reconstruct(x)), 0.0)

    def assert_refused(self, net: AutoencoderKL, state: dict[str, torch.Tensor], part: str) -> None:
        before = {key: value.clone() for key, value in net.state_dict().items()}
        with self.assertRaisesRegex(RuntimeError, part):
            net.load_state_dict(state)
        self.assertTrue(all(torch.equal(value, before[key]) for key, value in net.state_dict().items()))

    def test_used_projection_into_a_network_without(self):
        state = generative_models(network(), "A1")
        self.assert_refused(network(use_proj_attn=False), state, "use_proj_attn=True")

    def test_quantization_convolutions_of_size_3(self):
        state = generative_models(network(), "A1")
        state["quant_conv_mu.conv.weight"] = torch.ones(4, 4, 3, 3)
        self.assert_refused(network(), state, "quant_conv_mu.conv.weight")

    def test_transposed_convolutions_of_size_3(self):
        state = generative_models(network(), "A2")
        self.assert_refused(network(use_convtranspose=True), state, "decoder.blocks.6.conv.conv.weight")

    def test_verbose_load_names_what_is_not_shared(self):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            network().load_old_state_dict(generative_models(network(), "A1"), verbose=True)
        self.assertIn("encoder.blocks.4.q.conv.weight", printed.getvalue())


if __name__ == "__main__":
    unittest.main()
