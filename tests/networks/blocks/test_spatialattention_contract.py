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
from itertools import product

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.networks.blocks import SpatialAttentionBlock
from tests.scripting import assert_scripts

torch.set_num_threads(1)

TEST_CASES = [
    {
        "spatial_dims": dims,
        "num_channels": 16,
        "num_head_channels": width,
        "norm_num_groups": 4,
        "include_fc": include_fc,
        "use_combined_linear": combined,
        "use_flash_attention": flash,
    }
    for dims, width, include_fc, (combined, flash) in product(
        (1, 2, 3), (None, 4), (True, False), ((False, False), (True, False), (False, True))
    )
]

ILL_ARGUMENTS = [
    ("heads do not divide the channels", {"num_head_channels": 5}),
    ("groups do not divide the channels", {"norm_num_groups": 3}),
    ("no channel in a head", {"num_head_channels": 0}),
]


def block(**kwargs) -> SpatialAttentionBlock:
    torch.manual_seed(0)
    net = SpatialAttentionBlock(**{"spatial_dims": 2, "num_channels": 16, "norm_num_groups": 4, **kwargs})
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net.eval()


def image(dims: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 16, *(4, 3, 5)[:dims], generator=torch.Generator().manual_seed(1))


class TestSpatialAttentionBlock(unittest.TestCase):
    @parameterized.expand(ILL_ARGUMENTS)
    def test_ill_arguments(self, _, kwargs):
        with self.assertRaises(ValueError):
            SpatialAttentionBlock(**{"spatial_dims": 2, "num_channels": 16, "norm_num_groups": 4, **kwargs})

    @parameterized.expand([(None, True, True), (None, False, False), (True, False, True), (False, True, False)])
    def test_projection(self, use_proj_attn, include_fc, expected):
        net = block(include_fc=include_fc, use_proj_attn=use_proj_attn)
        self.assertEqual("attn.out_proj.weight" in net.state_dict(), expected)
        self.assertEqual(net(image(2)).shape, image(2).shape)

    @parameterized.expand([(1,), (2,), (3,)])
    def test_empty_batch(self, dims):
        self.assertEqual(block(spatial_dims=dims)(image(dims)[:0]).shape, (0, *image(dims).shape[1:]))

    @parameterized.expand([(torch.float16,), (torch.bfloat16,), (torch.float64,)])
    def test_types(self, dtype):
        for attention_dtype in (None, torch.float32):
            net = block(attention_dtype=attention_dtype)
            expected = net(image(2))
            out = net.to(dtype)(image(2).to(dtype))
            self.assertEqual(out.dtype, dtype)
            torch.testing.assert_close(out.float(), expected, atol=0.1, rtol=0.1)

    def test_channels_last(self):
        net, x = block(), image(2)
        torch.testing.assert_close(net(x.to(memory_format=torch.channels_last)), net(x))

    @parameterized.expand([(case,) for case in TEST_CASES[::2]])
    def test_script(self, kwargs):
        dims = kwargs["spatial_dims"]
        assert_scripts(block(**kwargs), (image(dims),), (image(dims, 3),), (image(dims)[..., :2],))

    def test_export_with_dynamic_size(self):
        dims = {0: torch.export.Dim("b", max=9), 2: torch.export.Dim("h", max=32), 3: torch.export.Dim("w", max=32)}
        net = block()
        for strict in (True, False):
            exported = torch.export.export(net, (image(2),), dynamic_shapes={"x": dims}, strict=strict).module()
            x = torch.randn(3, 16, 7, 8)
            torch.testing.assert_close(exported(x), net(x), atol=1e-5, rtol=0)


if __name__ == "__main__":
    unittest.main()
