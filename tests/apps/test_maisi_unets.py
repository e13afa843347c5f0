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
from parameterized import parameterized

from monai.apps.generation.maisi.networks.controlnet_maisi import ControlNetMaisi
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from monai.data import MetaTensor
from monai.networks.blocks import CrossAttentionBlock, SABlock
from monai.networks.nets import DiffusionModelUNet
from tests.differences import energy, max_difference
from tests.networks.nets.diffusion_cases import BASE, CONDITIONED, control, inputs, randomized
from tests.scripting import assert_scripts

torch.set_num_threads(1)

SIZES = {**{key: value for key, value in BASE.items() if key != "channels"}, "num_channels": BASE["channels"]}

UNET = {**SIZES, "out_channels": 2}

CONTROL = {**SIZES, "conditioning_embedding_in_channels": 2, "conditioning_embedding_num_channels": (4, 8)}

TOLD = {f"include_{name}_input": True for name in ("top_region_index", "bottom_region_index", "spacing")}

UNET_OPTIONS = [
    {},
    {**TOLD, "spatial_dims": 3, "resblock_updown": True},
    {**CONDITIONED, "include_fc": True, "use_combined_linear": True},
    {"include_spacing_input": True, "num_class_embeds": 3},
]

CONTROL_OPTIONS = [{}, {"use_checkpointing": False}, {**CONDITIONED, "include_fc": True}, {"num_class_embeds": 3}]

UNET_ORDER = ("x", "timesteps", "context", "class_labels", "", "", "top_region_index_tensor")

UNET_ORDER += ("bottom_region_index_tensor", "spacing_tensor")

CONTROL_ORDER = ("x", "timesteps", "controlnet_cond", "conditioning_scale", "context", "class_labels")


def arguments(kwargs, order, batch):
    values = {"conditioning_scale": 0.5, **inputs(kwargs, batch)}
    return tuple(values.get(name) for name in order)


def projections(net: torch.nn.Module, kind: type) -> set[bool]:
    return {module.use_proj_attn for module in net.modules() if isinstance(module, kind)}


class TestDiffusionModelUNetMaisi(unittest.TestCase):
    @parameterized.expand([(case,) for case in [*UNET_OPTIONS, {"spatial_dims": 1}, {"use_proj_attn": True}]])
    def test_scripts(self, kwargs):
        kwargs = {**UNET, **kwargs}
        net = randomized(DiffusionModelUNetMaisi(**kwargs))
        script = assert_scripts(net, *[arguments(kwargs, UNET_ORDER, batch) for batch in (2, 3)])
        given = {**inputs(kwargs), **control(kwargs["spatial_dims"])}
        with torch.no_grad():
            self.assertLessEqual(max_difference(script(**given), net(**given)), 1e-5)

    def test_residuals_like_the_plain_unet(self):
        net = randomized(DiffusionModelUNetMaisi(**UNET, control_reaches_mid_block=False))
        plain = DiffusionModelUNet(**BASE, out_channels=2, include_fc=False).eval()
        plain.load_state_dict(net.state_dict())
        residuals, values = control(), inputs(UNET)
        before = [residual.clone() for residual in residuals["down_block_additional_residuals"]]
        self.assertEqual(max_difference(net(**values, **residuals), plain(**values, **residuals)), 0.0)
        self.assertEqual(max_difference(residuals["down_block_additional_residuals"], before), 0.0)

    @parameterized.expand([(None, False), (True, True), (False, False)])
    def test_projection(self, use_proj_attn, expected):
        net = DiffusionModelUNetMaisi(**{**UNET, **CONDITIONED}, use_proj_attn=use_proj_attn)
        self.assertEqual(projections(net, SABlock), {expected})
        self.assertEqual(projections(net, CrossAttentionBlock), {use_proj_attn is not False})

    @parameterized.expand(["top_region_index", "bottom_region_index", "spacing"])
    def test_missing_input(self, name):
        net = DiffusionModelUNetMaisi(**UNET, **{f"include_{name}_input": True})
        with self.assertRaisesRegex(ValueError, f"{name}_tensor"):
            net(**inputs(UNET))

    def test_meta_data_are_left_behind(self):
        values = inputs(UNET)
        values["x"] = MetaTensor(values["x"])
        self.assertIs(type(DiffusionModelUNetMaisi(**UNET)(**values)), torch.Tensor)

    def test_half_on_the_cpu(self):
        kwargs = {**UNET, **TOLD, "spatial_dims": 3, "resblock_updown": True, "use_flash_attention": True}
        net, values = randomized(DiffusionModelUNetMaisi(**kwargs)), inputs(kwargs)
        expected = net(**values)
        out = net.half()(**{**values, "x": values["x"].half()})
        self.assertEqual(out.dtype, torch.half)
        self.assertLess(float((out - expected).abs().max()), 0.02 * float(expected.abs().max()))


class TestControlNetMaisi(unittest.TestCase):
    @parameterized.expand([(case,) for case in CONTROL_OPTIONS])
    def test_scripts(self, kwargs):
        kwargs = {**CONTROL, **kwargs}
        net = randomized(ControlNetMaisi(**kwargs))
        assert_scripts(net, *[arguments(kwargs, CONTROL_ORDER, batch) for batch in (2, 3)])

    def test_checkpointing_changes_no_gradient_and_computes_twice(self):
        gradients, calls = [], []
        for use_checkpointing in (True, False):
            net, count = randomized(ControlNetMaisi(**CONTROL, use_checkpointing=use_checkpointing)), []
            net.controlnet_cond_embedding.register_forward_pre_hook(lambda *_, count=count: count.append(1))
            energy(net(**inputs(CONTROL))).backward()
            gradients.append([parameter.grad for parameter in net.parameters()])
            calls.append(len(count))
        self.assertEqual(max_difference(*gradients), 0.0)
        self.assertEqual(calls, [2, 1])

    @parameterized.expand([(None, False), (True, True), (False, False)])
    def test_projection(self, use_proj_attn, expected):
        self.assertEqual(projections(ControlNetMaisi(**CONTROL, use_proj_attn=use_proj_attn), SABlock), {expected})


if __name__ == "__main__":
    unittest.main()
