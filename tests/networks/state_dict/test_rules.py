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

import unittest
from types import SimpleNamespace

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.networks.blocks import SABlock
from monai.networks.state_dict.layouts import ALWAYS, LAYOUTS, recognize_layouts
from monai.networks.state_dict.rules import (
    CausalMask,
    Drop,
    DropPart,
    Flatten,
    Interleaved,
    Join,
    Layers,
    Misfit,
    Numbered,
    Part,
    Refuse,
    Rename,
    Rule,
    Shift,
    Split,
    Together,
    Unused,
    When,
    Wrap,
)

PREFIX = "net."
HEADS = SimpleNamespace(get_submodule=lambda path: SimpleNamespace(num_heads=2))
ROWS = torch.arange(36.0).reshape(12, 3)
# rule, keys of a checkpoint, keys that come out where the network has them, whether the inverse leads back
RULES: list[tuple[Rule, dict, dict, bool]] = [
    (Rename("a.", "b."), {"a.weight": 1, "a.x.bias": 2, "c": 3}, {"b.weight": 1, "b.x.bias": 2, "c": 3}, True),
    (Shift((("n2.", "nc."), ("n3.", "n2."))), {"n2.w": 1, "n3.w": 2}, {"nc.w": 1, "n2.w": 2}, True),
    (Drop(r"mask$"), {"mask": 1, "masked": 2}, {"masked": 2}, False),
    (DropPart("c."), {"c.q.w": 1, "c.k": 2, "d": 3}, {"d": 3}, False),
    (Join(("q", "k"), "qk"), {"q.weight": ROWS[:4], "k.weight": ROWS[4:8]}, {"qk.weight": ROWS[:8]}, True),
    (Split("qk", ("q", "k")), {"qk.bias": ROWS[:8, 0]}, {"q.bias": ROWS[:4, 0], "k.bias": ROWS[4:8, 0]}, True),
    (Flatten("w"), {"w": ROWS[..., None]}, {"w": ROWS}, True),
    (
        Interleaved("qkv", ("q", "k", "v"), "attn.num_heads"),
        {"qkv.weight": ROWS, "qkv.bias": ROWS[:, 0]},
        {
            **{f"{name}.weight": ROWS[[2 * i, 2 * i + 1, 6 + 2 * i, 7 + 2 * i]] for i, name in enumerate("qkv")},
            **{f"{name}.bias": ROWS[[2 * i, 2 * i + 1, 6 + 2 * i, 7 + 2 * i], 0] for i, name in enumerate("qkv")},
        },
        True,
    ),
    (Numbered("blocks."), {"0.w": 1, "11.w": 2, "x": 3}, {"blocks.0.w": 1, "blocks.11.w": 2, "x": 3}, True),
    (Layers("seq", ("norm", "conv")), {"seq.0.w": 1, "seq.10.w": 2}, {"norm.w": 1, "conv.w": 2}, False),
    (
        Wrap("conv"),
        {"a.weight": 1, "a.bias": 2, "b.weight": 3},
        {"a.conv.weight": 1, "a.conv.bias": 2, "b.weight": 3},
        False,
    ),
    (When("a.", (Rename("b.", "c."),)), {"a.w": 1, "b.w": 2}, {"a.w": 1, "c.w": 2}, False),
    (Together((Rename("a.", "b."), Rename("b.x", "b.y"))), {"a.x": 1}, {"b.y": 1}, True),
]


def part(keys: dict, own: list[str], module: object = HEADS) -> Part:
    state = {PREFIX + key: value for key, value in keys.items()}
    return Part(module, PREFIX, {**state, "elsewhere.a.weight": 9}, dict.fromkeys([PREFIX + key for key in own]))


def found(part: Part) -> dict:
    return {key[len(PREFIX) :]: value for key, value in part.state.items() if key.startswith(PREFIX)}


class TestRules(unittest.TestCase):
    def assert_same(self, state: dict, expected: dict) -> None:
        self.assertEqual(set(state), set(expected))
        for key, value in expected.items():
            same = torch.equal(state[key], value) if torch.is_tensor(value) else state[key] == value
            self.assertTrue(same, key)

    @parameterized.expand([(type(rule[0]).__name__, *rule) for rule in RULES])
    def test_there_and_back(self, _, rule, before, after, leads_back):
        changed = part(before, [key for key in after if key not in before])
        rule.apply(changed)
        self.assert_same(found(changed), after)
        self.assertEqual(changed.state["elsewhere.a.weight"], 9)
        if leads_back:
            back = part(found(changed), [key for key in before if key not in after])
            rule.inverse().apply(back)
            self.assert_same(found(back), before)
        elif rule.inverse() is not None:
            rule.inverse().apply(changed)

    @parameterized.expand(
        [(type(rule[0]).__name__, *rule) for rule in RULES if not isinstance(rule[0], (Flatten, Shift))]
    )
    def test_own_keys_stay(self, _, rule, before, after, leads_back):
        """Whatever a rule takes is not the network's own."""
        changed = part(before, [*before, *after])
        rule.apply(changed)
        self.assert_same(found(changed), before)

    @parameterized.expand([(type(rule[0]).__name__, *rule) for rule in RULES])
    def test_nothing_to_do(self, _, rule, before, after, leads_back):
        changed = part({"z": 1}, ["z", *after])
        rule.apply(changed)
        self.assert_same(found(changed), {"z": 1})

    def test_causal_masks(self):
        """Of blocks of one length the masks share their memory; a block that is not causal has none."""
        rule, masks = CausalMask("mask"), []
        back = rule.inverse()
        for length, causal in ((3, True), (3, True), (2, True), (2, False)):
            block = SimpleNamespace(causal=causal, sequence_length=length)
            state: dict[str, torch.Tensor] = {}
            back.apply(Part(block, "a.", state, {}))
            masks.append(state.get("a.mask"))
            rule.apply(Part(block, "a.", state, {}))
            self.assertEqual(state, {})
        self.assertIsNone(masks.pop())
        self.assertEqual(masks[2].tolist(), [[[[1.0, 0.0], [1.0, 1.0]]]])
        self.assertEqual(masks[0].data_ptr(), masks[1].data_ptr())

    def test_halves_are_left(self):
        for rule, keys, own in (
            (Join(("q", "k"), "qk"), {"q.weight": ROWS}, ["qk.weight"]),
            (Split("qk", ("q", "k")), {"qk.weight": ROWS}, ["q.weight"]),
            (Layers("seq", ("norm", "conv")), {"seq.0.w": 1}, ["norm.w", "conv.w"]),
            (Interleaved("qkv", ("q", "k", "v"), "attn.num_heads"), {"qkv.weight": ROWS[:7]}, ["q.weight"]),
        ):
            changed = part(keys, own)
            rule.apply(changed)
            self.assert_same(found(changed), keys)

    def test_a_part_of_which_the_network_has_some(self):
        """Then it is used: what is left over is no rest of something that was never used."""
        changed = part({"c.q.w": 1, "c.out.w": 2}, ["c.q.w"])
        DropPart("c.").apply(changed)
        self.assert_same(found(changed), {"c.q.w": 1, "c.out.w": 2})

    def test_a_place_that_is_taken(self):
        changed = part({"a.w": 1, "b.w": 2}, ["b.w"])
        with self.assertRaisesRegex(Misfit, "net.b.w is there twice.*set_model_state_dict.*load_checkpoint"):
            Rename("a.", "b.").apply(changed)
        self.assert_same(found(changed), {"a.w": 1, "b.w": 2})

    def test_unused(self):
        changed = part({"proj.weight": 1, "proj.bias": 2}, ["out.weight"])
        Unused("proj", "out").apply(changed)
        self.assertEqual((found(changed), changed.unused), ({}, ["net.out"]))
        self.assertEqual(Unused("proj", "out").inverse(), Unused("out", "proj"))
        without = part({"proj.weight": 1}, [])
        Unused("proj", "out").apply(without)
        self.assertEqual((found(without), without.unused), ({}, []))

    def test_refuse(self):
        with self.assertRaisesRegex(Misfit, "net.a.\\*: no good"):
            Refuse("a.", "no good").apply(part({"a.w": 1}, []))
        Refuse("a.", "no good").apply(part({"a.w": 1}, ["a.w"]))
        self.assertIsNone(Refuse("a.", "no good").inverse())

    def test_flatten_takes_size_one_alone(self):
        changed = part({"w": torch.ones(2, 3, 3)}, ["w"])
        Flatten("w").apply(changed)
        self.assertEqual(found(changed)["w"].shape, (2, 3, 3))

    def test_interleaved_rows_are_those_of_the_block(self):
        """Against attention computed from the interleaved rows directly."""
        block = SABlock(6, 2, qkv_bias=True, use_combined_linear=False).eval()
        weight, bias, x = torch.randn(18, 6), torch.randn(18), torch.randn(2, 5, 6)
        outer = nn.ModuleDict({"attn": block})
        changed = Part(outer, "", {"qkv.weight": weight, "qkv.bias": bias}, dict.fromkeys(outer.state_dict()))
        Interleaved("qkv", ("attn.to_q", "attn.to_k", "attn.to_v"), "attn.num_heads").apply(changed)
        outer.load_state_dict(changed.state, strict=False)
        rows = nn.functional.linear(x, weight, bias).reshape(2, 5, 2, 3, 3).permute(3, 0, 2, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(*rows).transpose(1, 2).flatten(2)
        self.assertTrue(torch.allclose(block(x), block.out_proj(attended), atol=1e-6))


class TestLayouts(unittest.TestCase):
    def test_every_layout_has_a_name_of_its_own_and_says_what_it_is(self):
        names = [layout.name for layout in LAYOUTS]
        self.assertEqual(len(names), len(set(names)))
        for layout in LAYOUTS:
            self.assertTrue(layout.source and layout.meaning, layout.name)

    def test_every_rule_has_an_inverse_or_says_that_there_is_none(self):
        tables = [rules for layout in LAYOUTS for rules in layout.rules.values()] + list(ALWAYS.values())
        for rule in (rule for rules in tables for rule in rules):
            back = rule.inverse()
            self.assertTrue(back is None or isinstance(back, Rule), rule)

    def test_timm_is_no_monai(self):
        keys = [
            "cls_token",
            "pos_embed",
            "patch_embed.proj.weight",
            "blocks.0.attn.qkv.weight",
            "blocks.0.attn.proj.weight",
        ]
        self.assertEqual([layout.name for layout in recognize_layouts(keys)], ["timm"])


if __name__ == "__main__":
    unittest.main()
