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

"""AutoencoderKlMaisi beside the release."""

from __future__ import annotations

import unittest
from itertools import product

import torch
from parameterized import parameterized

from monai.apps.generation.maisi.networks.autoencoderkl_maisi import (
    MaisiConvolution,
    MaisiDecoder,
    MaisiDownsample,
    MaisiEncoder,
    MaisiGroupNorm3D,
    MaisiResBlock,
    MaisiUpsample,
)
from tests.apps.test_autoencoderkl_maisi import ATTENTION, CONVOLUTIONS, MODULE, SIZES, network, volume
from tests.differences import max_difference
from tests.parity.release import assert_equal_to_release, assert_initialized_like_the_release, release_run

torch.set_num_threads(1)

TARGET = MODULE + "AutoencoderKlMaisi"

TEST_CASES = [
    {**SIZES, "num_splits": splits, "dim_split": axis, "use_convtranspose": transposed}
    for (splits, axis), transposed in product(((1, 0), (2, 0), (2, 1)), (False, True))
] + [
    {**SIZES, **ATTENTION},
    {**SIZES, **ATTENTION, "include_fc": True, "use_combined_linear": True, "save_mem": False},
    {**SIZES, **ATTENTION, "use_flash_attention": False, "use_checkpointing": True, "print_info": True},
]


class TestAutoencoderKlMaisi(unittest.TestCase):
    @parameterized.expand([(case,) for case in TEST_CASES])
    def test_equals_the_release(self, kwargs):
        net, x = network(**kwargs), volume()
        assert_initialized_like_the_release(net, TARGET, kwargs)
        result, grads = release_run(TARGET, kwargs, (x,), state=net.state_dict(), seed=3, grad=True)
        torch.manual_seed(3)
        out = net(x)
        self.assertLessEqual(max_difference(out, result), 1e-5)
        sum(part.pow(2).sum() for part in out).backward()
        scale = max(float(grad.abs().max()) for grad in grads.values())
        for name, parameter in net.named_parameters():
            self.assertLessEqual(max_difference(parameter.grad, grads[name]) / scale, 1e-5, name)

    def test_parts_equal_the_release(self):
        cut = {"num_splits": 2, "dim_split": 1, "print_info": False, "save_mem": True, "spatial_dims": 3}
        block = {**cut, "in_channels": 8, "norm_num_groups": 4, "norm_eps": 1e-6, "out_channels": 12}
        levels = {**cut, "num_channels": (8, 16), "num_res_blocks": (1, 1), "attention_levels": (False, True)}
        levels.update({"in_channels": 8, "out_channels": 4, "norm_num_groups": 4, "norm_eps": 1e-6})
        cases = [
            (MaisiUpsample, {**cut, "in_channels": 8, "use_convtranspose": False}),
            (MaisiUpsample, {**cut, "in_channels": 8, "use_convtranspose": True}),
            (MaisiDownsample, {**cut, "in_channels": 8}),
            (MaisiResBlock, block),
            (MaisiGroupNorm3D, {"num_groups": 4, "num_channels": 8}),
            (MaisiGroupNorm3D, {"num_groups": 2, "num_channels": 8, "affine": False, "eps": 0.1}),
            (MaisiEncoder, levels),
            (MaisiDecoder, levels),
        ]
        for cls, kwargs in cases:
            net = cls(**kwargs).eval()
            if len(list(net.parameters())):
                assert_equal_to_release(net, MODULE + cls.__name__, kwargs, (volume(16, channels=8),))
            else:
                x = volume(16, channels=8)
                expected = release_run(MODULE + cls.__name__, kwargs, (x,))
                self.assertLessEqual(max_difference(net(x), expected), 1e-5)

    def test_convolution_equals_the_release(self):
        for kwargs in CONVOLUTIONS[:4]:
            kwargs = {"spatial_dims": 3, "in_channels": 2, "out_channels": 3, "conv_only": True, **kwargs}
            kwargs.update({"num_splits": 2, "dim_split": 2, "print_info": False})
            size = 17 if kwargs.get("strides", 1) == 2 and not kwargs.get("is_transposed") else 16
            net = MaisiConvolution(**kwargs).eval()
            assert_equal_to_release(net, MODULE + "MaisiConvolution", kwargs, (volume(size, channels=2),))

    def test_float16_norms(self):
        """They round each step as the release does, and work in a float32 network without autocast, too."""
        kwargs = {"num_groups": 4, "num_channels": 8, "norm_float16": True}
        norm, x = MaisiGroupNorm3D(**kwargs), volume(6, channels=8)
        expected = release_run(MODULE + "MaisiGroupNorm3D", kwargs, (x,), state=norm.state_dict())
        self.assertEqual(norm(x).dtype, torch.float16)
        self.assertEqual(max_difference(norm(x), expected), 0.0)
        result = network(norm_float16=True).reconstruct(x[:, :1])
        self.assertEqual(result.dtype, torch.float32)
        self.assertLessEqual(max_difference(result, network().reconstruct(x[:, :1])), 0.02)


if __name__ == "__main__":
    unittest.main()
