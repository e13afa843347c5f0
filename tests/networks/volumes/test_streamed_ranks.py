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

"""Streamed autoencoders of split networks: every rank streams its slab, all together give what one process gives."""

from __future__ import annotations

import copy
import os
import tempfile
import unittest
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn as nn
from parameterized import parameterized

from monai.networks.volumes import StreamedAutoencoder, VolumeSplit, split_volume
from tests.live_bytes import LiveBytes
from tests.networks.volumes.autoencoders import AUTOENCODERS, images, latents, made
from tests.networks.volumes.split_ranks import run_checks
from tests.networks.volumes.test_streamed import largest_difference, smallest_memory

PLENTY = 2**30
QUICK = {2: (10, 9), 3: (10, 5, 6)}
SIZES = {2: (22, 26), 3: (18, 9, 8)}


def methods_of(name: str, network: Any, sizes: tuple[int, ...]) -> dict[str, tuple]:
    """The methods that work on volumes, and their inputs; whether each input is a latent."""
    image, *others = images(name, sizes)
    latent, *_ = latents(name, network, sizes)
    segmentation = [(each, False) for each in others]
    found: dict[str, tuple] = {
        "encode": ((image, False),),
        "decode": ((latent, True), *segmentation),
        "encode_stage_2_inputs": ((image, False),),
        "decode_stage_2_outputs": ((latent, True), *segmentation),
        "forward": ((image, False), *segmentation),
    }
    if name.startswith("vqvae"):
        found["index_quantize"] = ((image, False),)
    else:
        found["reconstruct"] = ((image, False), *segmentation)
    return found


def gathered(volume: VolumeSplit, found: Any) -> Any:
    """The whole volumes of what every rank has a slab of."""
    if isinstance(found, tuple):
        return tuple(gathered(volume, each) for each in found)
    if found.dim() == 0:
        return found
    if found.dim() == volume.spatial_dims + 1:  # indices
        return volume.gather(found[:, None].double())[:, 0]
    return volume.gather(found)


def apart(
    name: str, spatial_dims: int, axis: int, storage: str | None, sizes: tuple[int, ...], methods: Any, mesh: Any
) -> float:
    """How far streams of slabs are from the whole in one process, with the smallest memory and with plenty."""
    network = made(name, spatial_dims)
    whole = copy.deepcopy(network)
    volume = split_volume(network, mesh, axis)
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        streamed = StreamedAutoencoder(network, PLENTY, folder if storage == "folder" else storage)
        for method, given in methods_of(name, whole, sizes).items():
            if methods is not None and method not in methods:
                continue
            slabs = [volume.scatter(x, latent) for x, latent in given]
            torch.manual_seed(3)
            with torch.no_grad():
                expected = getattr(whole, method)(*(x for x, _ in given))
            budgets = [PLENTY]
            if method in ("encode", "decode"):
                smallest = smallest_memory(streamed, method, *slabs)
                budgets = [3 * smallest if storage is None else smallest, PLENTY]
            for streamed.memory in budgets:
                torch.manual_seed(3)
                found = gathered(volume, getattr(streamed, method)(*slabs))
                worst = max(worst, largest_difference(found, expected))
        assert os.listdir(folder) == []
    return worst


def within_its_memory(name: str, storage: str | None, axis: int, mesh: Any) -> float:
    """The largest share of their memory that ranks hold."""
    network = made(name, 3, torch.float32)
    # without a storage the smallest memory computes the many parts of a larger volume over and over
    sizes = (32, 24, 24) if storage == "folder" else (12, 12, 6 * mesh.size())
    latent, *others = latents(name, network, sizes, torch.float32)
    image, *_ = images(name, sizes, torch.float32)
    volume = split_volume(network, mesh, axis)
    most = 0.0
    with tempfile.TemporaryDirectory() as folder:
        streamed = StreamedAutoencoder(network, PLENTY, folder if storage == "folder" else None)
        inputs = {"encode": (volume.scatter(image),)}
        inputs["decode"] = (volume.scatter(latent, True), *map(volume.scatter, others))
        for method, slabs in inputs.items():
            smallest = smallest_memory(streamed, method, *slabs)
            for factor in (1.0, 1.5, 4.0):
                streamed.memory = int(factor * smallest)
                assert streamed.needs(method, *slabs).device <= streamed.memory
                with LiveBytes("aten.from_file") as live:
                    getattr(streamed, method)(*slabs)
                most = max(most, live.most / streamed.memory)
    return most


def error_of(call: Any) -> str:
    """What a call says that should raise."""
    try:
        call()
    except (ValueError, RuntimeError, TypeError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def split_kl(mesh: Any) -> tuple[StreamedAutoencoder, torch.Tensor]:
    """A split network that is streamed, and this rank's slab of a latent."""
    network = made("kl", 2)
    latent, *_ = latents("kl", network, QUICK[2])
    volume = split_volume(network, mesh)
    return StreamedAutoencoder(network, PLENTY), volume.scatter(latent, True)


def too_little_memory_of_one(mesh: Any) -> str:
    streamed, latent = split_kl(mesh)
    streamed.memory = 1 if mesh.get_local_rank() == 1 else PLENTY
    return error_of(lambda: streamed.decode(latent))


def no_storage_of_one(mesh: Any) -> str:
    streamed, latent = split_kl(mesh)
    streamed.storage = None if mesh.get_local_rank() == 1 else "cpu"
    return error_of(lambda: streamed.decode(latent))


def training_of_one(mesh: Any) -> str:
    streamed, latent = split_kl(mesh)
    streamed.decoder.blocks.append(nn.Dropout(0.5))
    streamed.autoencoder.train(mesh.get_local_rank() == 1)
    with torch.no_grad():
        return error_of(lambda: streamed.decode(latent))


def gradient_of_one(mesh: Any) -> str:
    streamed, latent = split_kl(mesh)
    return error_of(lambda: streamed.decode(latent.requires_grad_(mesh.get_local_rank() == 1)))


def other_batch_of_one(mesh: Any) -> str:
    streamed, latent = split_kl(mesh)
    return error_of(lambda: streamed.decode(latent[: 1 + mesh.get_local_rank()]))


def full_disk_of_one(mesh: Any) -> str:
    streamed, latent = split_kl(mesh)
    streamed.storage = "/no/such/folder" if mesh.get_local_rank() == 1 else "cpu"
    return error_of(lambda: streamed.decode(latent))


def changed_after_the_split(mesh: Any) -> str:
    network = made("kl", 2)
    split_volume(network, mesh)
    nn.utils.parametrizations.weight_norm(network.decoder.blocks[0].conv)
    return error_of(lambda: StreamedAutoencoder(network, PLENTY))


REFUSED = {
    "too_little_memory_of_one": ("memory=1 bytes are too few", "memory=1 bytes are too few"),
    "no_storage_of_one": ("some ranks stream with storage=None", "some ranks stream with storage=None"),
    "training_of_one": ("RuntimeError: rank 1.*training mode", "TypeError: .*training mode"),
    "gradient_of_one": ("RuntimeError: rank 1.*no gradients", "^RuntimeError: StreamedAutoencoder computes no"),
    "other_batch_of_one": ("other inputs", "rank 1: .2, 3, slab"),
    "full_disk_of_one": ("RuntimeError: rank 1.*no/such/folder", "NotADirectoryError: "),
    "changed_after_the_split": ("decoder.blocks.0.conv.*changed after split_volume",) * 2,
}


def needs_are_alike(mesh: Any) -> float:
    streamed, latent = split_kl(mesh)
    told = streamed.needs("decode", latent)
    said: list[Any] = [None] * mesh.size()
    dist.all_gather_object(said, (told.device, told.storage, told.steps))
    return float(len(set(said)) - 1)


def split_after_it_was_streamed(mesh: Any) -> float:
    network = made("maisi", 2)
    latent, *_ = latents("maisi", network, QUICK[2])
    streamed = StreamedAutoencoder(network, 10**5)
    expected = streamed.decode(latent)
    volume = split_volume(network, mesh, 1)
    return largest_difference(volume.gather(streamed.decode(volume.scatter(latent, True))), expected)


def saves_its_keys(mesh: Any) -> float:
    network = made("kl", 2)
    keys = list(network.state_dict())
    split_volume(network, mesh)
    return float(list(StreamedAutoencoder(network, PLENTY).state_dict()) != keys)


def quick(mesh: Any, name: str, dims: int, axis: int, storage: Any, methods: Any) -> float:
    return apart(name, dims, axis, storage, QUICK[dims], methods, mesh)


QUICK_CASES: dict[str, Any] = {
    "kl": partial(quick, name="kl", dims=2, axis=0, storage="cpu", methods=("decode", "encode_stage_2_inputs")),
    "spade": partial(quick, name="spade", dims=2, axis=1, storage="folder", methods=("decode",)),
    "vqvae": partial(quick, name="vqvae", dims=2, axis=0, storage=None, methods=("forward", "index_quantize")),
    "maisi": partial(quick, name="maisi", dims=3, axis=0, storage=None, methods=("decode",)),
    "needs_are_alike": needs_are_alike,
    "split_after_it_was_streamed": split_after_it_was_streamed,
    "saves_its_keys": saves_its_keys,
}
STORAGES = ("cpu", "folder", None)
GRID: dict[str, Any] = {}
for number, (name, dims) in enumerate((name, dims) for name in AUTOENCODERS for dims in (2, 3)):
    if name != "vqvae_uneven":
        axis, storage = number % dims, STORAGES[number % 3]
        sizes = list(SIZES[dims])
        sizes[0], sizes[axis] = sizes[axis], sizes[0]
        GRID[f"{name}_{dims}_{axis}_{storage}"] = partial(apart, name, dims, axis, storage, tuple(sizes), None)
GRID["vqvae_uneven"] = partial(apart, "vqvae_uneven", 2, 0, "cpu", (50, 13), None)
GRID["kl_2_0_none"] = partial(apart, "kl", 2, 0, None, SIZES[2], None)
GRID["kl_3_1_cpu"] = partial(apart, "kl", 3, 1, "cpu", (9, 18, 8), ("encode", "decode"))
GRID["maisi_3_1_none"] = partial(apart, "maisi", 3, 1, None, (9, 18, 8), ("encode", "decode"))
MEMORY = {
    f"{name}_{storage}": partial(within_its_memory, name, storage, axis)
    for name in ("kl", "maisi", "maisi_transposed", "spade", "vqvae")
    for storage, axis in (("folder", 0), (None, 2))
}


@pytest.mark.distributed
@unittest.skipUnless(dist.is_available() and dist.is_gloo_available(), "this torch is built without gloo")
class TestTwoRanks(unittest.TestCase):
    found: list[dict[str, Any]]

    @classmethod
    def setUpClass(cls) -> None:
        cls.found = run_checks(2, {**QUICK_CASES, **{name: globals()[name] for name in REFUSED}})

    @parameterized.expand([(name,) for name in QUICK_CASES])
    def test_equals_one_process(self, name: str) -> None:
        for found in self.found:
            self.assertIsInstance(found[name], float, found[name])
            self.assertLess(found[name], 1e-12)

    @parameterized.expand(list(REFUSED.items()))
    def test_refused_on_all_ranks(self, name: str, messages: tuple[str, ...]) -> None:
        for found, message in zip(self.found, messages, strict=True):
            self.assertRegex(str(found[name]), message)


@pytest.mark.distributed
@unittest.skipUnless(dist.is_available() and dist.is_gloo_available(), "this torch is built without gloo")
class TestManyCases(unittest.TestCase):
    @parameterized.expand([(2,), (4,)])
    @pytest.mark.grid
    def test_equals_one_process(self, ranks: int) -> None:
        for said in run_checks(ranks, GRID, limit=1200):
            for name, found in said.items():
                with self.subTest(name):
                    self.assertIsInstance(found, float, found)
                    self.assertLess(found, 1e-12)

    @parameterized.expand([(2,), (4,)])
    @pytest.mark.grid
    def test_ranks_hold_no_more_than_they_may(self, ranks: int) -> None:
        for said in run_checks(ranks, MEMORY, limit=1200):
            for name, found in said.items():
                with self.subTest(name):
                    self.assertIsInstance(found, float, found)
                    self.assertLessEqual(found, 1.0)


if __name__ == "__main__":
    unittest.main()
