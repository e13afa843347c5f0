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

"""SPADEAutoencoderKL beside the release."""

from __future__ import annotations

import unittest
from itertools import product

import torch
from parameterized import parameterized

from monai.networks.nets.spade_autoencoderkl import SPADEDecoder, SPADEResBlock
from tests.differences import max_difference
from tests.networks.nets.test_spade_autoencoderkl_contract import SIZES, arguments, network
from tests.parity.release import assert_equal_to_release, assert_initialized_like_the_release, release_run

torch.set_num_threads(1)

TARGET = "monai.networks.nets.SPADEAutoencoderKL"

TEST_CASES = [
    {**SIZES, "spatial_dims": dims, "use_combined_linear": combined, "include_fc": include_fc}
    for dims, (combined, include_fc) in product((1, 2, 3), ((False, True), (True, False)))
] + [
    {**SIZES, "with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False, "in_channels": 2},
    {**SIZES, "num_res_blocks": 2, "attention_levels": (True, False), "use_flash_attention": True, "norm_eps": 1e-3},
]


class TestSPADEAutoencoderKL(unittest.TestCase):
    @parameterized.expand([(case,) for case in TEST_CASES])
    def test_equals_the_release(self, kwargs):
        net = network(**kwargs)
        inputs = arguments(kwargs["spatial_dims"], channels=kwargs.get("in_channels", 1))
        assert_initialized_like_the_release(net, TARGET, kwargs)
        result, grads = release_run(TARGET, kwargs, inputs, state=net.state_dict(), seed=3, grad=True)
        torch.manual_seed(3)
        out = net(*inputs)
        self.assertLessEqual(max_difference(out, result), 1e-5)
        sum(part.pow(2).sum() for part in out).backward()
        scale = max(float(grad.abs().max()) for grad in grads.values())
        for name, parameter in net.named_parameters():
            self.assertLessEqual(max_difference(parameter.grad, grads[name]) / scale, 1e-5, name)

    def test_methods_equal_the_release(self):
        net, (image, seg) = network(), arguments()
        latent = torch.randn(2, 4, 4, 4)
        cases = {
            "encode": (image,),
            "encode_stage_2_inputs": (image,),
            "reconstruct": (image, seg),
            "decode": (latent, seg),
            "decode_stage_2_outputs": (latent, seg),
        }
        for method, inputs in cases.items():
            expected = release_run(TARGET, SIZES, inputs, state=net.state_dict(), seed=3, call=method)
            torch.manual_seed(3)
            self.assertLessEqual(max_difference(getattr(net, method)(*inputs), expected), 1e-5, method)

    def test_parts_equal_the_release(self):
        module = "monai.networks.nets.spade_autoencoderkl."
        sizes = {"spatial_dims": 2, "norm_num_groups": 4, "norm_eps": 1e-6, "label_nc": 3, "in_channels": 8}
        inputs = torch.randn(2, 8, 4, 4), arguments()[1]
        block = {**sizes, "out_channels": 12, "spade_intermediate_channels": 6}
        assert_equal_to_release(SPADEResBlock(**block).eval(), module + "SPADEResBlock", block, inputs)
        decoder = {**sizes, "channels": (8, 16), "out_channels": 1, "num_res_blocks": (1, 1)}
        decoder["attention_levels"] = (True, False)
        net = SPADEDecoder(**decoder).eval()
        self.assertEqual(net.label_nc, 3)
        assert_equal_to_release(net, module + "SPADEDecoder", decoder, inputs)


if __name__ == "__main__":
    unittest.main()
