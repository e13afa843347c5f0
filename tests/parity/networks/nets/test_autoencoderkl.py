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

"""AutoencoderKL beside the release."""

from __future__ import annotations

import unittest
from itertools import product

import torch
import torch.utils.checkpoint
from parameterized import parameterized

from monai.networks.nets.autoencoderkl import AEKLDownsample, AEKLResBlock, AsymmetricPad, Decoder, Encoder
from tests.differences import max_difference
from tests.networks.nets.test_autoencoderkl_contract import SIZES, image, network
from tests.parity.release import assert_equal_to_release, assert_initialized_like_the_release, release_run

torch.set_num_threads(1)

TARGET = "monai.networks.nets.AutoencoderKL"

TEST_CASES = [
    {**SIZES, "spatial_dims": dims, "use_combined_linear": combined, "include_fc": include_fc}
    for dims, (combined, include_fc) in product((1, 2, 3), ((False, True), (True, True), (False, False)))
] + [
    {**SIZES, "use_convtranspose": True},
    {**SIZES, "use_convtranspose": True, "spatial_dims": 3, "use_flash_attention": True},
    {**SIZES, "with_encoder_nonlocal_attn": False, "use_checkpoint": True},
    {**SIZES, "with_decoder_nonlocal_attn": False, "attention_levels": (True, False)},
    {**SIZES, "in_channels": 2, "out_channels": 3, "num_res_blocks": 2, "norm_eps": 1e-3},
    {**SIZES, "channels": (4, 8, 8), "num_res_blocks": (2, 1, 1), "attention_levels": (False, True, True)},
]


class TestAutoencoderKL(unittest.TestCase):
    @parameterized.expand([(case,) for case in TEST_CASES])
    def test_equals_the_release(self, kwargs):
        """The same seed gives the same weights, which give the same outputs and gradients."""
        net = network(**kwargs)
        assert_initialized_like_the_release(net, TARGET, kwargs)
        x = image(net)
        result, grads = release_run(TARGET, kwargs, (x,), state=net.state_dict(), seed=3, grad=True)
        torch.manual_seed(3)
        out = net(x)
        self.assertLessEqual(max_difference(out, result), 1e-5)
        sum(part.pow(2).sum() for part in out).backward()
        scale = max(float(grad.abs().max()) for grad in grads.values())
        for name, parameter in net.named_parameters():
            self.assertLessEqual(max_difference(parameter.grad, grads[name]) / scale, 1e-5, name)

    @parameterized.expand([("encode",), ("reconstruct",), ("encode_stage_2_inputs",)])
    def test_methods_equal_the_release(self, method):
        net = network()
        x = image(net)
        expected = release_run(TARGET, SIZES, (x,), state=net.state_dict(), seed=3, call=method)
        torch.manual_seed(3)
        self.assertLessEqual(max_difference(getattr(net, method)(x), expected), 1e-5)

    def test_decoding_equals_the_release(self):
        net, z = network(), torch.randn(2, 4, 4, 4)
        for method in ("decode", "decode_stage_2_outputs"):
            expected = release_run(TARGET, SIZES, (z,), state=net.state_dict(), call=method)
            self.assertLessEqual(max_difference(getattr(net, method)(z), expected), 1e-5)

    @parameterized.expand([(dims,) for dims in (1, 2, 3)])
    def test_parts_equal_the_release(self, dims):
        module = "monai.networks.nets.autoencoderkl."
        x = torch.randn(2, 8, *[6] * dims)
        self.assertEqual(AsymmetricPad(dims)(x).shape, (2, 8, *[7] * dims))
        cases = {
            AEKLDownsample: {"spatial_dims": dims, "in_channels": 8},
            AEKLResBlock: {
                "spatial_dims": dims,
                "in_channels": 8,
                "norm_num_groups": 4,
                "norm_eps": 1e-6,
                "out_channels": 12,
            },
        }
        for cls, kwargs in cases.items():
            assert_equal_to_release(cls(**kwargs).eval(), module + cls.__name__, kwargs, (x,))
        levels = {**SIZES, "spatial_dims": dims, "norm_eps": 1e-6, "in_channels": 8, "out_channels": 4}
        del levels["latent_channels"]
        for cls in (Encoder, Decoder):
            assert_equal_to_release(cls(**levels).eval(), module + cls.__name__, levels, (x,))


if __name__ == "__main__":
    unittest.main()
