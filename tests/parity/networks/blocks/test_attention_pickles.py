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

"""Whole blocks that the release pickled: they run here, or are refused with the remedy."""

from __future__ import annotations

import copy
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import torch
from parameterized import parameterized

from fork.referee import release_environment
from monai.networks.blocks import CrossAttentionBlock, SABlock
from tests.differences import max_difference

torch.set_num_threads(1)
GRID = {"rel_pos_embedding": "decomposed", "input_size": (3, 4)}
BLOCKS = {
    "plain": ("SABlock", (24, 4, 0.2), {}),
    "separate": ("SABlock", (24, 4), {"use_combined_linear": False, "save_attn": True}),
    "bare": ("SABlock", (24, 4), {"include_fc": False}),
    "wide": ("SABlock", (24, 4), {"dim_head": 8}),
    "causal": ("SABlock", (24, 4), {"causal": True, "sequence_length": 12}),
    "flash": ("SABlock", (24, 4), {"use_flash_attention": True}),
    "positions": ("SABlock", (24, 4), GRID),
    "cross": ("CrossAttentionBlock", (24, 4), GRID),
    "cross causal": ("CrossAttentionBlock", (24, 4), {"causal": True, "sequence_length": 12}),
    "transformer": ("TransformerBlock", (24, 32, 4), {}),
    "transformer cross": ("TransformerBlock", (24, 32, 4), {"with_cross_attention": True}),
    "spatial": ("SpatialAttentionBlock", (1, 12, 4), {"norm_num_groups": 4}),
    "positions in 3-D": ("SABlock", (24, 4), {**GRID, "input_size": (3, 2, 2)}),
}
WRITER = """
import sys
import torch
from monai.networks import blocks

for name, (cls, args, kwargs) in eval(sys.argv[1]).items():
    torch.manual_seed(0)
    net = getattr(blocks, cls)(*args, **kwargs).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 12, 24)
    torch.save((net, x, None if "3-D" in name else net(x).detach()), f"{sys.argv[2]}/{name}.pt")
"""


class TestWholeBlocks(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        command = [sys.executable, "-W", "ignore", "-c", WRITER, repr(BLOCKS), cls.folder.name]
        subprocess.run(command, env=release_environment(), check=True, cwd=cls.folder.name)

    def load(self, name: str):
        return torch.load(Path(self.folder.name, f"{name}.pt"), weights_only=False)

    @parameterized.expand([(name,) for name in BLOCKS if "3-D" not in name])
    def test_run(self, name):
        net, x, expected = self.load(name)
        self.assertLessEqual(max_difference(net(x).detach(), expected), 1e-5)
        self.assertLessEqual(max_difference(torch.jit.script(net)(x).detach(), expected), 1e-5)
        self.assertLessEqual(max_difference(copy.deepcopy(net).double()(x.double()).float().detach(), expected), 1e-5)
        self.assertFalse([module for module in net.modules() if type(module).__module__.startswith("einops")])

    @parameterized.expand([("plain",), ("causal",), ("cross",)])
    def test_are_as_if_built_here(self, name):
        net, _, _ = self.load(name)
        cls, args, kwargs = BLOCKS[name]
        built = {"SABlock": SABlock, "CrossAttentionBlock": CrossAttentionBlock}[cls](*args, **kwargs)
        self.assertEqual(list(net.state_dict()), list(built.state_dict()))
        self.assertEqual([name for name, _ in net.named_modules()], [name for name, _ in built.named_modules()])
        self.assertEqual(dict(net.named_buffers()).keys(), dict(built.named_buffers()).keys())
        self.assertLessEqual(set(vars(built)), set(vars(net)))
        built.load_state_dict(net.state_dict())

    def test_refused_in_3d(self):
        with self.assertRaisesRegex(RuntimeError, r"depth's term.*save net.state_dict\(\)"):
            self.load("positions in 3-D")

    def test_older_ones_are_refused(self):
        """As of MONAI 1.3, whose block has no choice of linears, nor of the type in which they meet."""
        state = {key: value for key, value in vars(SABlock(24, 4)).items() if "use_" not in key}
        with self.assertRaisesRegex(RuntimeError, r"SABlock was saved.*use_flash_attention.*net.state_dict\(\)"):
            SABlock.__new__(SABlock).__setstate__(state)


if __name__ == "__main__":
    unittest.main()
