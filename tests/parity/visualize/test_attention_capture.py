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

"""Captured attention beside the matrices that the release saves."""

from __future__ import annotations

import unittest

import torch

from monai.networks.blocks import SABlock
from tests.differences import max_difference
from tests.networks.nets.diffusion_cases import normal
from tests.parity.release import release_run
from tests.visualize.capture_cases import SELF, build, captured
from tests.visualize.test_attention_capture import TOLERANCE

torch.set_num_threads(1)


class TestExactness(unittest.TestCase):
    def test_matrices_of_the_release(self):
        """The referee, in a process of its own: with unit vectors as values its result is the matrix."""
        net, x = build(SABlock, SELF), normal(2, 6, 24)
        x[:, :, :6] = torch.eye(6)
        with torch.no_grad():
            net.qkv.weight[48:] = torch.eye(6, 24).repeat(4, 1)
            net.qkv.bias[48:] = 0
            net.out_proj.weight.copy_(torch.eye(24))
            net.out_proj.bias.zero_()
        out = release_run("monai.networks.blocks.SABlock", {**SELF, "save_attn": True}, (x,), state=net.state_dict())
        (m,) = captured(net, (x,))
        self.assertLessEqual(max_difference(m.weights, out.unflatten(-1, (4, 6)).transpose(1, 2)), TOLERANCE)


if __name__ == "__main__":
    unittest.main()
