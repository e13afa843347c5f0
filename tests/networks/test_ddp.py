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

"""Networks in DistributedDataParallel: two processes, three optimizer steps, no search for unused parameters."""

from __future__ import annotations

import tempfile
import traceback
import unittest
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn as nn
from parameterized import parameterized
from torch.nn.parallel import DistributedDataParallel

from monai.networks.nets import UNETR, DecoderOnlyTransformer, MaskedAutoEncoderViT, ViT
from tests.processes import run_ranks

VIT = {"in_channels": 1, "hidden_size": 24, "mlp_dim": 32, "num_heads": 4, "spatial_dims": 2}
TOKENS = {
    "num_tokens": 7,
    "max_seq_len": 9,
    "attn_layers_dim": 24,
    "attn_layers_depth": 2,
    "attn_layers_heads": 4,
}
ROWS = {
    "vit": (ViT, {**VIT, "img_size": 16, "patch_size": 8, "num_layers": 2, "classification": True}),
    "unetr": (UNETR, {**VIT, "img_size": 32, "out_channels": 2, "feature_size": 4}),
    "mae": (
        MaskedAutoEncoderViT,
        {**VIT, "img_size": 16, "patch_size": 4, "num_layers": 2, "decoder_hidden_size": 12, "decoder_num_heads": 2},
    ),
    "decoder": (DecoderOnlyTransformer, TOKENS),
    "decoder_context": (DecoderOnlyTransformer, {**TOKENS, "with_cross_attention": True}),
    "decoder_bare": (DecoderOnlyTransformer, {**TOKENS, "with_cross_attention": True, "use_proj_attn": False}),
}
RANKS, STEPS = 2, 3


def arguments_of(name: str) -> tuple:
    cls, kwargs = ROWS[name]
    if cls is not DecoderOnlyTransformer:
        return (torch.randn(2, 1, kwargs["img_size"], kwargs["img_size"]),)
    x = torch.randint(0, kwargs["num_tokens"], (2, 6))
    return (x, torch.randn(2, 5, kwargs["attn_layers_dim"])) if kwargs.get("with_cross_attention") else (x,)


def weights(net: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def train(name: str, rank: int) -> dict:
    """Weights before and after the steps, and the loss of each, of one rank; its data are its own."""
    cls, kwargs = ROWS[name]
    torch.manual_seed(0)
    net = cls(**kwargs)
    before = weights(net)
    wrapped = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    losses = []
    torch.manual_seed(10 + rank)
    for _ in range(STEPS):
        optimizer.zero_grad()
        out = wrapped(*arguments_of(name))
        loss = (out[0] if isinstance(out, tuple) else out).pow(2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return {"before": before, "after": weights(net), "losses": losses}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    results: dict[str, dict] = {}
    for name in ROWS:
        try:
            results[name] = train(name, rank)
        except RuntimeError:
            results[name] = {"error": traceback.format_exc()}
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.distributed
@unittest.skipUnless(dist.is_available() and dist.is_gloo_available(), "this torch is built without gloo")
class TestDistributedDataParallel(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with tempfile.TemporaryDirectory() as folder:
            run_ranks(work, RANKS, folder)
            cls.results = [torch.load(Path(folder, f"{rank}.pt")) for rank in range(RANKS)]

    @parameterized.expand([(name,) for name in ROWS])
    def test_ranks_stay_equal(self, name):
        first, second = (result[name] for result in self.results)
        self.assertNotIn("error", first, first.get("error"))
        self.assertEqual(len(first["losses"]), STEPS)
        self.assertNotEqual(first["losses"], second["losses"])
        self.assertTrue(torch.equal(first["after"], second["after"]))
        self.assertGreater(float((first["after"] - first["before"]).abs().max()), 1e-5)


if __name__ == "__main__":
    unittest.main()
