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

"""Whole diffusion networks that the release saved by ``torch.save(net)``: they run here as they ran there."""

from __future__ import annotations

import copy
import subprocess
import sys
import tempfile
import unittest
from typing import Any

import torch
from parameterized import parameterized

from fork.referee import release_environment
from tests.differences import max_difference
from tests.dropin import test_diffusion

torch.set_num_threads(1)
WRITE = """
import sys, torch, test_diffusion
for number, (cls, _) in enumerate(test_diffusion.NETWORKS):
    for kind, options in enumerate(({"resblock_updown": True}, test_diffusion.CONTEXT)):
        net = test_diffusion.build(cls, **options)
        with torch.no_grad():
            torch.save((net, net(**test_diffusion.steered(net))), f"{sys.argv[1]}/{number}{kind}.pt")
"""
CASES = [(number, kind) for number in range(len(test_diffusion.NETWORKS)) for kind in range(2)]


class TestPickledByTheRelease(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        command = [sys.executable, "-W", "ignore", "-c", WRITE, cls.folder.name]
        subprocess.run(command, cwd=test_diffusion.__file__.rpartition("/")[0], env=release_environment(), check=True)

    def load(self, number: int, kind: int) -> tuple[Any, Any]:
        return torch.load(f"{self.folder.name}/{number}{kind}.pt", weights_only=False)

    @parameterized.expand(CASES)
    def test_runs_as_it_ran(self, number, kind):
        net, expected = self.load(number, kind)
        values = test_diffusion.steered(net)
        with torch.no_grad():
            for again in (net, copy.deepcopy(net)):
                self.assertLessEqual(max_difference(again(**values), expected), 1e-5)

    @parameterized.expand([(number, 0) for number, _ in CASES[::2]])
    def test_scripts(self, number, kind):
        net, expected = self.load(number, kind)
        with torch.no_grad():
            self.assertLessEqual(max_difference(torch.jit.script(net)(**test_diffusion.steered(net)), expected), 1e-5)

    @parameterized.expand(CASES)
    def test_its_state_goes_into_a_network_of_the_fork(self, number, kind):
        net, expected = self.load(number, kind)
        fresh = test_diffusion.build(type(net), **({"resblock_updown": True}, test_diffusion.CONTEXT)[kind])
        fresh.load_state_dict(net.state_dict())
        net.load_state_dict(fresh.state_dict())
        with torch.no_grad():
            self.assertLessEqual(max_difference(fresh(**test_diffusion.steered(fresh)), expected), 1e-5)

    def test_a_mask_of_the_context(self):
        net, _ = self.load(0, 1)
        values, mask = test_diffusion.steered(net), torch.tensor([[1, 1, 0]])
        out = net(**values, context_mask=mask)
        values["context"] = values["context"][:, :2]
        self.assertLessEqual(max_difference(out, net(**values)), 1e-5)


if __name__ == "__main__":
    unittest.main()
