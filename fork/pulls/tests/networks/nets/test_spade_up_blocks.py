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

from parameterized import parameterized

from monai.networks.blocks import SABlock
from monai.networks.nets import SPADEDiffusionModelUNet

SIZES = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "num_res_blocks": 1, "channels": (8, 8), "label_nc": 2}
SIZES.update(attention_levels=(False, True), norm_num_groups=4, num_head_channels=4, spade_intermediate_channels=4)


class TestSPADEUpBlocks(unittest.TestCase):
    @parameterized.expand([({},), ({"with_conditioning": True, "cross_attention_dim": 6},)])
    def test_options_reach_every_block(self, condition):
        net = SPADEDiffusionModelUNet(**SIZES, **condition, include_fc=False, use_combined_linear=True)
        blocks = [each for each in net.up_blocks.modules() if isinstance(each, SABlock)]
        self.assertGreater(len(blocks), 0)
        for each in blocks:
            self.assertFalse(each.include_fc)
            self.assertTrue(each.use_combined_linear)


if __name__ == "__main__":
    unittest.main()
