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

import torch

from monai.bundle import ConfigParser


class TestExport(unittest.TestCase):
    def test_configuration_names_it(self):
        sizes = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "num_res_blocks": 1, "channels": [8, 8]}
        sizes.update(attention_levels=[False, True], norm_num_groups=4, num_head_channels=4, input_shape=[8, 8])
        parser = ConfigParser({"net": {"_target_": "monai.networks.nets.DiffusionModelEncoder", **sizes}})
        net = parser.get_parsed_content("net")
        self.assertEqual(net(torch.rand(2, 1, 8, 8), torch.arange(2)).shape, (2, 1))


if __name__ == "__main__":
    unittest.main()
