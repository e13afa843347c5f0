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

"""Networks on slabs of a volume against one process: outputs, and the gradients of inputs and weights."""

from __future__ import annotations

import unittest
from functools import partial
from typing import Any

import pytest
import torch.distributed as dist
from parameterized import parameterized

from tests.networks.volumes.split_cases import CASES
from tests.networks.volumes.split_ranks import compared, run_checks

QUICK = ("maisi_decode_uneven", "spade_reconstruct", "vqvae_training", "unet_context", "vit_classes")
REST = tuple(name for name in CASES if name not in QUICK)
TOLERANCE = 1e-12


class OnRanks(unittest.TestCase):
    """What the ranks found, asked case by case."""

    ranks, names = 2, ()
    found: list[dict[str, Any]]

    @classmethod
    def setUpClass(cls):
        cls.found = run_checks(cls.ranks, {name: partial(compared, name) for name in cls.names})

    def check(self, name):
        for found in self.found:
            self.assertIsInstance(found[name], dict, found[name])
            for what, apart in found[name].items():
                self.assertLessEqual(apart, TOLERANCE, what)


@unittest.skipUnless(dist.is_available() and dist.is_gloo_available(), "this torch is built without gloo")
class TestQuick(OnRanks):
    names = QUICK

    @parameterized.expand([(name,) for name in QUICK])
    def test_equals_one_process(self, name):
        self.check(name)


@pytest.mark.distributed
@pytest.mark.grid
@unittest.skipUnless(dist.is_available() and dist.is_gloo_available(), "this torch is built without gloo")
class TestTwoRanks(OnRanks):
    names = REST

    @parameterized.expand([(name,) for name in REST])
    def test_equals_one_process(self, name):
        self.check(name)


@pytest.mark.distributed
@pytest.mark.grid
@unittest.skipUnless(dist.is_available() and dist.is_gloo_available(), "this torch is built without gloo")
class TestFourRanks(OnRanks):
    ranks, names = 4, tuple(CASES)

    @parameterized.expand([(name,) for name in CASES])
    def test_equals_one_process(self, name):
        self.check(name)


if __name__ == "__main__":
    unittest.main()
