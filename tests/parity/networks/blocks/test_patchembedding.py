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

"""PatchEmbeddingBlock, PatchEmbed beside the release."""

from __future__ import annotations

import unittest
from itertools import product

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.networks.blocks import PatchEmbed
from tests.differences import max_difference
from tests.networks.blocks.test_patchembedding_contract import SIZES, TEST_CASES, block, image, image_for
from tests.parity.release import assert_equal_to_release, assert_initialized_like_the_release, release_run
from tests.scripting import assert_scripts

torch.set_num_threads(1)

TARGET = "monai.networks.blocks.PatchEmbeddingBlock"

SWIN_CASES = [
    (f"{dims}d_{patch_size}_{norm.__name__ if norm else None}", dims, patch_size, norm)
    for (dims, patch_size), norm in product(((2, 2), (2, (2, 5)), (3, 2), (3, (4, 1, 3))), (nn.LayerNorm, None))
]


class TestPatchEmbeddingBlock(unittest.TestCase):
    @parameterized.expand(TEST_CASES)
    def test_equals_the_release(self, _, kwargs):
        net = block(kwargs)
        self.assertEqual(net(image_for(net)).shape, (2, net.n_patches, 24))
        assert_equal_to_release(net, TARGET, kwargs, (image_for(net),))

    @parameterized.expand(TEST_CASES)
    def test_initial_weights(self, _, kwargs):
        assert_initialized_like_the_release(block(kwargs), TARGET, kwargs)

    @parameterized.expand([("conv",), ("perceptron",)])
    def test_image_laid_out_otherwise(self, proj_type):
        """The release gives its tokens the positions of others; so do we, but not without a word."""
        net, x = block({**SIZES, "proj_type": proj_type}), image(2, 2, 24, 16)
        with self.assertWarnsRegex(UserWarning, r"\[24, 16\].*\[3, 2\].*\[2, 3\]"):
            out = net(x)
        expected = release_run(TARGET, {**SIZES, "proj_type": proj_type}, (x,), state=net.state_dict())
        self.assertLessEqual(max_difference(out, expected), 1e-5)
        self.assertLessEqual(max_difference(torch.jit.script(net)(x), expected), 1e-5)

    def test_a_rest_is_left_out_by_the_convolution(self):
        net = block(SIZES)
        x = image(2, 2, 17, 31)
        torch.testing.assert_close(net(x), net(x[:, :, :16, :24]))
        assert_equal_to_release(net, TARGET, SIZES, (x,))


class TestPatchEmbed(unittest.TestCase):
    @parameterized.expand(SWIN_CASES)
    def test_equals_the_release(self, _, spatial_dims, patch_size, norm_layer):
        kwargs = {
            "patch_size": patch_size,
            "in_chans": 2,
            "embed_dim": 6,
            "norm_layer": norm_layer,
            "spatial_dims": spatial_dims,
        }
        torch.manual_seed(0)
        net = PatchEmbed(**kwargs).eval()
        for size in ((7, 9, 8), (8, 10, 12)):
            x = image(2, 2, *size[:spatial_dims])
            assert_equal_to_release(net, "monai.networks.blocks.PatchEmbed", kwargs, (x,))
            assert_scripts(net, (x,), (x[:1],))


if __name__ == "__main__":
    unittest.main()
