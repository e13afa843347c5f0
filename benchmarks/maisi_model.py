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
MAISI's three networks as NV-Generate-CTMR configures them, with random weights, and its sampling with a ControlNet.

The options are those of its ``config_network_rflow.json`` and ``config_network_ddpm.json``, except that channels may be
fewer, and that norms compute in float32: float16 norms of two kernels differ by 1e-3 on their own. The same module
works in the fork's process and in the release's.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn as nn

from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.apps.generation.maisi.networks.controlnet_maisi import ControlNetMaisi
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from monai.networks.schedulers import DDPMScheduler, RFlowScheduler

__all__ = ["STRIDE", "Inputs", "MaisiTask", "Networks", "autoencoder", "drawn_latent", "inputs", "networks", "sample"]

STRIDE = 4
"""How many voxels of an image lie beside one of its latent, along an axis."""
LATENT_CHANNELS, MASK_CHANNELS = 4, 8
SCHEDULERS = ("rflow", "ddpm")
CT, MODALITIES = 1, 128
HUNDRED = 1e2
"""NV-Generate-CTMR hands spacings and body regions to the network a hundredfold."""
NETWORK_STRIDE = 32
"""Images have a multiple of it along every axis: 4 of the autoencoder, 8 of the diffusion model."""


@dataclass(frozen=True)
class MaisiTask:
    """
    What to sample and decode.

    Args:
        scheduler: "rflow" or "ddpm", which configuration is built.
        size: voxels of the image along every axis.
        narrow: by how much channels, groups of norms and widths of heads are divided; 1 is as published.
        steps: of the sampling; the published ones are 30 for "rflow" and 1000 for "ddpm".
        memory: budget of a streamed decode in bytes.
        sampled: whether the latent is sampled; otherwise it is drawn.

    Raises:
        ValueError: if there is no such network.
    """

    scheduler: str = "rflow"
    size: int = 128
    narrow: int = 8
    steps: int = 4
    memory: int = 64 * 2**20
    sampled: bool = True

    def __post_init__(self) -> None:
        if self.scheduler not in SCHEDULERS:
            raise ValueError(f"scheduler={self.scheduler!r} should be one of {', '.join(SCHEDULERS)}.")
        if self.size < NETWORK_STRIDE or self.size % NETWORK_STRIDE:
            raise ValueError(f"size={self.size} should be a multiple of {NETWORK_STRIDE}, the networks' stride.")
        if self.narrow not in (1, 2, 4, 8):
            raise ValueError(f"narrow={self.narrow} should be 1, 2, 4 or 8: the first layers have 8 channels.")
        if self.steps < 1 or self.memory < 1:
            raise ValueError(f"steps={self.steps} and memory={self.memory} should be positive.")

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the whole latent, (1, C, sizes)."""
        return (1, LATENT_CHANNELS, *[self.size // STRIDE] * 3)


@dataclass(frozen=True)
class Networks:
    """A diffusion model, its ControlNet and its scheduler."""

    unet: nn.Module = field(repr=False)
    control: nn.Module = field(repr=False)
    scheduler: Any


@dataclass(frozen=True)
class Inputs:
    """
    What a sampling starts from.

    Args:
        noise: (1, 4, sizes of the latent).
        mask: the bits of a label map, (1, 8, sizes of the image).
        conditions: further arguments of the diffusion model by name, the same for every slab.
    """

    noise: torch.Tensor = field(repr=False)
    mask: torch.Tensor = field(repr=False)
    conditions: dict[str, torch.Tensor]


def autoencoder(task: MaisiTask) -> nn.Module:
    """MAISI's autoencoder, without attention, whose decoder computes convolutions in pieces."""
    net = AutoencoderKlMaisi(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        latent_channels=LATENT_CHANNELS,
        num_channels=_narrowed((64, 128, 256), task),
        num_res_blocks=(2, 2, 2),
        norm_num_groups=32 // task.narrow,
        norm_eps=1e-6,
        attention_levels=(False, False, False),
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
        use_checkpointing=False,
        use_convtranspose=False,
        norm_float16=False,
        num_splits=4 if task.scheduler == "rflow" else 8,
        dim_split=1,
    )
    return _randomized(net)


def networks(task: MaisiTask) -> Networks:
    """The diffusion model, its ControlNet and its scheduler, ready to sample."""
    rflow = task.scheduler == "rflow"
    both: dict[str, Any] = {
        "spatial_dims": 3,
        "in_channels": LATENT_CHANNELS,
        "num_channels": _narrowed((64, 128, 256, 512), task),
        "attention_levels": (False, False, True, True),
        "num_head_channels": (0, 0, *_narrowed((32, 32), task)),
        "num_res_blocks": 2,
        "norm_num_groups": 32 // task.narrow,
        "use_flash_attention": torch.cuda.is_available(),  # as published, but the release refuses it on a CPU
        "num_class_embeds": MODALITIES if rflow else None,
        "resblock_updown": rflow,
        "include_fc": rflow,
    }
    unet = DiffusionModelUNetMaisi(
        out_channels=LATENT_CHANNELS,
        include_spacing_input=True,
        include_top_region_index_input=not rflow,
        include_bottom_region_index_input=not rflow,
        **both,
    )
    control = ControlNetMaisi(
        conditioning_embedding_in_channels=MASK_CHANNELS,
        conditioning_embedding_num_channels=_narrowed((8, 32, 64), task),
        **both,
    )
    return Networks(_randomized(unet), _randomized(control), _scheduler(task))


def drawn_latent(task: MaisiTask) -> torch.Tensor:
    """The whole noise of a task, (1, 4, sizes), from one seed."""
    return torch.randn(task.latent_shape, generator=torch.Generator().manual_seed(1))


def inputs(task: MaisiTask) -> Inputs:
    """The noise of the whole volume, a mask of it, and what else the diffusion model is told."""
    conditions = {"spacing_tensor": torch.tensor([[1.0, 1.0, 1.5]]) * HUNDRED}
    if task.scheduler == "rflow":
        conditions["class_labels"] = torch.tensor([CT])
    else:
        top, bottom = torch.eye(4)[1:2], torch.eye(4)[2:3]
        conditions.update(top_region_index_tensor=top * HUNDRED, bottom_region_index_tensor=bottom * HUNDRED)
    return Inputs(drawn_latent(task), _mask(task.size), conditions)


@torch.no_grad()
def sample(task: MaisiTask, nets: Networks, given: Inputs, volume: Any = None) -> torch.Tensor:
    """
    Sample a latent as NV-Generate-CTMR does.

    Args:
        task: what to sample; its size is that of the whole volume.
        nets: the networks, split if ``volume`` is given.
        given: the inputs, a slab of the noise and of the mask if ``volume`` is given.
        volume: how the diffusion model is split, or None in one process.

    Returns:
        the latent, or this rank's slab of it
    """
    scheduler, latent = nets.scheduler, given.noise
    generator = torch.Generator().manual_seed(2)
    if isinstance(scheduler, RFlowScheduler):
        # of the whole latent: a slab's own size would give other time steps
        scheduler.set_timesteps(task.steps, input_img_size_numel=math.prod(task.latent_shape[2:]))
    else:
        scheduler.set_timesteps(task.steps)
    times = scheduler.timesteps
    labels = {name: value for name, value in given.conditions.items() if name == "class_labels"}
    for time, after in zip(times, torch.cat((times[1:], times.new_zeros(1)))):
        now = torch.tensor([float(time)])
        residuals, residual = nets.control(latent, now, controlnet_cond=given.mask, **labels)
        predicted = nets.unet(
            latent,
            now,
            down_block_additional_residuals=residuals,
            mid_block_additional_residual=residual,
            **given.conditions,
        )
        if isinstance(scheduler, RFlowScheduler):
            latent = scheduler.step(predicted, time, latent, after)[0]
        else:
            latent = _noisy_step(scheduler, predicted, time, latent, generator, volume)
    return latent


def _noisy_step(
    scheduler: DDPMScheduler,
    predicted: torch.Tensor,
    time: torch.Tensor,
    latent: torch.Tensor,
    generator: torch.Generator,
    volume: Any,
) -> torch.Tensor:
    """A step that draws noise of the size that it sees: of a slab, another noise than one process draws."""
    if volume is None:
        return scheduler.step(predicted, int(time), latent, generator=generator)[0]
    whole = scheduler.step(volume.gather(predicted), int(time), volume.gather(latent), generator=generator)[0]
    slab: torch.Tensor = volume.scatter(whole)
    return slab


def _scheduler(task: MaisiTask) -> Any:
    """The scheduler of the published configuration."""
    if task.scheduler == "rflow":
        return RFlowScheduler(
            num_train_timesteps=1000,
            use_discrete_timesteps=False,
            use_timestep_transform=True,
            sample_method="uniform",
            scale=1.4,
        )
    options: dict[str, Any] = {"beta_start": 0.0015, "beta_end": 0.0195}
    return DDPMScheduler(num_train_timesteps=1000, schedule="scaled_linear_beta", clip_sample=False, **options)


def _narrowed(channels: tuple[int, ...], task: MaisiTask) -> tuple[int, ...]:
    return tuple(count // task.narrow for count in channels)


def _randomized(net: nn.Module) -> nn.Module:
    """Weights that depend on their names and shapes alone: the same in the fork and the release."""
    for name, weight in net.named_parameters():
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        if weight.dim() == 1:
            weight.data = 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
        else:
            weight.data = noise * weight[0].numel() ** -0.5
    return net.eval().requires_grad_(False)


def _mask(size: int) -> torch.Tensor:
    """The eight bits of a label map: an organ of label 3 inside of a body of label 200, (1, 8, sizes)."""
    axis = torch.linspace(-1, 1, size)
    far = (axis[:, None, None] ** 2 + axis[:, None] ** 2 / 0.6 + axis**2 / 0.8).sqrt()
    labels = torch.where(far < 0.4, 3, torch.where(far < 0.9, 200, 0))
    return torch.stack([(labels >> bit & 1).float() for bit in range(MASK_CHANNELS)])[None]
