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

"""Checkpoint files of every format, read and loaded, and what MONAI's own loaders make of old ones."""

from __future__ import annotations

import argparse
import collections
import datetime
import gc
import json
import pathlib
import re
import sys
import types
import unittest
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
import torch.nn as nn
from parameterized import parameterized

from monai.data import MetaTensor
from monai.networks.checkpoints import CheckpointFacts, distributed, load_checkpoint, networks_in, read_checkpoint
from monai.networks.checkpoints.safetensors import write_safetensors
from monai.networks.nets import DiffusionModelUNet, ViT
from monai.utils import TraceKeys
from tests.networks.checkpoints import sharded
from tests.networks.checkpoints.file_case import FileCase

torch.set_num_threads(1)

VIT = {"in_channels": 1, "img_size": 16, "patch_size": 8, "hidden_size": 12, "mlp_dim": 24, "num_heads": 2}

VIT |= {"num_layers": 2, "spatial_dims": 2}

UNET = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "num_res_blocks": 1, "channels": (8, 8)}

UNET |= {"attention_levels": (False, True), "norm_num_groups": 4, "num_head_channels": 4, "include_fc": False}


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)).eval()


def save_folder(content, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(content, checkpoint_id=path)


def own_memory() -> int:
    """Bytes that belong to this process alone and to no file."""
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def own_memory_of_reading(path: Path) -> int:
    """How many more bytes belong to this process once each tensor of a file has been read to the end."""
    gc.collect()
    before = own_memory()
    tensors = read_checkpoint(path).state_dict
    for tensor in tensors.values():
        sum(float(row.sum()) for row in tensor)
    return own_memory() - before


FORMATS = {
    "torch zip": lambda net, path: torch.save(net.state_dict(), path),
    "torch legacy": lambda net, path: torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False),
    "safetensors": lambda net, path: write_safetensors(path, net.state_dict()),
    "distributed folder": lambda net, path: save_folder(net.state_dict(), path),
}


class TestFormats(FileCase):
    @parameterized.expand(
        [(container, name) for container in FORMATS for name in ("a.pt", "b.safetensors", "c", "d.zip")]
    )
    def test_told_by_the_content(self, container, name):
        """Whatever the file is called; the keys may come in another order."""
        net, path = small(), self.folder / name
        FORMATS[container](net, path)
        found = read_checkpoint(str(path))
        self.assertEqual((found.container, found.path, found.wrappers), (container, path, ()))
        self.assert_same(dict(sorted(found.state_dict.items())), dict(sorted(net.state_dict().items())))
        other = small()
        self.assertEqual(load_checkpoint(other, path).container, container)
        x = torch.ones(1, 1, 5, 5)
        self.assertTrue(torch.equal(other(x), net(x)))

    @parameterized.expand([(0x80,), (0x8B1F,), (0x4B50,), (0x0A0D,)])
    def test_lengths_that_look_like_another_format(self, length):
        """A safetensors file begins with a length, here that of pickles, gzip and zip archives, and text."""
        name = "n" * (length - len(json.dumps({"": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})))
        header = json.dumps({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
        self.assertEqual(len(header), length)
        self.path.write_bytes(length.to_bytes(8, "little") + header + bytes(4))
        self.assertEqual(list(read_checkpoint(self.path).state_dict), [name])

    @parameterized.expand([("torch zip",), ("safetensors",)])
    def test_mapped_tensors(self, container):
        """They show what the file holds when they are looked at, and writing to them leaves it."""
        net = nn.Linear(1 << 10, 1 << 8)
        FORMATS[container](net, self.path)
        before = self.path.read_bytes()
        first, second = (read_checkpoint(self.path).state_dict["weight"] for _ in range(2))
        first.fill_(3.0)
        self.assertEqual(self.path.read_bytes(), before)
        place = before.index(net.weight.detach().numpy().tobytes())
        with self.path.open("r+b") as file:
            file.seek(place)
            file.write(np.float32(7).tobytes())
        self.assertEqual((float(first[0, 0]), float(second[0, 0])), (3.0, 7.0))

    def test_what_the_process_maps_otherwise(self):
        """Even where torch is told to share mappings, a file is not changed by way of its tensors."""
        FORMATS["torch zip"](nn.Linear(4, 4), self.path)
        before = self.path.read_bytes()
        with torch.serialization.set_default_mmap_options(__import__("mmap").MAP_SHARED):
            read_checkpoint(self.path).state_dict["weight"].fill_(3.0)
        self.assertEqual(self.path.read_bytes(), before)

    @unittest.skipUnless(sys.platform == "linux", "reads /proc to tell a process's own memory from mapped files")
    @parameterized.expand([("torch zip",), ("safetensors",)])
    def test_memory(self, container):
        """Of 64 MB that are read to the last byte, the process owns next to nothing."""
        FORMATS[container](nn.Linear(1 << 12, 1 << 12), self.path)
        FORMATS[container](nn.Linear(8, 8), self.folder / "warm")
        own_memory_of_reading(self.folder / "warm")
        self.assertLess(own_memory_of_reading(self.path), 16 << 20)


class TestHarmlessObjects(FileCase):
    def test_of_trainers(self):
        """What weights_only refuses and trainers save: numbers of numpy, paths, namespaces, times."""
        net = small()
        content = {
            "net": net.state_dict(),
            "scale_factor": np.float32(0.25),
            "numpy": [np.float64(1.5), np.int64(3), np.bool_(True), np.ones(3), np.dtype(">f4"), np.complex64(1j)],
            "args": argparse.Namespace(lr=0.1, path=pathlib.Path("/data"), more=types.SimpleNamespace(a=1)),
            "history": collections.defaultdict(list, loss=[0.1]),
            "counts": collections.Counter("aab"),
            "time": datetime.datetime.now(),
            "torch": torch.__version__,
            "key": TraceKeys.CLASS_NAME,
        }
        torch.save(content, self.path)
        with self.assertRaisesRegex(Exception, "weights_only|Weights only"):
            torch.load(self.path, weights_only=True)
        found = read_checkpoint(self.path)
        self.assert_same(found.state_dict, net.state_dict())
        self.assertEqual(found.scale_factor, 0.25)

    @parameterized.expand(
        [(np.float16(0.5),), (np.dtype(">f8").type(0.5),), (np.array([0.5], ">f4")[0],), (np.int8(2),)]
    )
    def test_numbers_of_numpy(self, value):
        torch.save({"net": small().state_dict(), "scale_factor": value}, self.path)
        self.assertEqual(read_checkpoint(self.path).scale_factor, float(value))

    def test_classes_are_not_imported(self):
        """A configuration of omegaconf's, without the package; its stand-in runs nothing."""
        module = types.ModuleType("omegaconf.dictconfig")
        calls: list = []

        class DictConfig:
            def __setstate__(self, state):
                calls.append(state)

        DictConfig.__module__, DictConfig.__qualname__ = module.__name__, "DictConfig"
        module.DictConfig = DictConfig
        config = DictConfig()
        config.content = {"lr": 0.1}
        with mock.patch.dict(sys.modules, {"omegaconf": types.ModuleType("omegaconf"), module.__name__: module}):
            torch.save({"net": small().state_dict(), "config": config}, self.path)
            self.assertEqual(networks_in(self.path), ["net"])
        self.assertEqual(networks_in(self.path), ["net"])
        self.assertEqual(calls, [])
        self.assertNotIn("omegaconf", sys.modules)

    def test_meta_tensors(self):
        """They come out as plain tensors."""
        torch.save({"a.weight": MetaTensor(torch.ones(2, 2)), "a.bias": torch.ones(2)}, self.path)
        found = read_checkpoint(self.path).state_dict
        self.assertEqual({type(value) for value in found.values()}, {torch.Tensor})

    def test_what_the_user_trusts_stays_trusted(self):
        torch.save({"net": small().state_dict(), "args": argparse.Namespace(lr=0.1)}, self.path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            read_checkpoint(self.path)
            self.assertIn(argparse.Namespace, torch.serialization.get_safe_globals())
        self.assertNotIn(argparse.Namespace, torch.serialization.get_safe_globals())
        before = torch.serialization.get_safe_globals()
        read_checkpoint(self.path)
        self.assertEqual(set(torch.serialization.get_safe_globals()), set(before))


class TestFolders(FileCase):
    def test_a_training(self):
        """Nested dictionaries come back, the optimizer is no network, and a layout in memory is kept."""
        net = small().to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(net.parameters())
        net(torch.ones(2, 1, 5, 5)).sum().backward()
        optimizer.step()
        save_folder(
            {
                "unet_state_dict": net.state_dict(),
                "opt": optimizer.state_dict(),
                "scale_factor": torch.tensor(0.5),
                "epoch": 3,
            },
            self.path,
        )
        self.assertEqual(networks_in(self.path), ["unet_state_dict"])
        found = read_checkpoint(self.path)
        self.assertEqual((found.wrappers, found.scale_factor), (("unet_state_dict",), 0.5))
        self.assert_same(found.state_dict, net.state_dict())
        self.assertEqual(found.state_dict["0.weight"].stride(), net[0].weight.stride())

    def test_only_the_chosen_network_is_read(self):
        save_folder({"a": nn.Linear(2, 3).state_dict(), "b": nn.Linear(5, 7).state_dict()}, self.path)
        with mock.patch.object(distributed, "read_archive", wraps=distributed.read_archive) as read:
            self.assertEqual(networks_in(self.path), ["a", "b"])
            read.assert_not_called()
            found = read_checkpoint(self.path, net=nn.Linear(5, 7))
            self.assertEqual(read.call_count, 2)
        self.assertEqual(found.wrappers, ("b",))

    @pytest.mark.distributed
    def test_two_processes(self):
        """Pieces of uneven size, along the last dimension."""
        context = mp.spawn(sharded.write, (str(self.folder / "store"), str(self.path)), nprocs=2, join=False)
        self.assertTrue(context.join(timeout=120) or context.join(timeout=1))
        self.assertEqual(len(list(self.path.glob("*.distcp"))), 2)
        found = read_checkpoint(self.path, net=sharded.source())
        self.assert_same(dict(sorted(found.state_dict.items())), dict(sorted(sharded.source().state_dict().items())))


class TestLoading(FileCase):
    @parameterized.expand([("network", lambda net: net), ("inside_of_a_module", lambda net: nn.Sequential(net))])
    def test_facts(self, _, wrap):
        """They reach a network wherever it lies; here they tell that a projection was never used, and so its values."""
        kwargs = {**UNET, "include_fc": None}
        source = DiffusionModelUNet(**kwargs, use_proj_attn=False)
        state = source.state_dict()
        for key in [key for key in state if key.endswith("attn.to_q.weight")]:
            stem, width = key.removesuffix("to_q.weight"), len(state[key])
            state[f"{stem}out_proj.weight"], state[f"{stem}out_proj.bias"] = torch.ones(width, width), torch.ones(width)
        torch.save(
            {("0." if isinstance(wrap(source), nn.Sequential) else "") + k: v for k, v in state.items()}, self.path
        )
        net = wrap(DiffusionModelUNet(**kwargs, use_proj_attn=False))
        with self.assertRaisesRegex(RuntimeError, "out_proj"):
            load_checkpoint(net, self.path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load_checkpoint(net, self.path, facts=CheckpointFacts(projection_used=False))
        self.assert_same(net.state_dict(), wrap(source).state_dict())
        with self.assertRaisesRegex(ValueError, "projection_used=False.*need strict=True"):
            load_checkpoint(net, self.path, facts=CheckpointFacts(projection_used=False), strict=False)

    def test_not_strict(self):
        torch.save(nn.Sequential(nn.Linear(2, 2)).state_dict(), self.path)
        net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        with self.assertRaisesRegex(RuntimeError, "Missing key"):
            load_checkpoint(net, self.path)
        load_checkpoint(net, self.path, strict=False)
        self.assertTrue(torch.equal(net[0].weight, torch.load(self.path)["0.weight"]))
        vit = ViT(**VIT)
        torch.save({"net": {"norm.weight": torch.full((12,), 5.0), "norm.other": torch.ones(2, 2)}}, self.path)
        load_checkpoint(vit, self.path, strict=False)
        self.assertEqual(float(vit.norm.weight.detach().min()), 5.0)


if __name__ == "__main__":
    unittest.main()
