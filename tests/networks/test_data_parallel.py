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
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn as nn
from parameterized import parameterized
from torch.utils.checkpoint import checkpoint

from monai.networks.layers.vector_quantizer import EMAQuantizer
from monai.networks.nets import (
    DecoderOnlyTransformer,
    DiffusionModelEncoder,
    MaskedAutoEncoderViT,
    SPADEDiffusionModelUNet,
    ViTAutoEnc,
)
from monai.networks.state_dict.sharded import load_into_sharded
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


# what networks draw in training, where they can
DRAWN: dict[str, dict[str, Any]] = {
    **{name: {"dropout_rate": 0.3} for name in ("vit", "vitautoenc", "unetr", "mae")},
    "decoder": {"embedding_dropout_rate": 0.3},
    "unet": {"with_conditioning": True, "cross_attention_dim": 8, "dropout_cattn": 0.3},
    "unet_maisi": {"with_conditioning": True, "cross_attention_dim": 8, "dropout_cattn": 0.3},
}
# how a network recomputes activations itself, and which of its parts do
RECOMPUTING: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "autoencoder": ({"use_checkpoint": True}, ("encoder", "decoder")),
    "vqvae": ({"use_checkpointing": True}, ("encoder", "decoder")),
    "autoencoder_maisi": ({"use_checkpointing": True}, ("encoder", "decoder")),
    "controlnet_maisi": ({"use_checkpointing": True}, ("controlnet_cond_embedding",)),
}


def built(name: str, **options: Any) -> nn.Module:
    """A network in float64, the same in every process; the entries of a codebook were used before."""
    net = randomized(ROWS[name][0](**options))
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


def trained(net: nn.Module, name: str, ranks: range) -> torch.Tensor:
    """Some steps on the data of ranks, and their losses."""
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=RATE), []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = mean_loss(net, name, step, ranks)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def of_one_process(name: str, **options: Any) -> dict[str, torch.Tensor]:
    """The state after training on the data of all ranks, with the losses."""
    net = built(name, **options)
    for module in net.modules():
        if isinstance(module, EMAQuantizer):
            module.ddp_sync = False
    before = copy.deepcopy(net.state_dict())
    losses = trained(net, name, range(RANKS))
    unused = [key for key, parameter in net.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert not unused, f"no output depends on {unused}"
    assert states_apart(net.state_dict(), before) > 1e-4, "it learned nothing"
    return {**net.state_dict(), "losses": losses}


def trained_apart(net: nn.Module, name: str, want: dict[str, torch.Tensor]) -> float:
    """How far a network that this rank trains on its data is from one process, weights and losses."""
    rank = dist.get_rank()
    losses = trained(net, name, range(rank, rank + 1))
    dist.all_reduce(losses)
    inside = net.module if isinstance(net, nn.parallel.DistributedDataParallel) else net
    return states_apart({**full(inside), "losses": losses / RANKS}, want)


def sharded(net: nn.Module, mesh: Any, blocks: Collection[nn.Module] = ()) -> nn.Module:
    """The network with its attention blocks, other blocks of it, and what is left, spread over the ranks."""
    from torch.distributed.fsdp import fully_shard

    modules = [module for module in net.modules() if hasattr(module, "out_proj") or module in blocks]
    for module in reversed(modules):  # inner ones first
        fully_shard(module, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def spread_over(net: nn.Module, mesh: Any, way: str, blocks: Collection[nn.Module] = ()) -> nn.Module:
    """The network for training by all ranks: "ddp", "fsdp", or "fsdp of blocks", which are gathered one by one."""
    if way == "ddp":
        return nn.parallel.DistributedDataParallel(net)
    return sharded(net, mesh, blocks if way == "fsdp of blocks" else ())


def told(apart: dict[str, float]) -> str:
    return str({key: value for key, value in apart.items() if not value <= 1e-10} or "equal")


def checked(mesh: Any, name: str) -> str:
    """How far DDP, FSDP2 and a checkpoint of it are from one process."""
    import torch.distributed.checkpoint as dcp

    want = of_one_process(name)
    spread = sharded(built(name), mesh)
    apart = {
        "ddp": trained_apart(nn.parallel.DistributedDataParallel(built(name)), name, want),
        "fsdp": trained_apart(spread, name, want),
    }

    folder: list[Any] = [tempfile.mkdtemp() if mesh.get_local_rank() == 0 else None]
    dist.broadcast_object_list(folder)
    dcp.save({"net": spread.state_dict()}, checkpoint_id=folder[0])
    again = sharded(ROWS[name][0]().double(), mesh)
    state = {"net": again.state_dict()}
    dcp.load(state, checkpoint_id=folder[0])
    again.load_state_dict(state["net"])
    apart["dcp"] = states_apart(full(again), full(spread))
    return told(apart)


class Recomputed:
    """The forward of a module whose activations the backward pass computes again, and how often it was computed."""

    def __init__(self, module: nn.Module):
        self.module, self.compute = module, module.forward
        self.asked = self.computed = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.asked += 1
        return checkpoint(self.computed_once_more, *args, use_reentrant=False, **kwargs)

    def computed_once_more(self, *args: Any, **kwargs: Any) -> Any:
        self.computed += 1
        return self.compute(*args, **kwargs)


def recompute(module: nn.Module) -> Iterator[Recomputed]:
    """Let the backward pass compute the activations of a network's blocks again."""
    for child in module.children():
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and any(True for _ in child.parameters()):
            child.forward = Recomputed(child)  # type: ignore[method-assign]
            yield child.forward
        else:
            yield from recompute(child)


def recomputed_blocks(mesh: Any, name: str) -> str:
    """How far networks whose blocks are recomputed are from one process that keeps activations."""
    options = DRAWN.get(name, {})
    want, apart = of_one_process(name, **options), {}
    for way in ("ddp", "fsdp", "fsdp of blocks"):
        net = built(name, **options)
        blocks = list(recompute(net))
        apart[way] = trained_apart(spread_over(net, mesh, way, {block.module for block in blocks}), name, want)
        asked = [block for block in blocks if block.asked]
        assert len(asked) > 1 and all(block.computed >= 2 * STEPS for block in asked), "nothing was recomputed"
    return told(apart)


def recomputed_by_itself(mesh: Any, name: str) -> str:
    """The same for networks that recompute activations themselves."""
    options, parts = RECOMPUTING[name]
    want, apart = of_one_process(name, **dict.fromkeys(options, False)), {}
    for way in ("ddp", "fsdp"):
        net, calls = built(name, **options), dict.fromkeys(parts, 0)

        def count(part: str, *_: Any, calls: dict[str, int] = calls) -> None:
            calls[part] += 1

        for part in parts:
            net.get_submodule(part).register_forward_pre_hook(partial(count, part))
        apart[way] = trained_apart(spread_over(net, mesh, way), name, want)
        assert set(calls.values()) == {2 * STEPS}, calls
    return told(apart)


def codebook_of(net: nn.Module) -> EMAQuantizer:
    return next(module for module in net.modules() if isinstance(module, EMAQuantizer))


def codebook_left_out(net: nn.Module, mesh: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    return fully_shard(net, mesh=mesh, ignored_params={codebook_of(net).embedding.weight})


def codebook_by_itself(net: nn.Module, mesh: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    fully_shard(codebook_of(net), mesh=mesh)
    return fully_shard(net, mesh=mesh, reshard_after_forward=False)


def codebook_replicated(net: nn.Module, mesh: Any) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(net, mesh=init_device_mesh("cpu", (RANKS, 1), mesh_dim_names=("replicate", "shard")))


def codebook_compiled(net: nn.Module, mesh: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    net.quantizer.compile(backend="eager")  # type: ignore[operator, union-attr]
    return fully_shard(net, mesh=mesh)


def codebook_from_meta(net: nn.Module, mesh: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    empty = fully_shard(copy.deepcopy(net).to("meta"), mesh=mesh)
    load_into_sharded(empty.to_empty(device="cpu"), net.state_dict())
    return empty


def learned(mesh: Any, shard: Callable[[nn.Module, Any], nn.Module]) -> str:
    """How far a VQVAE with a codebook of an odd size is from one process, by a way of sharding it."""
    want = of_one_process("vqvae", num_embeddings=7)
    net = shard(built("vqvae", num_embeddings=7), mesh)
    apart = {"trained": trained_apart(net, "vqvae", want)}
    assert codebook_of(net).embedding.shard is None
    return told(apart)


def learned_without_gradients(mesh: Any) -> str:
    """The same in calls after which FSDP2 does not shard again, until the state is asked for."""
    rank, whole, net = mesh.get_local_rank(), built("vqvae"), sharded(built("vqvae"), mesh)
    codebook_of(whole).ddp_sync = False
    with torch.no_grad():
        for step in range(STEPS):
            mean_loss(net, "vqvae", step, range(rank, rank + 1))
            mean_loss(whole, "vqvae", step, range(RANKS))
    return told({"state": states_apart(full(net), whole.state_dict())})


def learned_in_half(mesh: Any) -> str:
    """Entries of float32 are gathered in bfloat16, and still learn in float32; all processes agree on them."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    net = built("vqvae").float()
    book = codebook_of(net)
    fully_shard(net, mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    loss_of(net(*image(mesh.get_local_rank()))).backward()
    sizes = book.ema_cluster_size
    smoothed = (sizes + book.epsilon) / (sizes.sum() + book.num_embeddings * book.epsilon) * sizes.sum()
    want = book.ema_w / smoothed[:, None]
    assert not torch.allclose(want, want.bfloat16().float(), rtol=1e-6)
    entries = full(net)["quantizer.quantizer.embedding.weight"]
    return "equal" if torch.allclose(entries, want, rtol=1e-6) else f"{entries} instead of {want}"


def refused(mesh: Any) -> str:
    """What a codebook says of which each process would learn another one, and whether it is as it was."""
    net = built("vqvae", ddp_sync=False)
    before = copy.deepcopy(net.state_dict())
    try:
        trained(sharded(net, mesh), "vqvae", range(1))
    except RuntimeError as error:
        assert states_apart(full(net), before) == 0
        return str(error)
    return "not refused"


CODEBOOKS = (codebook_left_out, codebook_by_itself, codebook_replicated, codebook_compiled, codebook_from_meta)
CHECKS: dict[str, Callable[..., str]] = {
    **{name: partial(checked, name=name) for name in ROWS},
    **{f"{name}_recomputed": partial(recomputed_blocks, name=name) for name in ROWS},
    **{f"{name}_recomputing": partial(recomputed_by_itself, name=name) for name in RECOMPUTING},
    **{each.__name__: partial(learned, shard=each) for each in CODEBOOKS},
    "codebook_without_gradients": learned_without_gradients,
    "codebook_in_half": learned_in_half,
}


@pytest.mark.distributed
@pytest.mark.grid
@unittest.skipUnless(dist.is_available() and dist.is_gloo_available(), "this torch is built without gloo")
class TestDataParallel(unittest.TestCase):
    maxDiff = None
    said: list[dict[str, Any]]

    @classmethod
    def setUpClass(cls):
        cls.said = run_checks(RANKS, {**CHECKS, "refused": refused}, limit=900)

    @parameterized.expand([(name,) for name in CHECKS])
    def test_equals_one_process(self, name):
        for said in self.said:
            self.assertEqual(said[name], "equal")

    def test_another_codebook_in_each_process(self):
        for said in self.said:
            self.assertRegex(said["refused"], "2 processes.*ddp_sync=True.*ignored_params")


if __name__ == "__main__":
    unittest.main()
