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

"""Split networks beside what else training and inference bring: refusals, attention, types, copies, compilers."""

from __future__ import annotations

import copy
import unittest
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.nn as nn
from parameterized import parameterized

from monai.networks.blocks.attention.token_grid import TokenGrid
from monai.networks.blocks.crossattention import CrossAttentionBlock
from monai.networks.blocks.selfattention import SABlock
from monai.networks.schedulers import DDIMScheduler
from monai.networks.volumes import VolumeSplit, split_chunks, split_volume
from tests.networks.volumes.split_cases import at_time, kl, maisi, numbers, randomized, spade, unet, vit, vqvae
from tests.networks.volumes.split_ranks import run_checks


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double() - other.double()).abs().max() / other.double().abs().max().clamp_min(1e-30))


def error_of(call: Any) -> str:
    """What a call says that should raise."""
    try:
        call()
    except (ValueError, RuntimeError, TypeError) as error:
        return str(error)
    return "nothing was raised"


# ---------------------------------------------------------------------------------------------------- refusals


def other_batch(mesh: Any) -> str:
    net = kl()
    volume = split_volume(net, mesh)
    return error_of(lambda: net(torch.zeros(1 + volume.rank, 1, 8, 8)))


def other_type(mesh: Any) -> str:
    net = unet()
    volume = split_volume(net, mesh)
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float64 if volume.rank else torch.float32)
    return error_of(lambda: net(x, at_time(x)))


def other_gradient(mesh: Any) -> str:
    net = kl()
    volume = split_volume(net, mesh)
    return error_of(lambda: net(torch.zeros(1, 1, 8, 8, requires_grad=volume.rank == 0)))


def inside_of_a_stride(mesh: Any) -> str:
    net = kl()
    volume = split_volume(net, mesh)
    return error_of(lambda: net(torch.zeros(1, 1, 7 + 2 * volume.rank, 8)))


def too_few(mesh: Any) -> str:
    volume = split_volume(kl(), mesh)
    return error_of(lambda: volume.scatter(torch.zeros(1, 1, 3, 8)))


def another_segmentation(mesh: Any) -> str:
    net = spade()
    split_volume(net, mesh)
    return error_of(lambda: net.decode(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 7, 8)))


def twice(mesh: Any) -> str:
    net = kl()
    split_volume(net, mesh)
    return error_of(lambda: split_volume(net, mesh))


def scripted(mesh: Any) -> str:
    net = kl()
    split_volume(net, mesh)
    return error_of(lambda: torch.jit.script(net))


def traced(mesh: Any) -> str:
    net = kl()
    split_volume(net, mesh)
    return error_of(lambda: torch.jit.trace(net.encoder, torch.zeros(1, 1, 8, 8)))


def exported(mesh: Any) -> str:
    net = kl()
    split_volume(net, mesh)
    return error_of(lambda: torch.export.export(net.encoder, (torch.zeros(1, 1, 8, 8),)))


def batch_norm_in_training(mesh: Any) -> str:
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)).eval()
    split_volume(net, mesh)
    return error_of(lambda: net.train()(torch.zeros(1, 1, 8, 8)))


class LowRank(nn.Module):
    """An adapter of a user's around a linear layer."""

    works_on_slabs = True

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down, self.up = nn.Linear(base.in_features, 1, False), nn.Linear(1, base.out_features, False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


def changed(mesh: Any, change: Any, build: Any = kl, copies: bool = False) -> str:
    """What a split network says when it is called after a change."""
    net = build()
    volume = split_volume(net, mesh)
    x = volume.scatter(torch.zeros(1, 1, 8, 8))
    if copies:
        net = copy.deepcopy(net)
    change(net)
    with volume.counted() as traffic:
        said = error_of(lambda: net(x))
        assert traffic.calls == 0, traffic
    return said


def put_in(net: Any, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(net.get_submodule(parent), last, module)


def late_layer(mesh: Any) -> str:
    return changed(mesh, lambda net: put_in(net, "decoder.blocks.0.conv", nn.Conv2d(2, 8, 3, padding=1)))


def late_layer_of_a_copy(mesh: Any) -> str:
    return changed(mesh, lambda net: put_in(net, "decoder", kl().decoder), copies=True)


def late_norm(mesh: Any) -> str:
    return changed(mesh, lambda net: put_in(net, "1", nn.GroupNorm(2, 4)), small)


def late_unknown(mesh: Any) -> str:
    return changed(mesh, lambda net: put_in(net, "2", nn.Flatten()), small)


def late_forward(mesh: Any) -> str:
    return changed(mesh, lambda net: setattr(net[2], "forward", lambda x: x.flip(2)), small)


def late_reach(mesh: Any) -> str:
    longer = nn.Conv3d(4, 4, 5, padding=2)
    net = maisi()
    volume = split_volume(net, mesh)
    z = volume.scatter(torch.zeros(1, 2, 8, 4, 4), latent=True)
    name = next(key for key, each in net.decoder.named_modules() if type(each) is nn.Conv3d)
    put_in(net.decoder, name, longer)
    return error_of(lambda: net.decode(z))


def late_half(mesh: Any) -> str:
    """A half without hooks is called by itself: what it gives cannot be gathered."""
    net = vqvae()
    volume = split_volume(net, mesh)
    net.decoder = vqvae().decoder
    return error_of(lambda: volume.gather(net.decode(torch.zeros(1, 3, 4, 4))))


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 1, 3, padding=1))


def late_but_local(mesh: Any) -> float:
    """What changes nothing about slabs may come after the split."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    torch.manual_seed(0)  # the same adapters on all ranks
    net = randomized(unet(with_conditioning=True, cross_attention_dim=5))
    changes = {
        key: LowRank(each).double()
        for key, each in net.named_modules()
        if key.endswith(("to_q", "to_out")) and isinstance(each, nn.Linear)
    }
    assert changes
    whole = copy.deepcopy(net)
    volume = split_volume(net, mesh)
    for each in (net, whole):
        for key, adapter in changes.items():
            state = copy.deepcopy(adapter)
            state.base = each.get_submodule(key)
            put_in(each, key, state)
    nn.utils.parametrizations.weight_norm(net.conv_in.conv)
    net.out[0].register_forward_hook(lambda *_: None)
    net.middle_block.forward = torch.autocast("cpu", enabled=False)(net.middle_block.forward)
    net.down_blocks[0] = checkpoint_wrapper(net.down_blocks[0])
    x = numbers(1, 1, 16, 8)
    context = numbers(1, 3, 5)
    found = []
    for each in (net, copy.deepcopy(net)):
        found.append(
            apart(
                volume.gather(each(volume.scatter(x), at_time(x), context=context)),
                whole(x, at_time(x), context=context),
            )
        )
    return max(found)


def layers_with_neighbors() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 5, padding=2),
        nn.Conv2d(3, 3, 3, stride=2, padding=1),
        nn.ConvTranspose2d(3, 4, 4, stride=2, padding=1),
        nn.AvgPool2d(3, 1, 1),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Conv2d(4, 2, 3, padding="same", dilation=2),
    )


def runs_in_chunks(mesh: Any) -> float:
    """Without gradients, in chunks of one slice and more, for every kind of layer that has neighbors."""
    found = [0.0]
    changed = {"LARGE": 1, "SHORTEST": 1, "POSITIONS": 0, "MORE_WORK": 9.0}
    with torch.no_grad(), mock.patch.multiple(split_chunks, **changed):
        for axis in range(2):
            net = randomized(layers_with_neighbors())
            whole = copy.deepcopy(net)
            volume = split_volume(net, mesh, axis)
            x = numbers(2, 2, 36, 36).to(memory_format=torch.channels_last if axis else torch.contiguous_format)
            found.append(apart(volume.gather(net(volume.scatter(x))), whole(x)))
        for splits in (1, 3):
            net = randomized(maisi(num_splits=splits))
            whole = copy.deepcopy(net)
            volume = split_volume(net, mesh)
            z = numbers(1, 2, 17, 4, 4)
            found.append(apart(volume.gather(net.decode(volume.scatter(z, latent=True))), whole.decode(z)))
    return max(found)


REFUSED = {
    "late_layer": r"decoder.blocks.0.conv .Conv2d. would work on the slab of one rank: put it in first",
    "late_layer_of_a_copy": r"decoder.blocks.0.conv .Conv2d. would work on the slab of one rank",
    "late_norm": r"1 .GroupNorm. would work on the slab",
    "late_unknown": r"2 .Flatten. is not known to work on a part",
    "late_forward": r"2 .SiLU. has another forward than its class",
    "late_reach": "when it was split, and now has Reach.before=2",
    "late_half": "would work on the slab of one rank",
    "other_batch": "rank 1: .2, 1, slab, 8. float32",
    "other_type": "rank 1: .1, 1, slab, 8. float64",
    "other_gradient": "rank 0: .1, 1, slab, 8. float32, with gradient",
    "inside_of_a_stride": "has a stride of 2, but a slab begins at slice 7",
    "too_few": "3 slices along axis 0 are 1 times 2",
    "another_segmentation": "the segmentation has slabs of",
    "twice": "is split already",
    "scripted": "cannot be scripted, traced or exported",
    "traced": "cannot be scripted, traced or exported",
    "exported": "cannot be scripted, traced or exported",
    "batch_norm_in_training": "convert_sync_batchnorm",
}


# ---------------------------------------------------------------------------------------------------- attention


class Tokens(nn.Module):
    """Attention between the positions of an image, by a block that a test brings."""

    works_on_slabs = True

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.block = block

    def token_grids(self) -> dict[str, TokenGrid]:
        return {"block": TokenGrid(holder=self)}

    def forward(self, x: torch.Tensor, **options: Any) -> torch.Tensor:
        h = self.conv(x)
        return self.block(h.flatten(2).transpose(1, 2), **options).transpose(1, 2).reshape(h.shape)


HEIGHT, WIDTH = 5, 4
COUNT = HEIGHT * WIDTH


def attention_apart(mesh: Any, block: nn.Module, axis: int, **options: Any) -> float:
    net = randomized(Tokens(block))
    whole = copy.deepcopy(net)
    volume = split_volume(net, mesh, axis)
    x = numbers(2, 1, HEIGHT, WIDTH)
    slab, x = volume.scatter(x).requires_grad_(), x.requires_grad_()
    out, want = volume.gather(net(slab, **options)), whole(x, **options)
    weight = numbers(*want.shape, seed=5)
    (out * weight / volume.size).sum().backward()
    (want * weight).sum().backward()
    return max(apart(out, want), apart(slab.grad, volume.scatter(x.grad)))


def attends_causally(mesh: Any) -> float:
    blocks = [SABlock(8, 2, causal=True, sequence_length=COUNT) for _ in range(2)]
    return max(attention_apart(mesh, block, axis) for axis, block in enumerate(blocks))


def attends_by_places(mesh: Any) -> float:
    found = [0.0]
    for axis in range(2):
        options: dict[str, Any] = {"rel_pos_embedding": "decomposed", "input_size": (HEIGHT, WIDTH)}
        found.append(attention_apart(mesh, SABlock(8, 2, **options), axis))
        mask = torch.rand(2, COUNT, generator=torch.Generator().manual_seed(4)) > 0.4
        found.append(attention_apart(mesh, SABlock(8, 2, **options), axis, attn_mask=mask))
    return max(found)


def attends_under_masks(mesh: Any) -> float:
    found, generator = [0.0], torch.Generator().manual_seed(4)
    for axis in range(2):
        for shape in ((2, COUNT), (2, COUNT, COUNT), (2, 2, COUNT, COUNT)):
            mask = torch.rand(*shape, generator=generator) > 0.6
            found.append(attention_apart(mesh, SABlock(8, 2), axis, attn_mask=mask))
    return max(found)


def attends_to_a_context(mesh: Any) -> float:
    found, generator = [0.0], torch.Generator().manual_seed(4)
    context = numbers(2, 3, 8)
    for axis in range(2):
        for mask in (None, torch.rand(2, COUNT, 3, generator=generator) > 0.5, torch.tensor([[1, 0, 1]] * 2)):
            found.append(attention_apart(mesh, CrossAttentionBlock(8, 2), axis, context=context, attn_mask=mask))
    return max(found)


# -------------------------------------------------------------------------------------------- layers and types


def reaches_over_a_slab(mesh: Any) -> float:
    net = randomized(nn.Sequential(nn.Conv2d(1, 2, 9, padding=4), nn.Conv2d(2, 1, 9, padding=4)))
    return whole_apart(net, mesh, numbers(1, 1, 4, 9))


def lengths_that_do_not_tell(mesh: Any) -> float:
    """The first slab keeps its length where the last one loses slices."""
    layers = [nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 1, 3, padding=1)]
    return whole_apart(randomized(nn.Sequential(*layers)), mesh, numbers(1, 1, 10, 9))


def whole_apart(net: nn.Module, mesh: Any, x: torch.Tensor) -> float:
    whole = copy.deepcopy(net)
    volume = split_volume(net, mesh)
    return apart(volume.gather(net(volume.scatter(x))), whole(x))


def normalizes_far_from_zero(mesh: Any) -> float:
    """In float32, at a mean of 1000; how much worse than torch's own norm it is."""
    x = torch.randn(1, 4, 8, 64, generator=torch.Generator().manual_seed(2)) + 1000
    exact = nn.GroupNorm(2, 4).double()(x.double())
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4))
    volume = split_volume(net, mesh)
    whole = apart(nn.GroupNorm(2, 4)(x), exact)
    with torch.no_grad():
        return apart(volume.gather(net[1](volume.scatter(x))), exact) / whole


def in_half_types(mesh: Any) -> float:
    """How much further from float32 the ranks are than one process, in the worst case."""
    worst = 0.0
    x = torch.randn(1, 1, 16, 8, 8, generator=torch.Generator().manual_seed(2))
    for options in ({}, {"norm_float16": True}):
        exact = randomized(maisi(**options)).float()
        if options:
            exact = randomized(maisi()).float()
            net = maisi(**options)
            net.load_state_dict(exact.state_dict())
        else:
            net = copy.deepcopy(exact).bfloat16()
        whole = copy.deepcopy(net)
        volume = split_volume(net, mesh)
        dtype = next(net.parameters()).dtype
        with torch.no_grad():
            want, one = exact.reconstruct(x), whole.reconstruct(x.to(dtype))
            out = volume.gather(net.reconstruct(volume.scatter(x.to(dtype))))
        assert out.dtype == one.dtype
        worst = max(worst, apart(out, want) / apart(one, want))
    return worst


def under_autocast(mesh: Any) -> float:
    """The same under autocast, forward and backward."""
    exact = randomized(unet()).float()
    net, whole = copy.deepcopy(exact), copy.deepcopy(exact)
    volume = split_volume(net, mesh)
    x = torch.randn(1, 1, 16, 8, generator=torch.Generator().manual_seed(2))
    outs = []
    for each, inputs in ((net, volume.scatter(x)), (whole, x), (exact, x)):
        with torch.autocast("cpu", torch.bfloat16, enabled=each is not exact):
            outs.append(each(inputs, at_time(x)))
    types = [each.dtype for each in outs]
    assert types[0] == types[1], types
    outs[0].float().sum().backward()
    out = volume.gather(outs[0])
    return apart(out, outs[2]) / apart(outs[1], outs[2])


# ------------------------------------------------------------------------------------------------ around a network


def averages(mesh: Any) -> float:
    net = randomized(kl())
    whole = copy.deepcopy(net)
    volume = split_volume(net, mesh)
    average = torch.optim.swa_utils.AveragedModel(net)
    average.update_parameters(net)
    x = numbers(1, 1, 16, 8)
    assert list(net.state_dict()) == list(whole.state_dict())
    return apart(volume.gather(average.module.reconstruct(volume.scatter(x))), whole.reconstruct(x))


def samples(mesh: Any) -> float:
    net = randomized(unet())
    whole = copy.deepcopy(net)
    volume = split_volume(net, mesh)
    shape = (1, 1, 18, 8)
    mine = volume.noise(shape, torch.Generator().manual_seed(1), dtype=torch.float64)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scheduler = DDIMScheduler(num_train_timesteps=10, clip_sample=False)
    scheduler.set_timesteps(3)
    with torch.no_grad():
        for time in scheduler.timesteps:
            mine = scheduler.step(net(mine, time[None]), time, mine)[0]
            x = scheduler.step(whole(x, time[None]), time, x)[0]
    return apart(volume.gather(mine), x)


def draws_latents(mesh: Any) -> float:
    found = []
    for build, size in ((maisi, (1, 1, 16, 8, 6)), (kl, (2, 1, 18, 6)), (lambda: kl(1), (2, 1, 18))):
        net = randomized(build())
        whole = copy.deepcopy(net)
        volume = split_volume(net, mesh)
        x = numbers(*size)
        torch.manual_seed(5)
        out = volume.gather(net.encode_stage_2_inputs(volume.scatter(x)))
        found.append(apart(volume.gather(net(volume.scatter(x))[0]), _after(whole, x, out)))
    return max(found)


def _after(whole: Any, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """What one process makes of ``x``, after it has drawn the latent ``out``."""
    torch.manual_seed(5)
    assert apart(out, whole.encode_stage_2_inputs(x)) < 1e-12
    return whole(x)[0]


def compiles(mesh: Any) -> float:
    net = randomized(unet())
    whole = copy.deepcopy(net)
    volume = split_volume(net, mesh)
    x = numbers(1, 1, 16, 8)
    compiled = torch.compile(net, backend="eager")
    found = []
    for _ in range(2):
        found.append(apart(volume.gather(compiled(volume.scatter(x), at_time(x))), whole(x, at_time(x))))
    return max(found)


def counts_what_it_sends(mesh: Any) -> float:
    net = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1))
    volume = split_volume(net, mesh)
    x = volume.scatter(torch.zeros(1, 1, 8, 6))
    with volume.counted() as traffic:
        net(x)
    neighbors = (volume.rank > 0) + (volume.rank < volume.size - 1)
    assert traffic.sent_by_kind["halo"] == 6 * 4 * neighbors, traffic
    assert traffic.calls_by_kind == {"shapes": 1, "halo": 1}, traffic
    net(x)
    assert traffic.calls == 2
    return float(volume.traffic.calls != 4)


def vit_of_another_size(mesh: Any) -> str:
    net = vit()
    volume = split_volume(net, mesh)
    return error_of(lambda: net(volume.scatter(torch.zeros(1, 1, 40, 24))))


def pickled(mesh: Any) -> str:
    import pickle

    net: Any = kl()
    volume: VolumeSplit = split_volume(net, mesh)
    return error_of(lambda: pickle.dumps(volume))


REFUSED.update(vit_of_another_size="the image becomes 60 tokens on all ranks", pickled="save its state_dict")
EXACT = (
    late_but_local,
    runs_in_chunks,
    attends_causally,
    attends_by_places,
    attends_under_masks,
    attends_to_a_context,
    reaches_over_a_slab,
    lengths_that_do_not_tell,
    averages,
    samples,
    draws_latents,
    compiles,
    counts_what_it_sends,
)
ROUNDED = {"normalizes_far_from_zero": 4.0, "in_half_types": 1.5, "under_autocast": 1.5}
CHECKS: dict[str, Any] = {name: globals()[name] for name in (*REFUSED, *(each.__name__ for each in EXACT), *ROUNDED)}


@pytest.mark.distributed
@unittest.skipUnless(dist.is_available() and dist.is_gloo_available(), "this torch is built without gloo")
class TestTwoRanks(unittest.TestCase):
    found: list[dict[str, Any]]

    @classmethod
    def setUpClass(cls):
        cls.found = run_checks(2, CHECKS)

    @parameterized.expand(list(REFUSED.items()))
    def test_refused_on_all_ranks(self, name, message):
        for found in self.found:
            self.assertRegex(str(found[name]), message)
            self.assertNotIn("Traceback", str(found[name]))

    @parameterized.expand([(each.__name__,) for each in EXACT])
    def test_equals_one_process(self, name):
        for found in self.found:
            self.assertIsInstance(found[name], float, found[name])
            self.assertLessEqual(found[name], 1e-12)

    @parameterized.expand(list(ROUNDED.items()))
    def test_is_as_close_as_one_process(self, name, times):
        for found in self.found:
            self.assertIsInstance(found[name], float, found[name])
            self.assertLessEqual(found[name], times)


if __name__ == "__main__":
    unittest.main()
