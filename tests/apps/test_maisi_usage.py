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

"""MAISI as its users run it: the published options, small, on the CPU; a training step and a short sampling loop."""

from __future__ import annotations

import unittest
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from parameterized import parameterized

from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.apps.generation.maisi.networks.controlnet_maisi import ControlNetMaisi
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from monai.inferers import ControlNetLatentDiffusionInferer, LatentDiffusionInferer
from monai.networks.blocks.attention.config import attention_config
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler
from monai.networks.schedulers.rectified_flow import RFlowScheduler

torch.set_num_threads(1)
AUTOENCODER = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 4,
    "num_channels": [32, 32, 32],
    "num_res_blocks": [1, 1, 1],
    "norm_num_groups": 32,
    "norm_eps": 1e-6,
    "attention_levels": [False, False, False],
    "with_encoder_nonlocal_attn": False,
    "with_decoder_nonlocal_attn": False,
    "use_checkpointing": False,
    "use_convtranspose": False,
    "norm_float16": True,
    "num_splits": 2,
    "dim_split": 1,
}
LEVELS = {
    "spatial_dims": 3,
    "in_channels": 4,
    "num_channels": [32, 32, 64, 64],
    "attention_levels": [False, False, True, True],
    "num_head_channels": [0, 0, 32, 32],
    "num_res_blocks": 1,
    "use_flash_attention": True,
}
REGIONS = {"include_top_region_index_input": True, "include_bottom_region_index_input": True}
# the first release of MAISI's bundle, trained with DDPM, and the second, with rectified flow
DDPM_UNET = {**LEVELS, **REGIONS, "out_channels": 4, "include_spacing_input": True}
RFLOW_OPTIONS = {"num_class_embeds": 128, "resblock_updown": True, "include_fc": True}
RFLOW_UNET = {**LEVELS, **RFLOW_OPTIONS, "out_channels": 4, "include_spacing_input": True}
CONTROL = {**LEVELS, "conditioning_embedding_in_channels": 8}
SCALE = 1.1
BATCH, LATENT, IMAGE = 2, (2, 4, 8, 8, 8), (2, 1, 32, 32, 32)
REGION_TENSORS = {
    "top_region_index_tensor": torch.eye(4)[:BATCH],
    "bottom_region_index_tensor": torch.eye(4)[-BATCH:],
}
SPACING = {"spacing_tensor": torch.full((BATCH, 3), 150.0)}
LABELS = {"class_labels": torch.tensor([1, 7])}

# options of the U-Net, the ControlNet and how they are called
BUNDLES = {
    "ddpm": (DDPM_UNET, CONTROL, {**REGION_TENSORS, **SPACING}, {}),
    "rflow": (RFLOW_UNET, {**CONTROL, **RFLOW_OPTIONS}, {**LABELS, **SPACING}, LABELS),
}
SCHEDULERS = {
    "ddpm": lambda: DDPMScheduler(
        num_train_timesteps=1000, beta_start=0.0015, beta_end=0.0195, schedule="scaled_linear_beta", clip_sample=False
    ),
    "ddim": lambda: DDIMScheduler(
        num_train_timesteps=1000, beta_start=0.0015, beta_end=0.0195, schedule="scaled_linear_beta", clip_sample=False
    ),
    "rflow": lambda: RFlowScheduler(
        num_train_timesteps=1000,
        use_discrete_timesteps=False,
        use_timestep_transform=True,
        sample_method="uniform",
        scale=1.4,
    ),
}
TEST_CASES = [(f"{bundle}_bundle_{name}", bundle, name) for bundle in BUNDLES for name in SCHEDULERS]


def scheduler_for_sampling(name: str, steps: int = 2):
    """A scheduler with a few steps set."""
    scheduler = SCHEDULERS[name]()
    if name == "rflow":
        scheduler.set_timesteps(num_inference_steps=steps, input_img_size_numel=8**3)
    else:
        scheduler.set_timesteps(num_inference_steps=steps)
    return scheduler


def one(conditions: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The conditions of one image: a sampler of MONAI gives one time step, for whatever batch."""
    return {name: tensor[:1] for name, tensor in conditions.items()}


def training_timesteps(scheduler, latent: torch.Tensor) -> torch.Tensor:
    if isinstance(scheduler, RFlowScheduler):
        return scheduler.sample_timesteps(latent)
    return torch.randint(0, scheduler.num_train_timesteps, (latent.shape[0],)).long()


class TestMaisiUsage(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        torch.manual_seed(0)
        cls.autoencoder = AutoencoderKlMaisi(**AUTOENCODER).eval()

    def setUp(self):
        torch.manual_seed(1)
        self.image, self.noise = torch.rand(IMAGE), torch.randn(LATENT)
        self.mask = torch.randint(0, 2, (BATCH, 8, *IMAGE[2:])).float()

    def assert_learns(self, loss: torch.Tensor, net: nn.Module) -> None:
        """One step of the optimizer changes the weights, and every weight has a finite gradient."""
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        before = [parameter.detach().clone() for parameter in net.parameters()]
        loss.backward()
        for name, parameter in net.named_parameters():
            self.assertIsNotNone(parameter.grad, name)
            self.assertTrue(parameter.grad.isfinite().all(), name)
        optimizer.step()
        self.assertTrue(any((a != b).any() for a, b in zip(before, net.parameters())))

    def assert_image(self, image: torch.Tensor, size: tuple[int, ...] = IMAGE[2:]) -> None:
        self.assertEqual(tuple(image.shape), (1, 1, *size))
        self.assertTrue(image.isfinite().all())
        self.assertGreater(float(image.float().std()), 0)

    @parameterized.expand(TEST_CASES)
    def test_training_step(self, _, bundle, name):
        options, _, conditions, _ = BUNDLES[bundle]
        unet, scheduler = DiffusionModelUNetMaisi(**options), SCHEDULERS[name]()
        inferer = LatentDiffusionInferer(scheduler, scale_factor=SCALE)
        steps = training_timesteps(scheduler, self.noise)
        found = inferer(self.image, self.autoencoder, partial(unet, **conditions), self.noise, steps)
        self.assertEqual(tuple(found.shape), LATENT)
        self.assert_learns(F.l1_loss(found, self.noise), unet)

    @parameterized.expand(TEST_CASES)
    def test_sampling(self, _, bundle, name):
        options, _, conditions, _ = BUNDLES[bundle]
        unet, scheduler = DiffusionModelUNetMaisi(**options).eval(), scheduler_for_sampling(name)
        inferer = LatentDiffusionInferer(scheduler, scale_factor=SCALE)
        net = partial(unet, **one(conditions))
        self.assert_image(inferer.sample(self.noise[:1], self.autoencoder, net, scheduler, verbose=False))

    @parameterized.expand(TEST_CASES)
    def test_control_training_step(self, _, bundle, name):
        options, control_options, conditions, labels = BUNDLES[bundle]
        unet, scheduler = DiffusionModelUNetMaisi(**options).requires_grad_(False), SCHEDULERS[name]()
        nn.init.normal_(unet.out[2].conv.weight)  # zero at first, so that nothing would reach the ControlNet
        control = ControlNetMaisi(**control_options, conditioning_embedding_num_channels=[8])
        inferer = ControlNetLatentDiffusionInferer(scheduler, scale_factor=SCALE)
        steps = training_timesteps(scheduler, self.noise)
        found = inferer(
            self.image,
            self.autoencoder,
            partial(unet, **conditions),
            partial(control, **labels),
            self.noise,
            steps,
            self.mask,
        )
        self.assert_learns(F.l1_loss(found, self.noise), control)

    @parameterized.expand(TEST_CASES)
    def test_control_sampling(self, _, bundle, name):
        options, control_options, conditions, labels = BUNDLES[bundle]
        unet, scheduler = DiffusionModelUNetMaisi(**options).eval(), scheduler_for_sampling(name)
        control = ControlNetMaisi(**control_options, conditioning_embedding_num_channels=[8]).eval()
        inferer = ControlNetLatentDiffusionInferer(scheduler, scale_factor=SCALE)
        net, control = partial(unet, **one(conditions)), partial(control, **one(labels))
        noise, mask = self.noise[:1], self.mask[:1]
        image = inferer.sample(noise, self.autoencoder, net, control, mask, scheduler, verbose=False)
        self.assert_image(image)

    @parameterized.expand([(bundle,) for bundle in BUNDLES])
    def test_sampling_loop_of_the_bundle(self, bundle):
        """A mask of the image's size goes through the ControlNet as published, which brings it to the latent's."""
        options, control_options, conditions, labels = BUNDLES[bundle]
        unet, scheduler = DiffusionModelUNetMaisi(**options).eval(), scheduler_for_sampling(bundle)
        control = ControlNetMaisi(**control_options, conditioning_embedding_num_channels=[8, 32, 64]).eval()
        latent = self.noise[:1]
        following = [*scheduler.timesteps[1:], torch.tensor(0)]
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            for step, next_step in zip(scheduler.timesteps, following):
                steps = torch.full((1,), float(step))
                down, middle = control(latent, steps, self.mask[:1], **one(labels))
                found = unet(
                    x=latent,
                    timesteps=steps,
                    down_block_additional_residuals=down,
                    mid_block_additional_residual=middle,
                    **one(conditions),
                )
                further = (next_step,) if bundle == "rflow" else ()
                latent, _ = scheduler.step(found, step, latent, *further)
            corner = latent[:, :, :4, :4, :4]  # bfloat16 is slow on most CPUs
            image = self.autoencoder.decode_stage_2_outputs(corner / SCALE)
        self.assert_image(image, (16, 16, 16))

    def test_residuals_stay_as_they_are(self):
        unet = DiffusionModelUNetMaisi(**DDPM_UNET).eval()
        control = ControlNetMaisi(**CONTROL, conditioning_embedding_num_channels=[8]).eval()
        steps = torch.tensor([3, 500])
        with torch.no_grad():
            down, middle = control(self.noise, steps, F.interpolate(self.mask, LATENT[2:]))
            before = [residual.clone() for residual in [*down, middle]]
            unet(self.noise, steps, None, None, down, middle, **REGION_TENSORS, **SPACING)
        for residual, expected in zip([*down, middle], before):
            self.assertTrue(torch.equal(residual, expected))

    @parameterized.expand([("published", {}), ("save_mem_off", {"save_mem": False}), ("one_split", {"num_splits": 1})])
    def test_autoencoder_training_step(self, _, options):
        autoencoder = AutoencoderKlMaisi(**{**AUTOENCODER, **options})
        reconstruction, mean, sigma = autoencoder(self.image)
        divergence = 0.5 * (mean.pow(2) + sigma.pow(2) - sigma.pow(2).log() - 1).mean()
        self.assertEqual(tuple(reconstruction.shape), IMAGE)
        self.assert_learns(F.l1_loss(reconstruction.float(), self.image) + 1e-3 * divergence, autoencoder)

    @parameterized.expand([("norm_float16", True), ("norm_float32", False)])
    def test_splitting_and_saving_memory_change_no_numbers(self, _, norm_float16):
        with torch.no_grad():
            plain = AutoencoderKlMaisi(**{**AUTOENCODER, "num_splits": 1, "norm_float16": norm_float16}).eval()
            expected = plain.reconstruct(self.image[:1])
            for options in ({"num_splits": 4}, {"num_splits": 2, "dim_split": 0}, {"save_mem": False}):
                net = AutoencoderKlMaisi(**{**AUTOENCODER, **options, "norm_float16": norm_float16}).eval()
                net.load_state_dict(plain.state_dict())
                found = net.reconstruct(self.image[:1])
                # halves carry 11 bits, and where a volume is cut decides how sums are rounded
                tolerance = 5e-3 if norm_float16 else 1e-5
                self.assertLessEqual(float((found - expected).abs().max()), tolerance * float(expected.abs().max()))

    @parameterized.expand(
        [("unset", {}, False), ("false", {"include_fc": False}, False), ("true", {"include_fc": True}, True)]
    )
    def test_projection_of_published_configurations(self, _, options, projection):
        rows = attention_config(DiffusionModelUNetMaisi(**{**DDPM_UNET, **options}))
        rows += attention_config(ControlNetMaisi(**{**CONTROL, **options}))
        self.assertGreater(len(rows), 3)
        self.assertEqual({row["projection"] for row in rows}, {projection})
        self.assertEqual({row["head_width"] for row in rows}, {32})


if __name__ == "__main__":
    unittest.main()
