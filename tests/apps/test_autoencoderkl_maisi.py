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

import re
import unittest
from itertools import product

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.apps.generation.maisi.networks.autoencoderkl_maisi import (
    AutoencoderKlMaisi,
    MaisiConvolution,
    MaisiGroupNorm3D,
)
from monai.data import MetaTensor
from monai.networks.blocks.selfattention import SABlock
from monai.networks.nets import AutoencoderKL
from monai.networks.state_dict import CheckpointFacts
from tests.differences import max_difference
from tests.scripting import assert_scripts

torch.set_num_threads(1)

MODULE = "monai.apps.generation.maisi.networks.autoencoderkl_maisi."

SIZES = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 1,
    "num_res_blocks": (1, 1),
    "num_channels": (8, 16),
    "attention_levels": (False, False),
    "latent_channels": 4,
    "norm_num_groups": 4,
    "num_splits": 2,
}

ATTENTION = {"attention_levels": (False, True), "with_encoder_nonlocal_attn": True, "with_decoder_nonlocal_attn": True}

ILL_ARGUMENTS = [
    ("groups", {"norm_num_groups": 3}, ValueError, "8.*3"),
    ("attention levels", {"attention_levels": (True,)}, ValueError, "attention_levels"),
    ("residual blocks", {"num_res_blocks": (1, 1, 1)}, ValueError, "num_res_blocks"),
    ("no such axis", {"dim_split": 3}, ValueError, "dim_split=3"),
    ("no bool", {**ATTENTION, "use_proj_attn": "no"}, TypeError, "'no'"),
]

CONVOLUTIONS = [
    {"kernel_size": 3, "strides": 1},
    {"kernel_size": 1, "padding": 0},
    {"kernel_size": 3, "strides": 2, "padding": 0},
    {"kernel_size": 3, "strides": 2, "padding": 1, "is_transposed": True},
    {"kernel_size": 5, "dilation": 2},
    {"kernel_size": 4, "strides": 2, "padding": 1, "is_transposed": True, "output_padding": 0},
]


def network(**kwargs) -> AutoencoderKlMaisi:
    torch.manual_seed(0)
    return AutoencoderKlMaisi(**{**SIZES, **kwargs}).eval()


def volume(size: int = 16, batch: int = 1, dims: int = 3, channels: int = 1) -> torch.Tensor:
    return torch.randn(batch, channels, *[size] * dims, generator=torch.Generator().manual_seed(1))


def pieces(net: nn.Module, number: int) -> nn.Module:
    """``net``, whose convolutions cut their input into so many pieces from now on."""
    for module in net.modules():
        if isinstance(module, MaisiConvolution):
            module.num_splits = number
    return net


class TestAutoencoderKlMaisi(unittest.TestCase):
    @parameterized.expand(product((1, 2, 3), (5, 16, 19), range(len(CONVOLUTIONS))))
    def test_pieces_are_the_whole(self, number, size, case):
        kwargs = {"conv_only": True, **CONVOLUTIONS[case]}
        for axis in (0, 1):
            net = MaisiConvolution(2, 2, 3, 1, axis, False, **kwargs)
            x = volume(size, dims=2, channels=2)
            whole = net(x)
            for splits in (number, 4 * number):
                self.assertLessEqual(max_difference(pieces(net, splits)(x), whole), 1e-5)

    @parameterized.expand([(1, 16), (2, 12), (3, 6)])
    def test_network_in_pieces(self, dims, size):
        net, x = network(spatial_dims=dims, **ATTENTION), volume(size, dims=dims, batch=2)
        whole = pieces(net, 1).reconstruct(x)
        self.assertEqual(whole.shape, x.shape)
        for number in (2, 3, 16):
            self.assertLessEqual(max_difference(pieces(net, number).reconstruct(x), whole), 1e-5)

    @parameterized.expand(ILL_ARGUMENTS)
    def test_ill_arguments(self, _, kwargs, error, part):
        with self.assertRaisesRegex(error, part):
            network(**kwargs)

    def test_norm_without_space(self):
        with self.assertRaisesRegex(ValueError, r"\[2, 8\]"):
            MaisiGroupNorm3D(4, 8)(torch.ones(2, 8))

    @parameterized.expand([(False, True), (True, False), (None, True), (None, False)])
    def test_options_reach_every_attention(self, use_proj_attn, include_fc):
        options = {"use_proj_attn": use_proj_attn, "include_fc": include_fc, "use_combined_linear": True}
        blocks = [m for m in network(**ATTENTION, **options).modules() if isinstance(m, SABlock)]
        self.assertEqual(len(blocks), 4)
        projects = include_fc if use_proj_attn is None else use_proj_attn
        for block in blocks:
            self.assertIsInstance(block.out_proj, nn.Linear if projects else nn.Identity)
            self.assertTrue(block.use_combined_linear)

    def test_no_projection_unless_asked_for(self):
        for block in network(**ATTENTION).modules():
            if isinstance(block, SABlock):
                self.assertIsInstance(block.out_proj, nn.Identity)

    @parameterized.expand(
        [({"num_splits": 3},), ({**ATTENTION, "norm_float16": True},), ({"use_convtranspose": True},)]
    )
    def test_scripted_methods(self, kwargs):
        net, x = network(**kwargs), volume(8)
        script = torch.jit.script(net)
        self.assertLessEqual(max_difference(script.reconstruct(x), net.reconstruct(x)), 1e-5)
        assert_scripts(net.encoder, (x,), (volume(12, 2),))

    @parameterized.expand(product((torch.float16, torch.bfloat16, torch.float64), (True, False)))
    def test_types(self, dtype, norm_float16):
        net = network(norm_float16=norm_float16, **ATTENTION).to(dtype)
        self.assertEqual({part.dtype for part in net(volume(8).to(dtype))}, {dtype})

    @parameterized.expand([(True,), (False,)])
    def test_autocast(self, norm_float16):
        net = network(norm_float16=norm_float16)
        with torch.autocast("cpu", torch.bfloat16):
            result = net.reconstruct(volume(8))
        self.assertEqual(result.dtype, torch.bfloat16)
        self.assertLessEqual(max_difference(result.float(), network().reconstruct(volume(8))), 0.1)

    def test_precise_norm_of_a_double_network(self):
        norm, x = MaisiGroupNorm3D(4, 8).double(), volume(6, channels=8).double()
        torch.testing.assert_close(norm(x), nn.functional.group_norm(x, 4, eps=norm.eps), rtol=0, atol=1e-12)

    @parameterized.expand([(dims,) for dims in (1, 2, 3)])
    def test_empty_batch(self, dims):
        net = network(spatial_dims=dims, **ATTENTION)
        self.assertEqual(net(volume(8, batch=0, dims=dims))[0].shape, (0, 1, *[8] * dims))

    def test_metadata_is_left_behind(self):
        x = MetaTensor(volume(8))
        result = network().reconstruct(x)
        self.assertNotIsInstance(network().encode(x)[0], MetaTensor)
        self.assertLessEqual(max_difference(result, network().reconstruct(volume(8))), 1e-6)

    def test_sizes_are_logged(self):
        name = MODULE.removesuffix(".")
        with self.assertLogs(name, level="INFO") as logs:
            network(print_info=True).reconstruct(volume(8))
        self.assertTrue(any("[1, 8, 8, 8, 8]" in line for line in logs.output))
        with self.assertNoLogs(name, level="INFO"):
            network().reconstruct(volume(8))


class TestAutoencoderKLCheckpoints(unittest.TestCase):
    def plain(self, **kwargs) -> AutoencoderKL:
        torch.manual_seed(1)
        renamed = {**SIZES, "channels": SIZES["num_channels"], **ATTENTION, **kwargs}
        for name in ("num_splits", "num_channels"):
            del renamed[name]
        return AutoencoderKL(**renamed).eval()

    def test_encoder(self):
        source, net = self.plain(include_fc=False), network(**ATTENTION)
        encoder = {k: v for k, v in source.state_dict().items() if k.startswith("encoder")}
        net.load_state_dict({**{k: v for k, v in net.state_dict().items() if k[:7] != "encoder"}, **encoder})
        self.assertLessEqual(max_difference(net.encoder(volume(8)), source.encoder(volume(8))), 1e-5)

    @parameterized.expand([("conv",), ("postconv",)])
    def test_another_upsampling_is_refused(self, name):
        state = {k.replace("postconv", name): v for k, v in self.plain(include_fc=False).state_dict().items()}
        net = network(**ATTENTION)
        before = {key: value.clone() for key, value in net.state_dict().items()}
        with self.assertRaisesRegex(RuntimeError, "interpolate"):
            net.load_state_dict(state)
        self.assertTrue(all(torch.equal(value, before[key]) for key, value in net.state_dict().items()))

    def test_transposed_convolutions_of_generative_models(self):
        """
        They fit: only the wrapped convolutions have other keys, the quantization's do not. But the keys are those of
        nearest-neighbor upsampling, too, which does not fit: the user has to know.
        """
        net = network(use_convtranspose=True)
        state = {key: value + 1 for key, value in net.state_dict().items()}
        old = {re.sub(r"(blocks.*)\.conv\.(weight|bias)$", r"\1.\2", key): value for key, value in state.items()}
        self.assertIn("decoder.blocks.2.conv.conv.weight", old)
        self.assertIn("quant_conv_mu.conv.weight", old)
        with self.assertRaisesRegex(RuntimeError, "transposed_upsampling=True"):
            net.load_state_dict(old)
        with self.assertRaisesRegex(RuntimeError, "load it into AutoencoderKL"):
            net.load_old_state_dict(old, facts=CheckpointFacts(transposed_upsampling=False))
        net.load_old_state_dict(old, facts=CheckpointFacts(transposed_upsampling=True))
        self.assertEqual(max_difference(list(net.state_dict().values()), list(state.values())), 0.0)

    @parameterized.expand([(True,), (False,)])
    def test_the_network_was_built_otherwise(self, transposed):
        """The keys of both kinds of this network's own decoder are the same: the user may know."""
        net = network(use_convtranspose=transposed)
        state = net.state_dict()
        net.load_old_state_dict(state, facts=CheckpointFacts(transposed_upsampling=transposed))
        with self.assertRaisesRegex(RuntimeError, f"use_convtranspose={not transposed}"):
            net.load_old_state_dict(state, facts=CheckpointFacts(transposed_upsampling=not transposed))


if __name__ == "__main__":
    unittest.main()
