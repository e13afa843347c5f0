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

"""Every network that the fork replaces, trained by two processes under DDP and FSDP2, against one process."""

from __future__ import annotations

import copy
import tempfile
import unittest
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn as nn
from parameterized import parameterized

from monai.networks.layers.vector_quantizer import EMAQuantizer
from monai.networks.nets import (
    DecoderOnlyTransformer,
    DiffusionModelEncoder,
    MaskedAutoEncoderViT,
    SPADEDiffusionModelUNet,
    ViTAutoEnc,
)
from tests.networks.volumes import split_cases as cases
from tests.networks.volumes.split_cases import at_time, numbers, randomized
from tests.networks.volumes.split_ranks import run_checks
from tests.networks.volumes.test_split_training import full, states_apart

RANKS, STEPS, RATE = 2, 2, 0.01
IMAGE = (2, 1, 16, 16)


def image(seed: int) -> tuple[torch.Tensor, ...]:
    return (numbers(*IMAGE, seed=seed),)


def image_and_time(seed: int) -> tuple[torch.Tensor, ...]:
    x = numbers(*IMAGE, seed=seed)
    return x, at_time(x)


def image_and_labels(seed: int) -> tuple[torch.Tensor, ...]:
    return numbers(*IMAGE, seed=seed), numbers(2, 3, 16, 16, seed=seed + 1)


def image_time_and_labels(seed: int) -> tuple[torch.Tensor, ...]:
    return (*image_and_time(seed), numbers(2, 3, 16, 16, seed=seed + 1))


def control(seed: int, zoom: int) -> tuple[torch.Tensor, ...]:
    return (*image_and_time(seed), numbers(2, 1, 16 * zoom, 16 * zoom, seed=seed + 1))


def tokens(seed: int) -> tuple[torch.Tensor, ...]:
    x = torch.randint(0, 7, (2, 6), generator=torch.Generator().manual_seed(seed))
    return x, numbers(2, 5, 24, seed=seed)


def large_image(seed: int) -> tuple[torch.Tensor, ...]:
    return (numbers(2, 1, 32, 32, seed=seed),)


VIT: dict[str, Any] = {**cases.VITS, "spatial_dims": 2, "patch_size": 4}
Row = tuple[Callable[[], nn.Module], Callable[[int], tuple[torch.Tensor, ...]]]
ROWS: dict[str, Row] = {
    "vit": (partial(cases.vit, img_size=(16, 16), classification=True), image),
    "vitautoenc": (partial(ViTAutoEnc, **VIT, img_size=16, num_layers=4, deconv_chns=4), image),
    "unetr": (
        partial(cases.UNETR, **cases.VITS, out_channels=2, img_size=32, feature_size=4, spatial_dims=2),
        large_image,
    ),
    "mae": (
        partial(MaskedAutoEncoderViT, **VIT, img_size=16, num_layers=2, decoder_hidden_size=12, decoder_num_heads=2),
        image,
    ),
    "decoder": (partial(DecoderOnlyTransformer, 7, 9, 24, 2, 4, with_cross_attention=True), tokens),
    "autoencoder": (cases.kl, image),
    "autoencoder_spade": (cases.spade, image_and_labels),
    "vqvae": (cases.vqvae, image),
    "unet": (cases.unet, image_and_time),
    "unet_spade": (
        partial(SPADEDiffusionModelUNet, 2, label_nc=3, **cases.UNET, channels=(4, 8), spade_intermediate_channels=4),
        image_time_and_labels,
    ),
    "controlnet": (
        partial(cases.ControlNet, 2, **cases.CONTROL, channels=(4, 8), conditioning_embedding_num_channels=(4, 4, 4)),
        partial(control, zoom=4),
    ),
    "encoder": (partial(DiffusionModelEncoder, 2, **cases.UNET, channels=(4, 8), input_shape=(16, 16)), image_and_time),
    "autoencoder_maisi": (partial(cases.maisi, 2, norm_float16=False), image),
    "unet_maisi": (
        partial(cases.unet_maisi, 2, include_spacing_input=False, include_top_region_index_input=False),
        image_and_time,
    ),
    "controlnet_maisi": (
        partial(
            cases.ControlNetMaisi, 2, **cases.CONTROL, num_channels=(4, 8), conditioning_embedding_num_channels=(4, 4)
        ),
        partial(control, zoom=2),
    ),
}


def built(name: str) -> nn.Module:
    """A network in float64, the same in every process; the entries of a codebook were used before."""
    net = randomized(ROWS[name][0]())
    for module in net.modules():
        if isinstance(module, EMAQuantizer):
            module.ema_cluster_size.fill_(1)
            module.ema_w.copy_(module.embedding.weight.detach())
    return net


def loss_of(output: Any) -> torch.Tensor:
    """The mean squares of all tensors of an output but masks; a loss, which is one number, stays as it is."""
    if isinstance(output, torch.Tensor):
        if not output.is_floating_point():
            return torch.zeros((), dtype=cases.DTYPE)
        return output.mean() if output.numel() == 1 else output.square().mean()
    return torch.stack([loss_of(part) for part in output]).sum()


def mean_loss(net: nn.Module, name: str, step: int, ranks: range) -> torch.Tensor:
    """The mean of the losses on the data of ranks; what a network draws is that rank's, too."""
    seeds = [10 * step + 100 * rank for rank in ranks]
    inputs = [ROWS[name][1](seed) for seed in seeds]
    if name == "vqvae":  # its codebook sees the data of all ranks at once
        return loss_of(net(*map(torch.cat, zip(*inputs))))
    losses = []
    for seed, of_rank in zip(seeds, inputs):
        torch.manual_seed(seed)
        losses.append(loss_of(net(*of_rank)))
    return torch.stack(losses).mean()


def trained(net: nn.Module, name: str, ranks: range) -> None:
    """Some steps on the data of ranks."""
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    for step in range(STEPS):
        optimizer.zero_grad()
        mean_loss(net, name, step, ranks).backward()
        optimizer.step()


def of_one_process(name: str) -> dict[str, torch.Tensor]:
    """The state after training on the data of all ranks."""
    net = built(name)
    for module in net.modules():
        if isinstance(module, EMAQuantizer):
            module.ddp_sync = False
    before = copy.deepcopy(net.state_dict())
    trained(net, name, range(RANKS))
    unused = [key for key, parameter in net.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert not unused, f"no output depends on {unused}"
    assert states_apart(net.state_dict(), before) > 1e-4, "it learned nothing"
    return net.state_dict()


def sharded(net: nn.Module, mesh: Any) -> nn.Module:
    """The network with its attention blocks, and what is left, spread over the ranks."""
    from torch.distributed.fsdp import fully_shard

    for module in reversed([module for module in net.modules() if hasattr(module, "out_proj")]):
        fully_shard(module, mesh=mesh)
    # a codebook learns in its forward pass, and what is written there into a shard's gathered copy is lost
    codebooks = {module.embedding.weight for module in net.modules() if isinstance(module, EMAQuantizer)}
    return fully_shard(net, mesh=mesh, ignored_params=codebooks)


def checked(mesh: Any, name: str) -> str:
    """How far DDP, FSDP2 and a checkpoint of it are from one process."""
    import torch.distributed.checkpoint as dcp

    rank, want = mesh.get_local_rank(), of_one_process(name)
    net = built(name)
    trained(nn.parallel.DistributedDataParallel(net), name, range(rank, rank + 1))
    apart = {"ddp": states_apart(net.state_dict(), want)}

    spread = sharded(built(name), mesh)
    trained(spread, name, range(rank, rank + 1))
    apart["fsdp"] = states_apart(full(spread), want)

    folder: list[Any] = [tempfile.mkdtemp() if rank == 0 else None]
    dist.broadcast_object_list(folder)
    dcp.save({"net": spread.state_dict()}, checkpoint_id=folder[0])
    again = sharded(ROWS[name][0]().double(), mesh)
    state = {"net": again.state_dict()}
    dcp.load(state, checkpoint_id=folder[0])
    again.load_state_dict(state["net"])
    apart["dcp"] = states_apart(full(again), full(spread))
    return str({key: value for key, value in apart.items() if not value <= 1e-10} or "equal")


@pytest.mark.distributed
@pytest.mark.grid
@unittest.skipUnless(dist.is_available() and dist.is_gloo_available(), "this torch is built without gloo")
class TestDataParallel(unittest.TestCase):
    said: list[dict[str, Any]]

    @classmethod
    def setUpClass(cls):
        cls.said = run_checks(RANKS, {name: partial(checked, name=name) for name in ROWS})

    @parameterized.expand([(name,) for name in ROWS])
    def test_equals_one_process(self, name):
        for said in self.said:
            self.assertEqual(said[name], "equal")


if __name__ == "__main__":
    unittest.main()
