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

"""Split networks whose backward pass computes activations again: results, and what the ranks send."""

from __future__ import annotations

import copy
import unittest
from functools import partial
from typing import Any

import pytest
import torch.distributed as dist
from parameterized import parameterized

from monai.networks.volumes import split_volume
from monai.networks.volumes.split_layers import Split
from tests.networks.volumes.split_cases import CASES, randomized
from tests.networks.volumes.split_ranks import compared, recompute, run_checks
from tests.networks.volumes.test_split_networks import OnRanks

COUNTED = ("maisi_encode", "kl_reconstruct", "vqvae_training", "unet_context", "vit", "unetr")


def sent(mesh: Any, name: str) -> str:
    """
    What is wrong with the collectives of a network that is recomputed, beside the same one that keeps activations.

    The forward pass sends as many, and the backward pass those of the forward pass of its blocks once more. A
    layer that no call of the network surrounds lets the ranks agree on its input.
    """
    case, calls, layers = CASES[name], [], 0
    plain = randomized(case.build()).train(case.train)
    for recomputing in (False, True):
        net = copy.deepcopy(plain)
        volume = split_volume(net, mesh, case.axis)
        if recomputing:
            blocks = recompute(net)
            layers = sum(isinstance(layer, Split) for block in blocks for layer in block.modules())
        slabs = [volume.scatter(x, case.latent, zoom).requires_grad_() for x, zoom in zip(case.inputs(), case.zooms)]
        with volume.counted() as forward:
            out = case.call(net, *slabs)
        with volume.counted() as backward:
            (out if hasattr(out, "sum") else out[0]).sum().backward()
        calls.append((forward.calls_by_kind, backward.calls_by_kind))
    everywhere: list[Any] = [None] * mesh.size()
    dist.all_gather_object(everywhere, calls)
    (forward, backward), (forward_again, backward_again) = calls
    more = backward_again - backward
    agreed = more.pop("shapes", 0)
    if any(each != calls for each in everywhere):
        return f"ranks send other numbers: {everywhere}"
    if forward != forward_again or backward - backward_again or not more or more - forward or agreed > layers:
        return f"kept {forward} and {backward}, recomputed {forward_again} and {backward_again}"
    return "right"


@pytest.mark.distributed
@pytest.mark.grid
@unittest.skipUnless(dist.is_available() and dist.is_gloo_available(), "this torch is built without gloo")
class TestRecomputed(OnRanks):
    @classmethod
    def setUpClass(cls):
        checks: dict[str, Any] = {name: partial(compared, name, recomputing=True) for name in CASES}
        cls.found = run_checks(cls.ranks, {**checks, **{f"{name} sent": partial(sent, name=name) for name in COUNTED}})

    @parameterized.expand([(name,) for name in CASES])
    def test_equals_one_process(self, name):
        self.check(name)

    @parameterized.expand([(name,) for name in COUNTED])
    def test_collectives(self, name):
        for found in self.found:
            self.assertEqual(found[f"{name} sent"], "right")


@pytest.mark.distributed
@pytest.mark.grid
@unittest.skipUnless(dist.is_available() and dist.is_gloo_available(), "this torch is built without gloo")
class TestRecomputedOnFour(OnRanks):
    @classmethod
    def setUpClass(cls):
        cls.found = run_checks(4, {name: partial(compared, name, recomputing=True) for name in COUNTED}, limit=600)

    @parameterized.expand([(name,) for name in COUNTED])
    def test_equals_one_process(self, name):
        self.check(name)


if __name__ == "__main__":
    unittest.main()
