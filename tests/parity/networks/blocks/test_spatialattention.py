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

"""SpatialAttentionBlock beside the release."""

from __future__ import annotations

import unittest

import torch
from parameterized import parameterized

from tests.networks.blocks.test_spatialattention_contract import TEST_CASES, block, image
from tests.parity.release import assert_equal_to_release, release_run

torch.set_num_threads(1)

TARGET = "monai.networks.blocks.SpatialAttentionBlock"


class TestSpatialAttentionBlock(unittest.TestCase):
    @parameterized.expand([(case,) for case in TEST_CASES])
    def test_equals_the_release(self, kwargs):
        assert_equal_to_release(block(**kwargs), TARGET, kwargs, (image(kwargs["spatial_dims"]),))

    def test_memory_layout_of_the_release(self):
        """Noise drawn like the output, as an autoencoder does, is the same for the same seed."""
        for kwargs in TEST_CASES:
            net, x = block(**kwargs), image(kwargs["spatial_dims"])
            expected = release_run(TARGET, kwargs, (x,), state=net.state_dict())
            self.assertEqual(net(x).stride(), expected.stride(), kwargs)


if __name__ == "__main__":
    unittest.main()
