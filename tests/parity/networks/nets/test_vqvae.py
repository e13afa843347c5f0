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

"""VQVAE beside the release."""

from __future__ import annotations

import unittest

import torch
import torch.utils.checkpoint
from parameterized import parameterized

from monai.networks.nets.vqvae import VQVAEResidualUnit
from tests.differences import max_difference
from tests.networks.nets.test_vqvae_contract import SIZES, image, network
from tests.parity.release import assert_equal_to_release, assert_initialized_like_the_release, release_run

torch.set_num_threads(1)

TARGET = "monai.networks.nets.VQVAE"

TEST_CASES = [
    SIZES,
    {**SIZES, "spatial_dims": 3, "act": "PRELU", "output_act": "tanh", "num_res_channels": 4},
    {**SIZES, "downsample_parameters": (2, 4, 1, 1), "upsample_parameters": (2, 4, 1, 1, 0), "use_checkpointing": True},
    {**SIZES, "num_res_layers": 2, "embedding_init": "kaiming_uniform", "commitment_cost": 0.5, "dropout": 0.3},
    {
        **SIZES,
        "downsample_parameters": ((2, 4, 1, 1), (1, 3, 2, 2)),
        "upsample_parameters": ((1, 3, 2, 2, 0), (2, 3, 1, 1, 1)),
    },
]


class TestVQVAE(unittest.TestCase):
    @parameterized.expand([(case,) for case in TEST_CASES])
    def test_equals_the_release(self, kwargs):
        net, x = network(**kwargs), image(kwargs["spatial_dims"])
        assert_initialized_like_the_release(net, TARGET, kwargs)
        assert_equal_to_release(net, TARGET, kwargs, (x,))

    @parameterized.expand([(case,) for case in TEST_CASES])
    def test_training_equals_the_release(self, kwargs):
        net, x = network(**kwargs).train(), image(kwargs["spatial_dims"])
        expected = release_run(TARGET, kwargs, (x,), state=net.state_dict(), seed=3, train=True)
        torch.manual_seed(3)
        self.assertLessEqual(max_difference(net(x), expected), 1e-5)

    @parameterized.expand([("encode",), ("index_quantize",), ("encode_stage_2_inputs",)])
    def test_encoding_equals_the_release(self, method):
        net, x = network(), image()
        expected = release_run(TARGET, SIZES, (x,), state=net.state_dict(), call=method)
        self.assertLessEqual(max_difference(getattr(net, method)(x), expected), 1e-5)

    def test_decoding_equals_the_release(self):
        net = network()
        z, indices = torch.randn(2, 4, 2, 2), torch.tensor([[[0, 1], [7, 3]]])
        for method, argument in (
            ("quantize", z),
            ("decode", z),
            ("decode_stage_2_outputs", z),
            ("decode_samples", indices),
        ):
            expected = release_run(TARGET, SIZES, (argument,), state=net.state_dict(), call=method)
            self.assertLessEqual(max_difference(getattr(net, method)(argument), expected), 1e-5, method)

    def test_residual_unit_equals_the_release(self):
        kwargs = {"spatial_dims": 2, "in_channels": 4, "num_res_channels": 3, "act": "PRELU", "bias": False}
        unit = VQVAEResidualUnit(**kwargs).eval()
        x = torch.randn(2, 4, 5, 5)
        assert_equal_to_release(unit, "monai.networks.nets.vqvae.VQVAEResidualUnit", kwargs, (x,))


if __name__ == "__main__":
    unittest.main()
