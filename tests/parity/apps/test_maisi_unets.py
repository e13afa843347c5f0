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

"""DiffusionModelUNetMaisi, ControlNetMaisi beside the release."""

from __future__ import annotations

import unittest

import torch
from parameterized import parameterized

from monai.apps.generation.maisi.networks.controlnet_maisi import ControlNetMaisi
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from tests.apps.test_maisi_unets import CONTROL, CONTROL_OPTIONS, UNET, UNET_OPTIONS
from tests.differences import max_difference
from tests.networks.nets.diffusion_cases import control, inputs, randomized
from tests.parity.networks.nets.like_the_release import assert_built_and_computing_like_the_release
from tests.parity.release import release_run

torch.set_num_threads(1)

MODULE = "monai.apps.generation.maisi.networks"


class TestDiffusionModelUNetMaisi(unittest.TestCase):
    @parameterized.expand([(case,) for case in UNET_OPTIONS])
    def test_equals_the_release(self, kwargs):
        target = f"{MODULE}.diffusion_model_unet_maisi.DiffusionModelUNetMaisi"
        assert_built_and_computing_like_the_release(DiffusionModelUNetMaisi, target, {**UNET, **kwargs})

    @parameterized.expand([(2, list), (3, tuple)])
    def test_residuals_like_the_release(self, spatial_dims, kind):
        """Its middle block sees the last residual, which all ControlNets that were trained beside it have learned."""
        kwargs = {**UNET, "spatial_dims": spatial_dims}
        net, residuals = randomized(DiffusionModelUNetMaisi(**kwargs)), control(spatial_dims)
        call = {**inputs(kwargs), **residuals}
        call["down_block_additional_residuals"] = kind(residuals["down_block_additional_residuals"])
        target = f"{MODULE}.diffusion_model_unet_maisi.DiffusionModelUNetMaisi"
        expected = release_run(target, kwargs, state=net.state_dict(), call_kwargs=call)
        self.assertLessEqual(max_difference(net(**call), expected), 1e-5)
        plain = DiffusionModelUNetMaisi(**kwargs, control_reaches_mid_block=False).eval()
        plain.load_state_dict(net.state_dict())
        self.assertGreater(max_difference(plain(**call), expected), 1e-3)


class TestControlNetMaisi(unittest.TestCase):
    @parameterized.expand([(case,) for case in CONTROL_OPTIONS])
    def test_equals_the_release(self, kwargs):
        target = f"{MODULE}.controlnet_maisi.ControlNetMaisi"
        assert_built_and_computing_like_the_release(ControlNetMaisi, target, {**CONTROL, **kwargs})


if __name__ == "__main__":
    unittest.main()
