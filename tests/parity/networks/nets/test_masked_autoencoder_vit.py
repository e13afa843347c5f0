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

"""MaskedAutoEncoderViT beside the release."""

from __future__ import annotations

import unittest
from itertools import product

import torch
from parameterized import parameterized

from tests.differences import energy, max_difference
from tests.networks.nets.test_masked_autoencoder_vit import SIZES, image_for, network, seeded
from tests.parity.release import assert_initialized_like_the_release, release_run

torch.set_num_threads(1)

TARGET = "monai.networks.nets.MaskedAutoEncoderViT"

VOLUME = {**SIZES, "img_size": (8, 4, 12), "patch_size": (4, 2, 4), "spatial_dims": 3}

TEST_CASES = [
    {**sizes, "proj_type": proj_type, "pos_embed_type": position, "decoder_pos_embed_type": decoder_position, **extra}
    for sizes, proj_type, (position, decoder_position), extra in product(
        (SIZES, VOLUME),
        ("conv", "perceptron"),
        (("sincos", "sincos"), ("learnable", "learnable"), ("fourier", "none")),
        ({}, {"masking_ratio": 0.3, "qkv_bias": True, "dropout_rate": 0.1, "save_attn": True}),
    )
]


class TestMaskedAutoEncoderViT(unittest.TestCase):
    @parameterized.expand([(case,) for case in TEST_CASES])
    def test_equals_the_release(self, kwargs):
        """Predictions, gradients and, drawn from the same seed, masks."""
        net = network(**kwargs)
        x = image_for(net)
        patches, mask = seeded(net, x)
        expected, grads = release_run(TARGET, kwargs, (x,), state=net.state_dict(), grad=True, seed=3)
        self.assertTrue(torch.equal(mask, expected[1]))
        self.assertLessEqual(max_difference([patches, mask], list(expected)), 1e-5)
        energy([patches]).backward()
        for name, parameter in net.named_parameters():
            if parameter.requires_grad:
                scale = max(1.0, float(grads[name].abs().max()))
                self.assertLessEqual(max_difference(parameter.grad, grads[name]) / scale, 1e-5, name)

    @parameterized.expand([(case,) for case in TEST_CASES[::5]])
    def test_initial_weights(self, kwargs):
        assert_initialized_like_the_release(network(**kwargs), TARGET, kwargs)


if __name__ == "__main__":
    unittest.main()
