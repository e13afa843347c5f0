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

"""Whole networks that the release saved by ``torch.save(net)``: they run here as they ran there."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import torch
from parameterized import parameterized

from fork.referee import release_environment
from tests.differences import max_difference
from tests.dropin import test_autoencoders, test_vit

torch.set_num_threads(1)
DROPIN = Path(test_vit.__file__).parent
FAMILIES = [(f"vit_{case[0]}", "test_vit", number) for number, case in enumerate(test_vit.NETWORKS)]
FAMILIES += [(f"autoencoder_{case[0]}", "test_autoencoders", n) for n, case in enumerate(test_autoencoders.NETWORKS)]
WRITE = """
import sys, torch, test_vit, test_autoencoders
for module in (test_vit, test_autoencoders):
    for number, (name, cls, kwargs, *size) in enumerate(module.NETWORKS):
        net = module.build(cls, kwargs)
        out = module.run(net, module.image(*size[0])) if size else module.run(net)
        torch.save((net, out), f"{sys.argv[1]}/{module.__name__}{number}.pt")
"""


class TestPickledByTheRelease(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        command = [sys.executable, "-W", "ignore", "-c", WRITE, cls.folder.name]
        subprocess.run(command, cwd=DROPIN, env=release_environment(), check=True)

    @parameterized.expand(FAMILIES)
    def test_runs_as_it_ran(self, _, module, number):
        net, expected = torch.load(f"{self.folder.name}/{module}{number}.pt", weights_only=False)
        if module == "test_vit":
            x = test_vit.image(*test_vit.NETWORKS[number][3])
            out = test_vit.run(net, x)
        else:
            x, out = test_autoencoders.inputs(net)[0], test_autoencoders.run(net)
        self.assertLessEqual(max_difference(out, expected), 1e-5)
        net.load_state_dict(net.state_dict())
        torch.jit.script(net)
        if hasattr(net, "patch_embedding"):
            with self.assertRaisesRegex(ValueError, r"1 tokens.*patches of \[4, 4\]"):
                net(x[:, :, :4, :4])


if __name__ == "__main__":
    unittest.main()
