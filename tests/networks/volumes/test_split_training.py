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

"""Training over data and space at once, checkpoints of it, and ranks that die or hang."""

from __future__ import annotations

import copy
import os
import tempfile
import time
import unittest
import warnings
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn as nn
from parameterized import parameterized

from monai.networks import load_checkpoint
from monai.networks.nets import AutoencoderKL
from monai.networks.volumes import split_volume
from tests.networks.volumes.split_cases import at_time, numbers, randomized, unet, vit, vqvae
from tests.networks.volumes.split_ranks import keys_as_before, recompute, run_checks
from tests.networks.weights.kept_autoencoder import kept_autoencoder
from tests.processes import run_ranks

STEPS, RATE = 3, 0.1


def example(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A volume and what the network should make of it."""
    return numbers(1, 1, 14, 6, seed=10 + number), numbers(1, 1, 14, 6, seed=50 + number)


def train_whole(net: nn.Module, examples: int) -> list[float]:
    """One process, on a batch of all examples."""
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=RATE), []
    for step in range(STEPS):
        optimizer.zero_grad()
        batch = [example(step * examples + number) for number in range(examples)]
        loss = torch.stack([(net(x, at_time(x)) - y).square().mean() for x, y in batch]).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def train_split(net: Any, volume: Any, examples: int, which: int) -> list[float]:
    """The ranks that share a volume have one example; gradients are averaged over all ranks."""
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=RATE), []
    for step in range(STEPS):
        optimizer.zero_grad()
        x, y = (volume.scatter(each) for each in example(step * examples + which))
        loss = volume.mean((net(x, at_time(x)) - y).square())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def full(net: nn.Module) -> dict[str, torch.Tensor]:
    """All of a network's state, on every process."""
    return {
        key: value.full_tensor() if hasattr(value, "full_tensor") else value for key, value in net.state_dict().items()
    }


def states_apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[key] - other[key]).abs().max()) for key in other)


def meshes() -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    shape = (dist.get_world_size() // 2, 2)
    return init_device_mesh("cpu", shape, mesh_dim_names=("data", "space"))


def sharded(net: nn.Module, mesh: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for block in [*net.down_blocks, *net.up_blocks]:  # type: ignore[union-attr]
        fully_shard(block, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def with_ddp(mesh: Any) -> float:
    """How far weights are from those of one process after some steps."""
    both = meshes()
    net = randomized(unet())
    whole = copy.deepcopy(net)
    volume = split_volume(net, both["space"])
    wrapped = nn.parallel.DistributedDataParallel(net)
    examples, which = both["data"].size(), both["data"].get_local_rank()
    train_split(wrapped, volume, examples, which)
    train_whole(whole, examples)
    assert states_apart(whole.state_dict(), randomized(unet()).state_dict()) > 1e-3
    return states_apart(net.state_dict(), whole.state_dict())


def with_fsdp(mesh: Any) -> float:
    """The same for weights that are spread over all ranks."""
    both = meshes()
    net = randomized(unet())
    whole = copy.deepcopy(net)
    volume = split_volume(net, both["space"])
    sharded(net, mesh)
    examples, which = both["data"].size(), both["data"].get_local_rank()
    train_split(net, volume, examples, which)
    train_whole(whole, examples)
    return states_apart(full(net), whole.state_dict())


def codebook_under_fsdp(mesh: Any) -> float:
    """A VQVAE's codebook learns though it is spread over all ranks; the other blocks are recomputed."""
    from torch.distributed.fsdp import fully_shard

    both, net = meshes(), randomized(vqvae())
    book: Any = net.quantizer.quantizer  # type: ignore[union-attr]
    book.ema_cluster_size.fill_(1)  # as one that was used before
    book.ema_w.copy_(book.embedding.weight.detach())
    whole = copy.deepcopy(net)
    before = copy.deepcopy(net.state_dict())
    whole.quantizer.quantizer.ddp_sync = False  # type: ignore[union-attr]
    volume = split_volume(net, both["space"])
    blocks = recompute(net)
    fully_shard(net, mesh=mesh)
    which, examples = both["data"].get_local_rank(), both["data"].size()
    for each in (net, whole):
        optimizer = torch.optim.SGD(each.parameters(), lr=RATE)
        for step in range(STEPS):
            optimizer.zero_grad()
            x = torch.cat([numbers(1, 1, 16, 8, seed=10 * step + number) for number in range(examples)])
            x = volume.scatter(x[which : which + 1]) if each is net else x
            out, loss = each(x)
            errors = (out - x).square()
            (loss + (volume.mean(errors) if each is net else errors.mean())).backward()
            optimizer.step()
    assert len(blocks) > 1 and all(block.computed == 2 * STEPS for block in blocks)
    assert states_apart(whole.state_dict(), before) > 1e-3
    return states_apart(keys_as_before(full(net)), whole.state_dict())


def tokens_under_fsdp(mesh: Any) -> float:
    """A ViT of patches by convolution may be sharded after the split; another convolution in its place is refused."""
    from torch.distributed.fsdp import fully_shard

    net = randomized(vit())
    whole = copy.deepcopy(net)
    volume = split_volume(net, mesh)
    fully_shard(net.blocks[0], mesh=mesh)  # type: ignore[index]
    fully_shard(net, mesh=mesh)
    x = numbers(1, 1, 32, 24)
    with torch.no_grad():
        own, want = net(volume.scatter(x))[0], whole(x)[0]
    count = torch.tensor([0, *torch.tensor(volume.slabs_of(32).lengths).cumsum(0).tolist()]) // 4 * (24 // 4)
    found = float((own - want[:, count[volume.rank] : count[volume.rank + 1]]).abs().max() / want.abs().max())

    net.patch_embedding.patch_embeddings = nn.Conv2d(1, 12, 4, 4).double()  # type: ignore[union-attr]
    try:
        volume.scatter(x)
    except ValueError as error:
        assert "patch_embeddings (Conv2d) would work on the slab of one rank" in str(error), error
        return found
    raise AssertionError("not refused")


def saved_and_loaded(mesh: Any) -> float:
    """A sharded, split network is saved; another one, and one of one process, load it."""
    import torch.distributed.checkpoint as dcp

    name: list[Any] = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(name)
    net = randomized(unet())
    whole = copy.deepcopy(net)
    split_volume(net, mesh)
    dcp.save({"net": sharded(net, mesh).state_dict()}, checkpoint_id=name[0])
    again, alone = unet().double(), unet().double()
    split_volume(again, mesh)
    sharded(again, mesh)
    for each in (again, alone):
        state = {"net": each.state_dict()}
        dcp.load(state, checkpoint_id=name[0])
        each.load_state_dict(state["net"])
    return max(states_apart(full(again), whole.state_dict()), states_apart(alone.state_dict(), whole.state_dict()))


def old_file_in_a_split_network(mesh: Any) -> float:
    """A file of GenerativeModels is loaded into a network that is split and sharded; its outputs are one process's."""
    from torch.distributed.fsdp import fully_shard

    options, old = kept_autoencoder()
    net, whole = AutoencoderKL(**options).double().eval(), AutoencoderKL(**options).double().eval()
    volume = split_volume(net, mesh)
    for half in net.children():
        fully_shard(half, mesh=mesh)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(old, Path(folder, "old.pt"))
        for each in (net, whole):
            load_checkpoint(each, Path(folder, "old.pt"))
    x = numbers(1, 1, 16 * mesh.size(), 16)
    with torch.no_grad():
        out, want = volume.gather(net.decoder(net.encoder(volume.scatter(x)))), whole.decoder(whole.encoder(x))
    assert states_apart(full(net), whole.state_dict()) == 0.0
    return float((out - want).abs().max() / want.abs().max())


def state_on(mesh: Any, folder: str, load: str | None, save: str) -> float:
    """
    A split, sharded network loads what other ranks wrote, and writes it.

    Returns:
        how far its outputs and weights are from those of one process
    """
    import torch.distributed.checkpoint as dcp

    whole = randomized(unet())
    net = randomized(unet()) if load is None else unet().double()
    volume = split_volume(net, mesh)
    sharded(net, mesh)
    if load is not None:
        state = {"net": net.state_dict()}
        dcp.load(state, checkpoint_id=f"{folder}/{load}")
        net.load_state_dict(state["net"])
    dcp.save({"net": net.state_dict()}, checkpoint_id=f"{folder}/{save}")
    x = numbers(1, 1, 16, 6)
    with torch.no_grad():
        out, want = volume.gather(net(volume.scatter(x), at_time(x))), whole(x, at_time(x))
    return max(float((out - want).abs().max() / want.abs().max()), states_apart(full(net), whole.state_dict()))


CHECKS = {
    check.__name__: check
    for check in (
        with_ddp,
        with_fsdp,
        codebook_under_fsdp,
        tokens_under_fsdp,
        saved_and_loaded,
        old_file_in_a_split_network,
    )
}


@pytest.mark.distributed
@unittest.skipUnless(dist.is_available() and dist.is_gloo_available(), "this torch is built without gloo")
class TestTraining(unittest.TestCase):
    ranks = 2
    found: list[dict[str, Any]]

    @classmethod
    def setUpClass(cls):
        cls.found = run_checks(cls.ranks, CHECKS)

    @parameterized.expand([(name,) for name in CHECKS])
    def test_equals_one_process(self, name):
        for found in self.found:
            self.assertIsInstance(found[name], float, found[name])
            self.assertLessEqual(found[name], 1e-12)


@pytest.mark.distributed
@pytest.mark.grid
class TestTrainingOnFour(TestTraining):
    ranks = 4


@pytest.mark.distributed
@pytest.mark.grid
@unittest.skipUnless(dist.is_available() and dist.is_gloo_available(), "this torch is built without gloo")
class TestOtherNumbersOfRanks(unittest.TestCase):
    def test_from_two_to_four_and_back(self):
        with tempfile.TemporaryDirectory() as folder:
            for ranks, load, save in ((2, None, "first"), (4, "first", "second"), (2, "second", "third")):
                for found in run_checks(ranks, {"state": partial(state_on, folder=folder, load=load, save=save)}):
                    self.assertIsInstance(found["state"], float, found["state"])
                    self.assertLessEqual(found["state"], 1e-12)


def work(rank: int, folder: str, dies: bool) -> None:
    """Rank 1 dies, or hangs, between two calls of the network."""
    from torch.distributed.device_mesh import init_device_mesh

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=5))
    net = unet()
    volume = split_volume(net, init_device_mesh("cpu", (2,)))
    x = volume.scatter(torch.zeros(1, 1, 8, 8))
    net(x, at_time(x))
    if rank == 1:
        if not dies:
            time.sleep(9)
        os._exit(0)
    try:
        net(x, at_time(x))
    except RuntimeError as error:
        Path(folder, "error").write_text(str(error))
    os._exit(0)


@pytest.mark.distributed
@unittest.skipUnless(dist.is_available() and dist.is_gloo_available(), "this torch is built without gloo")
class TestLostRank(unittest.TestCase):
    @parameterized.expand([("dies", True), ("hangs", False)])
    def test_the_others_end(self, _, dies):
        with tempfile.TemporaryDirectory() as folder:
            run_ranks(work, 2, folder, dies)
            message = Path(folder, "error").read_text()
        self.assertIn("rank 0 of 2", message)
        self.assertIn("a timeout of 5 seconds", message)


if __name__ == "__main__":
    unittest.main()
