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

"""ControlNet beside the release."""

from __future__ import annotations

import unittest

import torch
from parameterized import parameterized

from monai.networks.nets import ControlNet
from tests.networks.nets.test_controlnet_contract import OPTIONS, SIZES
from tests.parity.networks.nets.like_the_release import assert_built_and_computing_like_the_release

torch.set_num_threads(1)

TARGET = "monai.networks.nets.controlnet.ControlNet"


class TestControlNet(unittest.TestCase):
    @parameterized.expand([(case,) for case in OPTIONS])
    def test_equals_the_release(self, kwargs):
        kwargs = {**SIZES, **kwargs}
        assert_built_and_computing_like_the_release(ControlNet, TARGET, kwargs, conditioning_scale=0.7)


if __name__ == "__main__":
    unittest.main()
