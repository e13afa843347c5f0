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

"""
What diffusion U-Nets and ControlNets did wrong up to MONAI 1.6.1, a test a defect.

It uses nothing but the public interface of that release.
"""

from __future__ import annotations

import unittest
from typing import Any

import torch
import torch.nn as nn

from monai.apps.generation.maisi.networks.controlnet_maisi import ControlNetMaisi
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from monai.networks import nets
from monai.networks.nets import ControlNet, DiffusionModelUNet, SPADEDiffusionModelUNet
from monai.networks.nets.diffusion_model_unet import DiffusionModelEncoder

torch.set_num_threads(1)
SIZES: dict[str, Any] = {"in_channels": 1, "num_res_blocks": 1, "norm_num_groups": 4, "num_head_channels": 4}
SIZES.update(spatial_dims=2, attention_levels=(False, True))
PLAIN = {**SIZES, "channels": (8, 8)}
UNET = {**PLAIN, "out_channels": 1}
CONDITIONED = {"with_conditioning": True, "cross_attention_dim": 6}
SPADE = {**UNET, "label_nc": 2, "spade_intermediate_channels": 4}
EMBEDDING = {"conditioning_embedding_num_channels": (4, 8)}
MAISI = {**SIZES, "num_channels": (8, 8)}


def image(batch: int = 2, size: int = 8, spatial_dims: int = 2, channels: int = 1) -> torch.Tensor:
    shape = (batch, channels, *[size] * spatial_dims)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def steps(batch: int = 2) -> torch.Tensor:
    return torch.arange(batch) * 100


def randomized(net: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return net.eval()


def flat(out: Any) -> torch.Tensor:
    return out if torch.is_tensor(out) else torch.cat([part.flatten() for part in [*out[0], out[1]]])


class TestDefects(unittest.TestCase):
    def assert_scripts(self, net: nn.Module, *arguments: Any) -> None:
        randomized(net)
        torch.testing.assert_close(flat(torch.jit.script(net)(*arguments)), flat(net(*arguments)))

    def test_04_upcast_in_a_half_model(self):
        net = randomized(DiffusionModelUNet(**UNET, **CONDITIONED, upcast_attention=True)).half()
        self.assertTrue(bool(net(image().half(), steps(), torch.ones(2, 3, 6).half()).isfinite().all()))

    def test_04_upcast_without_conditioning(self):
        net = DiffusionModelUNet(**UNET, upcast_attention=True)
        self.assertEqual(net.middle_block.attention.attn.attention_dtype, torch.float)

    def test_09_training_maisi_beside_a_controlnet(self):
        """MONAI 1.6.1 added the residuals in place to features that the backward pass needs."""
        net = randomized(DiffusionModelUNetMaisi(**MAISI, out_channels=1, include_fc=True)).train()
        residuals = [image(2, size, channels=8) for size in (8, 8, 4, 4)]
        call = {"down_block_additional_residuals": residuals, "mid_block_additional_residual": residuals[-1]}
        net(image(), steps(), **call).pow(2).sum().backward()
        self.assertGreater(float(net.conv_in.conv.weight.grad.abs().max()), 0.0)

    def test_11_one_spatial_axis(self):
        for options in ({}, {"resblock_updown": True}, {"use_proj_attn": False}):
            net = randomized(DiffusionModelUNet(**{**UNET, "spatial_dims": 1}, **options))
            self.assertEqual(net(image(spatial_dims=1), steps()).shape, (2, 1, 8))

    def test_11_one_spatial_axis_with_context(self):
        net = DiffusionModelUNet(**{**UNET, "spatial_dims": 1}, **CONDITIONED)
        self.assertEqual(net(image(spatial_dims=1), steps(), torch.ones(2, 3, 6)).shape, (2, 1, 8))

    def test_11_half_precision_volumes_on_the_cpu(self):
        net = randomized(DiffusionModelUNet(**{**UNET, "spatial_dims": 3}, resblock_updown=True)).half()
        self.assertTrue(bool(net(image(spatial_dims=3).half(), steps()).isfinite().all()))

    def test_12_empty_batch(self):
        self.assertEqual(DiffusionModelUNet(**UNET)(image(0), steps(0)).shape, (0, 1, 8, 8))

    def test_12_empty_batch_with_context(self):
        net = DiffusionModelEncoder(**UNET, **CONDITIONED, input_shape=(8, 8))
        self.assertEqual(net(image(0), steps(0), torch.ones(0, 3, 6)).shape, (0, 1))

    def test_12_empty_batch_controlnet(self):
        down, mid = ControlNet(**PLAIN, **EMBEDDING)(image(0), steps(0), image(0, 16))
        self.assertEqual([len(part) for part in (*down, mid)], [0] * 5)

    def test_15_flash_on_the_cpu(self):
        net = DiffusionModelUNetMaisi(**MAISI, out_channels=1, use_flash_attention=True)
        self.assertEqual(net(image(), steps()).shape, (2, 1, 8, 8))

    def test_encoder_is_exported(self):
        self.assertIs(getattr(nets, "DiffusionModelEncoder", None), DiffusionModelEncoder)

    def test_inputs_are_not_changed(self):
        """MONAI 1.6.1 added the residuals in place to features, one of which may be shared."""
        net = randomized(DiffusionModelUNetMaisi(**MAISI, out_channels=1))
        features = []
        net.conv_in.register_forward_hook(lambda _, __, out: features.append((out, out.clone())))
        residuals = [image(2, size, channels=8) for size in (8, 8, 4, 4)]
        with torch.no_grad():
            net(image(), steps(), down_block_additional_residuals=residuals)
        self.assertTrue(torch.equal(*features[0]))

    def test_generative_models_projection_was_never_used(self):
        source = randomized(DiffusionModelUNet(**UNET, include_fc=False))
        state = {}
        for key, value in source.state_dict().items():
            state[key.replace(".attn.to_", ".to_").replace("upsampler.postconv", "upsampler.conv")] = value
            if key.endswith(".attn.to_q.weight"):
                prefix = key.removesuffix("attn.to_q.weight")
                state[f"{prefix}proj_attn.weight"], state[f"{prefix}proj_attn.bias"] = torch.ones(8, 8), torch.ones(8)
        net = DiffusionModelUNet(**UNET).eval()
        net.load_old_state_dict(state)
        torch.testing.assert_close(net(image(), steps()), source(image(), steps()))

    def test_scripts_unet(self):
        self.assert_scripts(DiffusionModelUNet(**UNET), image(), steps())

    def test_scripts_unet_with_context(self):
        self.assert_scripts(DiffusionModelUNet(**UNET, **CONDITIONED), image(), steps(), torch.ones(2, 3, 6))

    def test_scripts_encoder(self):
        self.assert_scripts(DiffusionModelEncoder(**UNET, input_shape=(8, 8)), image(), steps())

    def test_scripts_controlnet(self):
        self.assert_scripts(ControlNet(**PLAIN, **EMBEDDING), image(), steps(), image(2, 16))

    def test_scripts_spade(self):
        self.assert_scripts(SPADEDiffusionModelUNet(**SPADE), image(), steps(), image(channels=2))

    def test_scripts_maisi_unet(self):
        self.assert_scripts(DiffusionModelUNetMaisi(**MAISI, out_channels=1), image(), steps())

    def test_scripts_maisi_controlnet(self):
        self.assert_scripts(ControlNetMaisi(**MAISI, **EMBEDDING), image(), steps(), image(2, 16))


if __name__ == "__main__":
    unittest.main()
