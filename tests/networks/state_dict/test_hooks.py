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
"""The load hook: a block that is used alone still adapts older checkpoints."""

from __future__ import annotations

import subprocess
import sys
import unittest

import torch
import torch.nn as nn

from monai.networks.state_dict import hooks
from monai.networks.state_dict.load import adapt_load

ALONE = """
import torch
from monai.networks.blocks.selfattention import SABlock

block = SABlock(8, 2)
old = {"out_proj.weight": torch.eye(8), "out_proj.bias": torch.zeros(8), "causal_mask": torch.ones(1, 1, 4, 4)}
old |= {f"to_{name}.weight": torch.full((8, 8), float(number)) for number, name in enumerate("qkv")}
block.load_state_dict(old)
print([float(part.mean()) for part in block.qkv.weight.chunk(3)])
try:
    block.load_state_dict({**old, "strange": torch.ones(1)})
except RuntimeError as error:
    print("left unchanged" in str(error))
"""


class TestHooks(unittest.TestCase):
    def test_block_alone(self):
        """In a process of its own, where nothing but the block was imported."""
        found = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", ALONE], capture_output=True, text=True, check=False
        )
        self.assertEqual(found.stdout.splitlines(), ["[0.0, 1.0, 2.0]", "True"], found.stderr)

    def test_one_procedure(self):
        """The package hands over its procedure; another one takes its place, and is told what the caller says."""
        self.assertEqual(hooks._procedures, [adapt_load])
        self.addCleanup(hooks.adapt_loads_by, adapt_load)
        seen = []
        hooks.adapt_loads_by(lambda module, state, prefix, metadata, request: seen.append((prefix, request.strict)))

        class Layer(hooks.SafeLoading):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.ones(1))

        layer = Layer()
        layer.load_state_dict({"weight": torch.zeros(1)}, strict=False)
        nn.Sequential(layer).load_state_dict({"0.weight": torch.zeros(1)})
        self.assertEqual(seen, [("", False), ("0.", None)])


if __name__ == "__main__":
    unittest.main()
