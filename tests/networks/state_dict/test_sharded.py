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

"""Older checkpoints into networks whose parameters are spread over one process, or over two."""

from __future__ import annotations

import tempfile
import traceback
import unittest
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn as nn
from parameterized import parameterized

from monai.networks import load_checkpoint
from monai.networks.nets import AutoencoderKL, ViT
from monai.networks.state_dict.sharded import is_sharded
from tests.processes import run_ranks

VIT = {"in_channels": 1, "img_size": 16, "patch_size": 8, "hidden_size": 24, "mlp_dim": 32, "num_layers": 2}
AUTOENCODER = {"spatial_dims": 2, "channels": (8, 8), "num_res_blocks": 1, "norm_num_groups": 4}


def vit(**options) -> ViT:
    return ViT(**VIT, num_heads=4, spatial_dims=2, **options)


def autoencoder(**options) -> AutoencoderKL:
    return AutoencoderKL(**AUTOENCODER, attention_levels=(False, True), with_encoder_nonlocal_attn=False, **options)


def without_projections() -> tuple[ViT, dict[str, torch.Tensor]]:
    """A ViT as older releases write it: no projection, no norm for a cross attention that is not there."""
    net = vit(use_proj_attn=False)
    return net, {key: value for key, value in net.state_dict().items() if "norm_cross_attn" not in key}


def generative_models() -> tuple[AutoencoderKL, dict[str, torch.Tensor]]:
    """An AutoencoderKL as GenerativeModels writes it: with projections that no output depends on."""
    net = autoencoder(use_proj_attn=False)
    state = {key.replace(".attn.", "."): value for key, value in net.state_dict().items()}
    projections = {
        key.replace("to_q", "proj_attn"): torch.randn_like(value) for key, value in state.items() if ".to_q." in key
    }
    return net, {**state, **projections}


OLD = {"vit": (vit, without_projections), "autoencoder": (autoencoder, generative_models)}


def sharded(net: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in reversed([module for module in net.modules() if hasattr(module, "out_proj")]):
        fully_shard(module, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def full(net: nn.Module) -> dict[str, torch.Tensor]:
    """All of a network's state, on every process."""
    return {key: (v.full_tensor() if hasattr(v, "full_tensor") else v).clone() for key, v in net.state_dict().items()}


def expected(name: str, folder: str) -> dict[str, torch.Tensor]:
    """What a network on one device loads from the same file."""
    net = OLD[name][0]()
    load_checkpoint(net, f"{folder}/{name}.pt")
    return net.state_dict()


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """The keys of what differs; of a norm that no output depends on, any value will do."""
    return [key for key in one if "norm_cross_attn" not in key and not torch.equal(one[key], other[key])]


def loaded(name: str, folder: str) -> list[str]:
    """The keys at which a network that is sharded before it loads differs from one that is not sharded."""
    net = sharded(OLD[name][0]())
    load_checkpoint(net, f"{folder}/{name}.pt")
    return apart(full(net), expected(name, folder))


def loaded_on_meta(name: str, folder: str) -> list[str]:
    """The same, for a network whose shards get their memory before they get values."""
    with torch.device("meta"):
        net = OLD[name][0]()
    net = sharded(net)
    net.to_empty(device="cpu")
    load_checkpoint(net, f"{folder}/{name}.pt")
    return apart(full(net), expected(name, folder))


def refused(name: str, folder: str) -> list[str]:
    """What a sharded network says to half a file; a key that changed comes after it."""
    net = sharded(OLD[name][0]())
    before = full(net)
    try:
        load_checkpoint(net, f"{folder}/{name}_half.pt")
    except RuntimeError as error:
        return [str(error), *apart(full(net), before)]
    return ["loaded"]


def loaded_in_part(name: str, folder: str) -> list[str]:
    """The keys that a load of half a file changes where nobody asks for all of it."""
    net = sharded(OLD[name][0]())
    before = full(net)
    load_checkpoint(net, f"{folder}/{name}_half.pt", strict=False)
    return apart(full(net), before)


JOBS = {job.__name__: job for job in (loaded, loaded_on_meta, refused, loaded_in_part)}


def work(rank: int, ranks: int, folder: str) -> None:
    """Do every job, and write what each says."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{ranks}", rank=rank, world_size=ranks)
    said = {}
    for job in JOBS:
        for name in OLD:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    said[job, name] = JOBS[job](name, folder)
            except Exception:
                said[job, name] = [traceback.format_exc()]
    torch.save(said, f"{folder}/{ranks}_{rank}.pt")
    dist.destroy_process_group()


def run(ranks: int, folder: str) -> list[dict]:
    run_ranks(work, ranks, ranks, folder)
    return [torch.load(Path(folder, f"{ranks}_{rank}.pt")) for rank in range(ranks)]


@pytest.mark.distributed
@unittest.skipUnless(dist.is_available() and dist.is_gloo_available(), "this torch is built without gloo")
class TestSharded(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            for name, (_, write) in OLD.items():
                _, state = write()
                torch.save(state, f"{folder}/{name}.pt")
                torch.save(dict(list(state.items())[: len(state) // 2]), f"{folder}/{name}_half.pt")
            cls.said = {ranks: run(ranks, folder) for ranks in (1, 2)}

    def test_is_sharded(self):
        self.assertFalse(is_sharded(vit()))

    @parameterized.expand(
        [(ranks, job, name) for ranks in (1, 2) for job in ("loaded", "loaded_on_meta") for name in OLD]
    )
    def test_equals_one_device(self, ranks, job, name):
        for said in self.said[ranks]:
            self.assertEqual(said[job, name], [])

    @parameterized.expand([(ranks, name) for ranks in (1, 2) for name in OLD])
    def test_half_a_file(self, ranks, name):
        for said in self.said[ranks]:
            message, *changed = said["refused", name]
            self.assertIn("Missing key(s)", message)
            self.assertEqual(changed, [])
            changed = said["loaded_in_part", name]
            self.assertGreater(len(changed), 0)
            self.assertFalse([key for key in changed if "out_proj" in key or "\n" in key])


if __name__ == "__main__":
    unittest.main()
