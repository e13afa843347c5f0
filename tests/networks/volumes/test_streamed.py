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

"""Streamed autoencoders give what the autoencoders give, within the memory that they may use."""

from __future__ import annotations

import copy
import functools
import os
import pickle
import tempfile
import unittest
import unittest.mock
import warnings
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from parameterized import parameterized

from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.inferers import LatentDiffusionInferer
from monai.networks import load_checkpoint
from monai.networks.blocks.spatialattention import SpatialAttentionBlock
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from monai.networks.nets.autoencoderkl import AEKLResBlock
from monai.networks.nets.spade_autoencoderkl import SPADEAutoencoderKL
from monai.networks.schedulers import DDIMScheduler
from monai.networks.volumes import Reach, StreamedAutoencoder
from monai.networks.volumes.stream_plan import MemoryTooSmall
from tests.live_bytes import LiveBytes
from tests.networks.volumes.autoencoders import AUTOENCODERS, images, latents, made
from tests.networks.weights.kept_autoencoder import kept_autoencoder

PLENTY = 2**30
SIZES = {1: (44,), 2: (22, 17), 3: (10, 9, 8)}
GRID = [
    (name, spatial_dims, storage)
    for name in AUTOENCODERS
    for spatial_dims, storage in ((2, "cpu"), (2, "folder"), (2, None), (3, "cpu"))
]


def smallest_memory(streamed: StreamedAutoencoder, method: str, *inputs: torch.Tensor) -> int:
    """The memory that the error of a too small one names."""
    streamed.memory = 1
    try:
        streamed.needs(method, *inputs)
    except MemoryTooSmall as error:
        return int(str(error).split("smallest that does is memory=")[1].split(" ")[0].rstrip(",.").replace(",", ""))
    raise AssertionError("one byte was enough")


def a_hook(*_: Any) -> None:
    """A hook."""


class OddIdentity(nn.Identity):
    """Not what its base class is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


class OddNorm(nn.InstanceNorm2d):
    """Likewise."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class OddDropout(nn.Dropout):
    """Likewise."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean()


def doubles(module: Any) -> None:
    """Replace the forward of an object."""
    forward = module.forward
    module.forward = lambda *args: 2 * forward(*args)


def add_norm_inside(network: Any) -> None:
    """Replace a part of a layer that says how far it looks."""
    down = network.encoder.blocks[2]
    down.conv = nn.Sequential(down.conv, nn.GroupNorm(2, 8))


def add_watched_identity(network: Any) -> None:
    """A layer that does nothing, and a hook that might."""
    network.decoder.blocks.append(nn.Identity())
    network.decoder.blocks[-1].register_forward_hook(a_hook)


CHANGED: dict[str, Any] = {
    "identity": lambda network: network.decoder.blocks.append(OddIdentity()),
    "hook_on_an_identity": add_watched_identity,
    "group_norm": lambda network: doubles(network.decoder.blocks[1].norm2),
    "convolution": lambda network: setattr(network.decoder.blocks[0].conv, "_conv_forward", a_hook),
    "sequence": lambda network: doubles(network.decoder.blocks[1].conv2),
    "spade": lambda network: doubles(network.decoder.blocks[1].norm1),
    "instance_norm": lambda network: setattr(network.decoder.blocks[1], "norm2", OddNorm(16)),
    "dropout": lambda network: network.decoder.blocks.insert(1, OddDropout().eval()),
    "batch_norm_without_statistics": lambda network: network.decoder.blocks.insert(
        1, nn.BatchNorm2d(16, track_running_stats=False).eval()
    ),
    "inside_of_a_downsampling": add_norm_inside,
    "hook_inside_of_a_downsampling": lambda network: network.encoder.blocks[2].conv.register_forward_hook(a_hook),
    "in_place_before_a_sum": lambda network: setattr(network.decoder.blocks[1], "norm1", nn.ReLU(inplace=True)),
}


class Doubling(nn.Module):
    """A layer of a user's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


class DeclaredDoubling(Doubling):
    """One that says how far it looks."""

    def spatial_reach(self, axis: int) -> Reach:
        return Reach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


@torch.no_grad()
def largest_difference(found: Any, expected: Any) -> float:
    """The largest difference of two tensors, or tuples of them, relative to the largest expected value."""
    if isinstance(expected, tuple):
        return max(largest_difference(*pair) for pair in zip(found, expected, strict=True))
    return float((found - expected).abs().max() / expected.abs().max())


class TestStreamedAutoencoder(unittest.TestCase):
    """``StreamedAutoencoder`` against the autoencoder inside of it."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def streamed(self, network: nn.Module, memory: int = PLENTY, storage: Any = "cpu") -> StreamedAutoencoder:
        return StreamedAutoencoder(network, memory, self.folder if storage == "folder" else storage)

    @parameterized.expand(GRID)
    def test_equal_in_the_smallest_parts_and_in_one(self, name: str, spatial_dims: int, storage: str | None) -> None:
        network = made(name, spatial_dims)
        image, *_ = images(name, SIZES[spatial_dims])
        latent = latents(name, network, SIZES[spatial_dims])
        with torch.no_grad():
            encoded, decoded = network.encode(image), network.decode(*latent)
        streamed = self.streamed(network, storage=storage)
        inputs = {"encode": (image,), "decode": latent}
        for method, expected in (("encode", encoded), ("decode", decoded)):
            smallest = smallest_memory(streamed, method, *inputs[method])
            for memory in (3 * smallest, PLENTY) if storage is None else (smallest, PLENTY):
                streamed.memory = memory
                found = getattr(streamed, method)(*inputs[method])
                self.assertLess(largest_difference(found, expected), 1e-12, (method, memory))
        self.assertEqual(os.listdir(self.folder), [])

    @parameterized.expand([("kl",), ("maisi",), ("spade",), ("vqvae",)])
    def test_float32(self, name: str) -> None:
        network = made(name, 3, torch.float32)
        latent = latents(name, network, SIZES[3], torch.float32)
        found = self.streamed(network, 2 * 10**5 if name != "spade" else 10**6).decode(*latent)
        with torch.no_grad():
            self.assertLess(largest_difference(found, network.decode(*latent)), 1e-5)

    @parameterized.expand([("kl", True), ("kl", False), ("maisi", True), ("vqvae", True), ("vqvae", False)])
    def test_half_types(self, name: str, autocast: bool) -> None:
        reference = made(name, 2, torch.float32)
        network = copy.deepcopy(reference) if autocast else copy.deepcopy(reference).bfloat16()
        latent, *_ = latents(name, reference, SIZES[2], torch.float32)
        given = latent if autocast else latent.bfloat16()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            whole, found = network.decode(given), self.streamed(network, 10**5).decode(given)
        exact = reference.decode(latent).detach()
        self.assertEqual(found.dtype, whole.dtype)
        self.assertLess(largest_difference(found.float(), exact), 2 * largest_difference(whole.float(), exact))

    def test_norms_in_float16(self) -> None:
        network = made("maisi", 2, torch.float32)
        for module in network.modules():
            if hasattr(module, "norm_float16"):
                module.norm_float16 = True
        latent, *_ = latents("maisi", network, SIZES[2], torch.float32)
        with torch.no_grad():
            whole = network.decode(latent)
        self.assertLess(largest_difference(self.streamed(network, 10**5).decode(latent), whole), 2e-3)

    @parameterized.expand(
        [
            (name, storage)
            for name in ("kl", "maisi", "maisi_transposed", "spade", "vqvae")
            for storage in ("folder", None)
        ]
    )
    def test_the_device_holds_no_more_than_it_may(self, name: str, storage: str | None) -> None:
        network = made(name, 3, torch.float32)
        image, *_ = images(name, (24, 24, 24), torch.float32)
        latent = latents(name, network, (24, 24, 24), torch.float32)
        streamed = self.streamed(network, storage=storage)
        for method, inputs in (("encode", (image,)), ("decode", latent)):
            for memory in (6 * 10**6, 10**7) if name == "spade" else (3 * 10**6, 6 * 10**6):
                streamed.memory = memory
                self.assertLessEqual(streamed.needs(method, *inputs).device, memory)
                with LiveBytes("aten.from_file") as live:
                    getattr(streamed, method)(*inputs)
                self.assertLessEqual(live.most, memory, (method, memory))

    @parameterized.expand([("maisi", "encode"), ("maisi", "decode"), ("kl_plain", "decode"), ("vqvae", "encode")])
    def test_the_smallest_memory_is_kept(self, name: str, method: str) -> None:
        network = made(name, 3, torch.float32)
        sizes = (8, 10, 9)
        inputs = (
            latents(name, network, sizes, torch.float32) if method == "decode" else images(name, sizes, torch.float32)
        )
        streamed = self.streamed(network, storage="folder")
        streamed.memory = smallest_memory(streamed, method, *inputs)
        with LiveBytes("aten.from_file") as live:
            found = getattr(streamed, method)(*inputs)
        self.assertLessEqual(live.most, streamed.memory)
        with torch.no_grad():
            self.assertLess(largest_difference(found, getattr(network, method)(*inputs)), 1e-5)
        streamed.memory = int(0.99 * streamed.memory)
        with self.assertRaisesRegex(MemoryTooSmall, "are too few for a first run on a few positions"):
            streamed.needs(method, *inputs)

    def test_pieces_of_layers_are_not_held(self) -> None:
        network = made("maisi", 3, torch.float32)
        latent, *_ = latents("maisi", network, (12, 12, 12), torch.float32)
        streamed = self.streamed(network, 10**7)
        held = []
        for splits in (1, 4):
            for module in network.modules():
                if hasattr(module, "num_splits"):
                    module.num_splits = splits
            with LiveBytes() as live:
                streamed.decode(latent)
            held.append(live.most)
        self.assertEqual(*held)

    def test_large_means_do_no_harm(self) -> None:
        network = made("kl_plain", 2, torch.float32)
        with torch.no_grad():
            network.decoder.blocks[0].conv.bias += 1000
        latent, *_ = latents("kl_plain", network, SIZES[2], torch.float32)
        exact = copy.deepcopy(network).double().decode(latent.double()).detach()
        whole = network.decode(latent).detach()
        found = self.streamed(network, 10**5).decode(latent)
        self.assertLess(largest_difference(found.double(), exact), 4 * largest_difference(whole.double(), exact) + 1e-6)

    def test_too_little_memory_names_the_smallest(self) -> None:
        network = made("kl", 2)
        latent, *_ = latents("kl", network, SIZES[2])
        streamed = self.streamed(network)
        smallest = smallest_memory(streamed, "decode", latent)
        streamed.memory = smallest
        self.assertLessEqual(streamed.needs("decode", latent).device, smallest)
        streamed.memory = int(0.99 * smallest)
        with self.assertRaises(MemoryTooSmall):
            streamed.decode(latent)

    def test_more_memory_is_never_too_little(self) -> None:
        network = made("kl", 2)
        latent, *_ = latents("kl", network, SIZES[2])
        streamed = self.streamed(network, storage=None)
        smallest = smallest_memory(streamed, "decode", latent)
        for factor in (1, 1.1, 1.5, 2, 4, 8):
            streamed.memory = int(factor * smallest)
            self.assertLessEqual(streamed.needs("decode", latent).device, streamed.memory)

    def test_a_full_disk_is_told_before_anything_is_computed(self) -> None:
        network = made("kl", 2)
        latent, *_ = latents("kl", network, SIZES[2])
        usage = unittest.mock.Mock(return_value=unittest.mock.Mock(free=10))
        with unittest.mock.patch("shutil.disk_usage", usage), self.assertRaisesRegex(OSError, "10 bytes free"):
            self.streamed(network, storage="folder").decode(latent)

    @parameterized.expand(
        [
            (0, "cpu", ValueError, "memory=0"),
            (True, "cpu", ValueError, "memory=True"),
            ("8GB", "cpu", ValueError, "memory='8GB'"),
            (float("inf"), "cpu", ValueError, "memory=inf.*whole number"),
            (float("nan"), "cpu", ValueError, "memory=nan.*whole number"),
            (100.5, "cpu", ValueError, "memory=100.5.*whole number"),
            (100, 3, ValueError, "storage=3"),
            (100, "", ValueError, "storage=''"),
            (100, "/no/such/folder", NotADirectoryError, "existing folder"),
        ]
    )
    def test_arguments_that_cannot_be(self, memory: Any, storage: Any, error: type[Exception], message: str) -> None:
        with self.assertRaisesRegex(error, message):
            StreamedAutoencoder(made("kl", 2), memory, storage)

    @parameterized.expand([(np.int64(100),), (np.float32(100),), (1e2,), (torch.tensor(100),)])
    def test_whole_numbers_of_any_type(self, memory: Any) -> None:
        self.assertIs(type(self.streamed(made("kl", 2), memory).memory), int)

    def test_what_is_no_autoencoder(self) -> None:
        with self.assertRaisesRegex(TypeError, "neither an encoder nor a decoder"):
            StreamedAutoencoder(nn.Linear(2, 2), 100)

    def test_layers_of_users(self) -> None:
        network = made("kl", 2)
        network.decoder.blocks.insert(1, Doubling())
        with self.assertRaisesRegex(TypeError, r"decoder.blocks.1 \(Doubling\).*spatial_reach"):
            self.streamed(network)
        network.decoder.blocks[1] = DeclaredDoubling()
        latent, *_ = latents("kl", network, SIZES[2])
        self.assertLess(largest_difference(self.streamed(network).decode(latent), network.decode(latent)), 1e-12)

    @parameterized.expand([("blocks.1",), ("blocks.1.conv1",), ("blocks.1.conv1.conv",), ("blocks.2",)])
    def test_hooks_are_refused(self, name: str) -> None:
        network = made("kl", 2)
        latent, *_ = latents("kl", network, SIZES[2])
        streamed = self.streamed(network)
        network.decoder.get_submodule(name).register_forward_hook(a_hook)
        with self.assertRaisesRegex(TypeError, f"decoder.{name} .*hooks"):
            streamed.decode(latent)

    def test_pools_that_want_as_much_as_their_kernel(self) -> None:
        network = made("kl", 3)
        network.decoder.blocks.append(nn.AvgPool3d(3, stride=1, padding=1))
        latent, *_ = latents("kl", network, SIZES[3])
        streamed = self.streamed(network)
        streamed.memory = smallest_memory(streamed, "decode", latent)
        self.assertLess(largest_difference(streamed.decode(latent), network.decode(latent)), 1e-12)

    @parameterized.expand(
        [
            ("in_place_on_a_resting_volume", lambda: nn.LeakyReLU(0.5, inplace=True), "cpu"),
            ("in_place_without_storage", lambda: nn.SiLU(inplace=True), None),
            ("returns_what_it_gets", lambda: nn.Sequential(nn.Dropout(0.5), nn.SiLU(inplace=True)), "cpu"),
        ]
    )
    def test_activations_in_place(self, _: str, activation: Any, storage: str | None) -> None:
        network = made("kl_plain", 2)
        network.decoder.blocks.insert(0, activation().eval())
        network.decoder.blocks.insert(3, activation().eval())
        latent, *_ = latents("kl_plain", network, SIZES[2])
        before = latent.clone()
        streamed = self.streamed(network, storage=storage)
        streamed.memory = (3 if storage is None else 1) * smallest_memory(streamed, "decode", latent)
        found = streamed.decode(latent)
        self.assertTrue(torch.equal(latent, before))
        self.assertLess(largest_difference(found, network.decode(latent)), 1e-12)

    def test_a_sum_with_what_a_layer_returns_unchanged(self) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.drop = nn.Dropout(0.5)

            def volume_steps(self, steps: Any, volume: int) -> int:
                return steps.add(volume, self.drop, plus=steps.branch(volume))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.drop(x) + x

        network = made("kl_plain", 2)
        network.decoder.blocks.insert(2, Twice().eval())
        latent, *_ = latents("kl_plain", network, SIZES[2])
        streamed = self.streamed(network)
        streamed.memory = smallest_memory(streamed, "decode", latent)  # no step is computed in one part
        found = streamed.decode(latent)
        self.assertLess(largest_difference(found, network.decode(latent)), 1e-12)

    @parameterized.expand([(name,) for name in CHANGED])
    def test_changed_layers_are_refused(self, name: str) -> None:
        network = made("spade" if name == "spade" else "kl", 2)
        CHANGED[name](network)
        with self.assertRaisesRegex(TypeError, "cannot be computed in parts|hooks|in place"):
            self.streamed(network)

    @parameterized.expand(
        [
            (AEKLResBlock, "forward", "encoder.blocks.1 "),
            (nn.Conv2d, "_conv_forward", "encoder.blocks.0.conv "),
            (nn.GroupNorm, "forward", "encoder.blocks.1.norm1 "),
        ]
    )
    def test_methods_replaced_at_a_class_are_refused(self, cls: Any, method: str, name: str) -> None:
        network = made("kl_plain", 2)
        latent, *_ = latents("kl_plain", network, SIZES[2])
        streamed, written = self.streamed(network), getattr(cls, method)
        put_in = functools.wraps(written)(lambda *args: 2 * written(*args))
        with unittest.mock.patch.object(cls, method, put_in):
            with self.assertRaisesRegex(TypeError, rf"{name}.*method {method}.*spatial_reach"):
                self.streamed(network)
            with self.assertRaisesRegex(TypeError, f"method {method}"):
                streamed.decode(latent)
        streamed.decode(latent)

    def test_a_replaced_norm_before_attention_is_called(self) -> None:
        torch.manual_seed(0)
        options: dict[str, Any] = {"num_res_blocks": 1, "attention_levels": (False, True), "norm_num_groups": 4}
        network = AutoencoderKL(2, channels=(8, 8), **options).double().eval()
        for module in network.modules():
            if isinstance(module, SpatialAttentionBlock):
                doubles(module.norm)
        latent = torch.randn(1, 3, 14, 11, dtype=torch.float64)
        streamed = self.streamed(network)
        streamed.memory = smallest_memory(streamed, "decode", latent)
        self.assertLess(largest_difference(streamed.decode(latent), network.decode(latent)), 1e-12)

    def test_decorators_that_change_nothing(self) -> None:
        network = made("kl_plain", 2)
        with unittest.mock.patch.object(AEKLResBlock, "forward", torch.no_grad()(AEKLResBlock.forward)):
            self.streamed(network)

    def test_a_norm_of_the_input(self) -> None:
        network = made("kl", 2)
        network.decoder.blocks.insert(0, nn.InstanceNorm2d(5))  # of every channel, whatever number it was given
        latent, *_ = latents("kl", network, SIZES[2])
        self.assertLess(largest_difference(self.streamed(network, 10**5).decode(latent), network.decode(latent)), 1e-12)

    def test_parts_that_see_padding_alone(self) -> None:
        network = made("kl_plain", 2)
        network.decoder.blocks.insert(0, nn.Conv2d(3, 3, 3, padding=4).double())
        latent, *_ = latents("kl_plain", network, SIZES[2])
        streamed = self.streamed(network)
        streamed.memory = smallest_memory(streamed, "decode", latent)
        self.assertLess(largest_difference(streamed.decode(latent), network.decode(latent)), 1e-12)

    @parameterized.expand([(1,), (2,), (3,)])
    def test_paths_without_convolutions(self, spatial_dims: int) -> None:
        class Plain(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.decoder = nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU(), nn.Upsample(scale_factor=2))

            def decode(self, z: torch.Tensor) -> torch.Tensor:
                found: torch.Tensor = self.decoder(z)
                return found

        network, latent = Plain().double().eval(), torch.randn(1, 4, *[5] * spatial_dims, dtype=torch.float64)
        streamed = self.streamed(network)
        streamed.memory = smallest_memory(streamed, "decode", latent)
        self.assertLess(largest_difference(streamed.decode(latent), network.decode(latent)), 1e-12)

    def test_residual_blocks_that_change_the_size_are_refused(self) -> None:
        network = made("kl_plain", 2)
        network.decoder.blocks[1].conv2.conv.padding = (0, 0)
        latent, *_ = latents("kl_plain", network, SIZES[2])
        with self.assertRaises(RuntimeError):
            network.decode(latent)
        with self.assertRaisesRegex(ValueError, "adds 5 x 4 positions to 3 x 2"):
            self.streamed(network).decode(latent)

    def test_one_segmentation_for_all_images(self) -> None:
        network = made("spade", 2)
        latent, segmentation = latents("spade", network, SIZES[2])
        streamed = self.streamed(network, 10**5)
        found = streamed.decode(latent, segmentation[:1])
        self.assertLess(largest_difference(found, network.decode(latent, segmentation[:1])), 1e-12)
        with self.assertRaisesRegex(ValueError, r"batches of \[1, 2\]"):
            streamed.decode(latent[:1], segmentation)

    @parameterized.expand([("decode",), ("encode",), ("reconstruct",)])
    def test_metadata_stays(self, method: str) -> None:
        network = made("spade" if method == "decode" else "kl", 2)
        image, *others = images("spade" if method == "decode" else "kl", SIZES[2])
        given = latents("spade", network, SIZES[2])[0] if method == "decode" else image
        given = MetaTensor(given, affine=2 * torch.eye(4, dtype=torch.float64), meta={"name": "a"})
        with torch.no_grad():
            whole = getattr(network, method)(given, *others)
        found = getattr(self.streamed(network, 10**5), method)(given, *others)
        for one, other in zip(*(each if isinstance(each, tuple) else (each,) for each in (found, whole))):
            self.assertIs(type(one), type(other))
            self.assertEqual(one.meta["name"], "a")
            self.assertTrue(torch.equal(one.affine, other.affine))
            self.assertLess(largest_difference(one, other), 1e-12)

    def test_networks_without_weights(self) -> None:
        with torch.device("meta"):
            network = AUTOENCODERS["kl"](2)
        with self.assertRaisesRegex(ValueError, "no weights yet.*to_empty"):
            self.streamed(network.eval()).decode(torch.zeros(1, 3, 4, 4))

    def test_outputs_have_no_gradient(self) -> None:
        network = made("kl", 2)
        latent, *_ = latents("kl", network, SIZES[2])
        found = self.streamed(network).decode(latent)
        with self.assertRaisesRegex(RuntimeError, "does not require grad"):
            found.sum().backward()

    @parameterized.expand([("cpu",), (None,)])
    def test_attention_in_thin_slabs_stays_within_the_memory(self, storage: str | None) -> None:
        torch.manual_seed(0)
        options: dict[str, Any] = {"num_res_blocks": 1, "attention_levels": (False, True), "norm_num_groups": 4}
        network = AutoencoderKL(2, channels=(8, 8), **options).eval()
        latent = torch.randn(1, 3, 14, 11)
        streamed = self.streamed(network, storage="folder" if storage else None)
        streamed.memory = smallest_memory(streamed, "decode", latent)
        with LiveBytes("aten.from_file") as live:
            streamed.decode(latent)
        self.assertLessEqual(live.most, streamed.memory)

    def test_hooks_that_compute_weights(self) -> None:
        network = made("kl", 2)
        torch.nn.utils.spectral_norm(network.decoder.blocks[0].conv)
        torch.nn.utils.parametrizations.weight_norm(network.decoder.blocks[1].conv1.conv)
        network.eval()
        latent, *_ = latents("kl", network, SIZES[2])
        self.assertLess(largest_difference(self.streamed(network).decode(latent), network.decode(latent)), 1e-12)

    def test_dropout_in_training_is_refused(self) -> None:
        network = made("vqvae", 2)
        network.decoder.blocks.insert(1, nn.Dropout(0.5))
        latent, *_ = latents("vqvae", network.train(), SIZES[2])
        streamed = self.streamed(network)
        with torch.no_grad(), self.assertRaisesRegex(TypeError, "decoder.blocks.1.*training mode.*eval"):
            streamed.decode(latent)
        streamed.eval()
        self.assertLess(largest_difference(streamed.decode(latent), network.decode(latent)), 1e-12)

    def test_gradients_are_refused(self) -> None:
        network = made("kl", 2)
        latent, *_ = latents("kl", network, SIZES[2])
        streamed = self.streamed(network)
        with self.assertRaisesRegex(RuntimeError, "no gradients"):
            streamed.decode(latent.clone().requires_grad_())
        network.train()
        with self.assertRaisesRegex(RuntimeError, r"eval\(\)"):
            streamed.decode(latent)
        with torch.no_grad():
            self.assertFalse(streamed.decode(latent).requires_grad)

    def test_other_numbers_of_axes(self) -> None:
        streamed = self.streamed(made("kl", 2))
        with self.assertRaisesRegex(ValueError, r"4 axes.*\[2, 1, 8, 8, 8\]"):
            streamed.encode(torch.zeros(2, 1, 8, 8, 8, dtype=torch.float64))

    def test_empty_batches(self) -> None:
        streamed = self.streamed(made("kl", 2))
        self.assertEqual(streamed.decode(torch.zeros(0, 3, 4, 4, dtype=torch.float64)).shape, (0, 1, 16, 16))


class TestInPlaceOfTheAutoencoder(unittest.TestCase):
    """What stands around autoencoders works around a streamed one."""

    @parameterized.expand([("kl",), ("spade",), ("maisi",), ("vqvae",)])
    def test_methods(self, name: str) -> None:
        network = made(name, 2)
        streamed = StreamedAutoencoder(network, 10**6)
        image, *others = images(name, SIZES[2])
        latent, *_ = latents(name, network, SIZES[2])
        calls: dict[str, tuple] = {
            "encode_stage_2_inputs": (image,),
            "decode_stage_2_outputs": (latent, *others),
            "forward": (image, *others),
        }
        if name == "vqvae":
            calls["index_quantize"] = (image,)
            calls["decode_samples"] = (network.index_quantize(image),)
        else:
            calls["reconstruct"] = (image, *others)
        for method, inputs in calls.items():
            torch.manual_seed(3)
            expected = getattr(network, method)(*inputs)
            torch.manual_seed(3)  # noise is the same, too
            found = getattr(streamed, method)(*inputs)
            self.assertLess(largest_difference(found, expected), 1e-12, method)

    def test_latent_diffusion(self) -> None:
        network = made("kl", 2, torch.float32)
        streamed = StreamedAutoencoder(network, 10**6)
        model = DiffusionModelUNet(
            2,
            3,
            3,
            num_res_blocks=1,
            channels=(8, 8),
            attention_levels=(False, True),
            norm_num_groups=4,
            num_head_channels=4,
        ).eval()
        scheduler = DDIMScheduler(num_train_timesteps=10)
        scheduler.set_timesteps(2)
        inferer = LatentDiffusionInferer(scheduler, scale_factor=0.5)
        noise = torch.randn(1, 3, 8, 8)
        whole, found = (
            inferer.sample(noise, autoencoder, model, scheduler, verbose=False) for autoencoder in (network, streamed)
        )
        self.assertLess(largest_difference(found, whole), 1e-5)

    def test_is_an_instance_of_its_class(self) -> None:
        streamed = StreamedAutoencoder(made("spade", 2), PLENTY)
        self.assertIsInstance(streamed, SPADEAutoencoderKL)
        self.assertIsInstance(streamed, StreamedAutoencoder)
        self.assertNotIsInstance(streamed, AutoencoderKL)
        self.assertEqual(streamed.decoder.label_nc, 2)
        self.assertTrue(repr(streamed).startswith("StreamedAutoencoder("))

    def test_state_dicts_are_those_of_the_autoencoder(self) -> None:
        network = made("kl", 2)
        streamed = StreamedAutoencoder(network, PLENTY)
        self.assertEqual(list(streamed.state_dict()), list(network.state_dict()))
        other = made("kl", 2)
        nn.init.zeros_(other.encoder.blocks[0].conv.weight)
        streamed.load_state_dict(other.state_dict())
        self.assertEqual(float(network.encoder.blocks[0].conv.weight.abs().max()), 0)
        nested = nn.ModuleDict({"autoencoder": streamed})
        self.assertIn("autoencoder.encoder.blocks.0.conv.weight", nested.state_dict())
        nested.load_state_dict(nested.state_dict())

    def test_checkpoints_are_loaded_into_the_autoencoder(self) -> None:
        options, old = kept_autoencoder()
        expected = AutoencoderKL(**options)
        expected.load_state_dict(old)
        with tempfile.TemporaryDirectory() as folder:
            torch.save(old, path := os.path.join(folder, "old.pt"))
            loads: dict[str, Any] = {
                "load_checkpoint": lambda net: load_checkpoint(net, path),
                "around_it": lambda net: load_checkpoint(nn.DataParallel(net), path),
                "load_state_dict": lambda net: net.load_state_dict(old),
                "load_old_state_dict": lambda net: net.load_old_state_dict(old),
                "nested": lambda net: nn.ModuleDict({"a": net}).load_state_dict({f"a.{key}": old[key] for key in old}),
            }
            network = AutoencoderKL(**options)
            for name, load in loads.items():
                for parameter in network.parameters():
                    nn.init.zeros_(parameter)
                load(StreamedAutoencoder(network, PLENTY))
                for key, value in expected.state_dict().items():
                    self.assertTrue(torch.equal(value, network.state_dict()[key]), (name, key))

    def test_a_refused_checkpoint_changes_nothing(self) -> None:
        network = made("kl", 2)
        before = {key: value.clone() for key, value in network.state_dict().items()}
        other = {key: torch.zeros_like(value) for key, value in before.items() if key != "encoder.blocks.0.conv.bias"}
        with self.assertRaisesRegex(RuntimeError, 'Missing.*"encoder.blocks'):
            StreamedAutoencoder(network, PLENTY).load_state_dict(other)
        for key, value in network.state_dict().items():
            self.assertTrue(torch.equal(value, before[key]), key)

    @parameterized.expand([("copy", copy.deepcopy), ("pickle", lambda each: pickle.loads(pickle.dumps(each)))])
    def test_copies(self, _: str, copied: Any) -> None:
        streamed = StreamedAutoencoder(made("kl", 2), 10**6, None, True)
        other = copied(streamed)
        self.assertIs(type(other), StreamedAutoencoder)
        self.assertIsNot(other.autoencoder, streamed.autoencoder)
        self.assertEqual((other.memory, other.storage, other.progress), (10**6, None, True))

    def test_compiled_autoencoders_are_streamed(self) -> None:
        network = made("kl", 2)
        latent, *_ = latents("kl", network, SIZES[2])
        with self.assertRaises(MemoryTooSmall):
            StreamedAutoencoder(torch.compile(network), 1).decode(latent)

    def test_a_subclass_with_its_own_methods(self) -> None:
        class Scaling(AutoencoderKL):
            def decode(self, z: torch.Tensor) -> torch.Tensor:
                return super().decode(z / 2)

            def decode_twice(self, z: torch.Tensor) -> torch.Tensor:
                return 2 * self.decode(z)

        network = made("kl", 2)
        network.__class__ = Scaling
        latent, *_ = latents("kl", network, SIZES[2])
        streamed = StreamedAutoencoder(network, 10**6)
        self.assertLess(largest_difference(streamed.decode(latent), network.decode(latent)), 1e-12)
        self.assertLess(largest_difference(streamed.decode_twice(latent), network.decode_twice(latent)), 1e-12)
        streamed.memory = 1
        with self.assertRaises(MemoryTooSmall):
            streamed.decode_twice(latent)

    def test_methods_of_the_object_are_told_to_compute_whole(self) -> None:
        network = made("kl_plain", 2)
        latent, *_ = latents("kl_plain", network, SIZES[2])
        written = network.decode
        network.decode = lambda z: written(z / 2)
        network.decode_more = lambda z: written(z)
        streamed = StreamedAutoencoder(network, 10**6)
        with self.assertWarnsRegex(UserWarning, "^decode of AutoencoderKL .*whole.*subclass") as told:
            found = streamed.decode(latent)
        self.assertEqual(told.filename, __file__)
        self.assertTrue(torch.equal(found, written(latent / 2)))
        with self.assertWarnsRegex(UserWarning, "^decode_more of"):
            streamed.decode_more(latent)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            streamed.decode_stage_2_outputs(latent)  # once is enough
            streamed.encode(images("kl_plain", SIZES[2])[0])

    def test_what_a_method_sets_stays(self) -> None:
        class Counting(AutoencoderKL):
            def decode(self, z: torch.Tensor) -> torch.Tensor:
                self.calls = getattr(self, "calls", 0) + 1
                self.last = nn.Identity()
                self.__dict__.pop("fresh", None)
                return super().decode(z)

        network = made("kl", 2)
        network.__class__, network.fresh = Counting, True
        latent, *_ = latents("kl", network, SIZES[2])
        decoder, streamed = network.decoder, StreamedAutoencoder(network, 10**6)
        streamed.decode(latent)
        streamed.decode(latent)
        self.assertEqual((network.calls, streamed.calls), (2, 2))
        self.assertIsInstance(network.last, nn.Identity)
        self.assertFalse(hasattr(network, "fresh"))
        self.assertIs(network.decoder, decoder)

    def test_a_bundle_names_it(self) -> None:
        config = {
            "autoencoder": {
                "_target_": "AutoencoderKL",
                "spatial_dims": 2,
                "channels": [8, 8],
                "num_res_blocks": 1,
                "attention_levels": [False, False],
                "norm_num_groups": 4,
            },
            "network": {
                "_target_": "monai.networks.volumes.StreamedAutoencoder",
                "autoencoder": "@autoencoder",
                "memory": "$2**20",
            },
        }
        streamed = ConfigParser(config).get_parsed_content("network")
        self.assertEqual(streamed.eval().decode(torch.zeros(1, 3, 4, 4)).shape, (1, 1, 8, 8))


if __name__ == "__main__":
    unittest.main()
