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

from monai.networks.nets import ViT
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
        hooks.adapt_loads_by(lambda module, state, prefix, _, request: seen.append((prefix, request.strict)) or ())

        class Layer(hooks.SafeLoading):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.ones(1))

        layer = Layer()
        layer.load_state_dict({"weight": torch.zeros(1)}, strict=False)
        nn.Sequential(layer).load_state_dict({"0.weight": torch.zeros(1)})
        self.assertEqual(seen, [("", False), ("0.", None)])

    def judged(self, net: nn.Module, state: dict) -> list[str]:
        """Prefixes of the modules whose part of a load was judged."""
        seen = []

        def procedure(module, state, prefix, *others):
            seen.append(prefix)
            return adapt_load(module, state, prefix, *others)

        hooks.adapt_loads_by(procedure)
        net.load_state_dict(state)
        return seen

    def test_what_is_settled_is_not_judged_again(self):
        """Keys of its own a network judges once for all modules inside of it, until somebody else changes keys, too."""
        self.addCleanup(hooks.adapt_loads_by, adapt_load)
        net = ViT(1, 16, 8, 24, 32, 1, 4, spatial_dims=2)
        state = net.state_dict()
        everything = ["", "blocks.0.", "blocks.0.attn."]
        self.assertEqual(self.judged(net, state), [""])
        self.assertEqual(self.judged(net, {"patch_embedding.cls_token": torch.ones(1), **state}), everything)
        self.assertEqual(self.judged(net, state), [""])
        net.blocks[0].mlp.register_load_state_dict_pre_hook(lambda *args: None)
        self.assertEqual(self.judged(net, state), everything)

    def test_a_load_within_a_load(self):
        """The inner one settles nothing for the outer."""
        self.addCleanup(hooks.adapt_loads_by, adapt_load)
        outer, inner = (ViT(1, 16, 8, 24, 32, 1, 4, spatial_dims=2) for _ in range(2))
        short = {key: value for key, value in inner.state_dict().items() if "qkv" not in key}
        outer.patch_embedding.register_load_state_dict_post_hook(lambda *args: inner.load_state_dict(short))
        with self.assertRaisesRegex(RuntimeError, "blocks.0.attn.qkv.weight"):
            outer.load_state_dict(outer.state_dict())
        outer.patch_embedding._load_state_dict_post_hooks.clear()
        self.assertEqual(self.judged(outer, outer.state_dict()), [""])
        with self.assertRaisesRegex(RuntimeError, "size mismatch for 0.blocks.0.attn.qkv.weight"):
            wrong = {f"0.{key}": torch.ones(2) if "qkv" in key else value for key, value in outer.state_dict().items()}
            nn.Sequential(outer).load_state_dict(wrong)


if __name__ == "__main__":
    unittest.main()
