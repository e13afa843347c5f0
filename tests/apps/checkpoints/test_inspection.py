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


from __future__ import annotations

import tempfile
import unittest
from pathlib import Path

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.apps.checkpoints.inspection import attention_in, inspect_checkpoint
from monai.apps.checkpoints.reports import as_text
from monai.networks.blocks import SABlock, TransformerBlock
from monai.networks.checkpoints.untrusted import CheckpointRefused
from monai.networks.nets import DiffusionModelUNet

torch.set_num_threads(1)

torch.manual_seed(0)


def linear(name: str, width: int = 24, context: int | None = None, bias: bool = True) -> dict[str, torch.Tensor]:
    """A linear as it is drawn."""
    return {f"{name}.{key}": value for key, value in nn.Linear(context or width, width, bias).state_dict().items()}


def trained(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: torch.randn_like(value) for key, value in state.items()}


def linears(path: str, *names: str) -> dict[str, torch.Tensor]:
    return {key: value for name in names for key, value in linear(f"{path}{name}").items()}


def convolutions(path: str, *names: str) -> dict[str, torch.Tensor]:
    return {key: value[..., None, None] if value.dim() == 2 else value for key, value in linears(path, *names).items()}


def first_layout() -> dict[str, torch.Tensor]:
    return {"input_blocks.2.1.qkv.weight": torch.randn(72, 24, 1), **convolutions("input_blocks.2.1.", "proj_out")}


SEPARATE = ("to_q", "to_k", "to_v")

# state dict, and what is told of its one block: path, linears, projection
LAYOUTS = [
    ("to_q of GenerativeModels", linears("decoder.blocks.2.", *SEPARATE, "proj_attn"), "separate", "unused"),
    ("query", linears("middle_block.attention.", "query", "key", "value", "proj_attn"), "separate", "used"),
    ("q.conv", convolutions("decoder.blocks.2.", "q.conv", "k.conv", "v.conv", "proj_out.conv"), "separate", "used"),
    ("input_blocks", first_layout(), "combined", "used"),
    ("to_out", linears("t.attn1.", *SEPARATE, "to_out.0"), "separate", "used"),
    ("trained", trained(linears("blocks.0.attn.", *SEPARATE, "out_proj")), "separate", "trained"),
    ("one linear", trained({**SABlock(24, 4).state_dict()}), "combined", "trained"),
    ("not trained", linears("blocks.0.attn.", *SEPARATE, "out_proj"), "separate", "present"),
    ("no projection", trained(linears("blocks.0.attn.", *SEPARATE)), "separate", "absent"),
    (
        "dead projection",
        {**trained(linears("a.attn.", *SEPARATE)), **linears("a.attn.", "out_proj")},
        "separate",
        "never trained",
    ),
]


class TestAttention(unittest.TestCase):
    @parameterized.expand(LAYOUTS)
    def test_layouts(self, _, state, linears, projection):
        (row,) = attention_in(state)
        self.assertEqual((row.linears, row.projection, row.kind), (linears, projection, "self"))
        self.assertEqual((row.width, row.input_width, row.context_width, row.heads), (24, 24, 24, None))
        self.assertTrue(all(key.startswith(row.path) for key in state))

    def test_own_state_dicts(self):
        """They say beside the tensors that their projections were used, trained or not; a bare one says nothing."""
        state = TransformerBlock(24, 32, 4, with_cross_attention=True).state_dict()
        self.assertEqual([row.projection for row in attention_in(state)], ["used", "used"])
        self.assertEqual([row.projection for row in attention_in(state, values=False)], ["used", "used"])
        self.assertEqual(attention_in(SABlock(24, 4, use_proj_attn=False).state_dict())[0].projection, "absent")
        self.assertEqual([row.projection for row in attention_in({**state})], ["present", "present"])

    def test_without_values(self):
        state = trained(linears("blocks.0.attn.", *SEPARATE, "out_proj"))
        self.assertEqual(attention_in(state, values=False)[0].projection, "present")
        state = linears("decoder.blocks.2.", *SEPARATE, "proj_attn")
        self.assertEqual(attention_in(state, values=False)[0].projection, "unused")

    def test_cross_attention(self):
        state = {**linear("attn2.to_q"), **linear("attn2.to_k", context=6), **linear("attn2.to_v", context=6)}
        (row,) = attention_in(state)
        self.assertEqual((row.path, row.kind, row.width, row.context_width), ("attn2", "cross", 24, 6))
        block = TransformerBlock(24, 32, 4, with_cross_attention=True)
        self.assertEqual([row.kind for row in attention_in(block.state_dict())], ["self", "cross"])

    def test_stale_cross_attention(self):
        state = {**trained(linears("b.attn.", *SEPARATE)), **linears("b.cross_attn.", *SEPARATE)}
        self.assertEqual([row.stale for row in attention_in(state)], [False, True])
        self.assertEqual([row.stale for row in attention_in(trained(state))], [False, False])

    def test_heads_of_relative_positions(self):
        block = SABlock(24, 4, rel_pos_embedding="decomposed", input_size=(4, 3))
        self.assertEqual(attention_in(block.state_dict())[0].heads, 4)

    def test_no_attention(self):
        self.assertEqual(attention_in({"a.to_q.weight": torch.ones(4, 4), "b.query.bias": torch.ones(4)}), [])


class TestFile(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "file.pt"

    def test_one_network(self):
        net = DiffusionModelUNet(2, 1, 1, 1, (8, 16), (False, True), norm_num_groups=4, num_head_channels=4)
        state = {f"module.{key}": value for key, value in net.state_dict().items()}
        torch.save({"unet_state_dict": state, "scale_factor": torch.tensor(1.5), "epoch": 3}, self.path)
        report = inspect_checkpoint(self.path)
        self.assertEqual((report.container, report.names), ("torch zip", ["unet_state_dict"]))
        self.assertEqual(report.size, self.path.stat().st_size)
        (network,) = report.networks
        self.assertEqual((network.wrappers, network.scale_factor), (("unet_state_dict", "module."), 1.5))
        parameters = sum(parameter.numel() for parameter in net.parameters())
        self.assertEqual((network.keys, network.parameters), (len(state), parameters))
        self.assertEqual((network.size, network.dtypes), (4 * parameters, {"float32": parameters}))
        self.assertEqual([layout.name for layout in network.layouts], ["MONAI"])
        self.assertEqual(len(network.attention), 4)
        self.assertEqual(network.not_finite, {})

    def test_several_networks(self):
        torch.save({"a": nn.Linear(2, 3).state_dict(), "b": nn.Linear(3, 4).state_dict()}, self.path)
        report = inspect_checkpoint(self.path)
        self.assertEqual([(one.name, one.parameters) for one in report.networks], [("a", 9), ("b", 16)])
        self.assertIn("choose with --name: a, b", as_text(report))
        report = inspect_checkpoint(self.path, name="b")
        self.assertEqual((report.names, [one.name for one in report.networks]), (["a", "b"], ["b"]))
        with self.assertRaisesRegex(ValueError, "'c'") as caught:
            inspect_checkpoint(self.path, name="c")
        self.assertNotIsInstance(caught.exception, CheckpointRefused)

    def test_values_that_are_not_finite(self):
        state = {"a": torch.tensor([[1.0, float("nan")], [float("nan"), float("-inf")]]), "b": torch.ones(2).half()}
        state["count"] = torch.tensor(3)
        torch.save(state, self.path)
        (network,) = inspect_checkpoint(self.path).networks
        self.assertEqual(network.not_finite, {"a": {"nan": 2, "inf": 1}})
        self.assertEqual(network.dtypes, {"float32": 4, "float16": 2, "int64": 1})
        self.assertIn("a (2 NaN, 1 inf)", as_text(inspect_checkpoint(self.path)))
        (network,) = inspect_checkpoint(self.path, values=False).networks
        self.assertIsNone(network.not_finite)

    def test_refused(self):
        for content in (b"", b"not a checkpoint", b"PK\x03\x04" + bytes(50)):
            self.path.write_bytes(content)
            with self.assertRaises(CheckpointRefused):
                inspect_checkpoint(self.path)
        torch.save({"epoch": 3}, self.path)
        with self.assertRaisesRegex(CheckpointRefused, "epoch"):
            inspect_checkpoint(self.path)
        with self.assertRaises(FileNotFoundError):
            inspect_checkpoint(self.path.with_name("absent.pt"))


if __name__ == "__main__":
    unittest.main()
