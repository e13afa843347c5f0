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

"""A journal of tensors: whatever rules do, every tensor of the file is accounted for."""

from __future__ import annotations

import unittest

import torch

from monai.networks.state_dict.rules import Drop, Flatten, Join, Part, Rename, Split
from monai.networks.weights.journal import Journal, Origin


def _part(journal: Journal, *own: str) -> Part:
    return Part(torch.nn.Identity(), "", journal, dict.fromkeys(own))


def _apply(journal: Journal, rule, *own: str) -> None:
    with journal.doing(rule.does):
        rule.apply(_part(journal, *own))


class TestJournal(unittest.TestCase):
    def test_a_renamed_tensor_is_loaded_as_it_is(self):
        journal = Journal({"a.weight": torch.ones(2), "a.bias": torch.ones(1)})
        _apply(journal, Rename("a.", "b."))
        self.assertEqual(journal.origins["b.weight"], Origin(("a.weight",)))
        self.assertEqual(journal.ignored, {})

    def test_joined_rows_come_from_their_linears_alone(self):
        names = [f"{name}.{kind}" for kind in ("weight", "bias") for name in "qkv"]
        journal = Journal({name: torch.ones(2, 2) for name in names})
        _apply(journal, Join(("q", "k", "v"), "qkv"), "qkv.weight", "qkv.bias")
        self.assertEqual(journal.origins["qkv.weight"].keys, ("q.weight", "k.weight", "v.weight"))
        self.assertEqual(journal.origins["qkv.bias"].keys, ("q.bias", "k.bias", "v.bias"))
        self.assertEqual(journal.origins["qkv.bias"].kind, "converted")
        self.assertEqual(journal.origins["qkv.bias"].changes, (Join.does,))

    def test_split_rows_come_from_one_linear(self):
        journal = Journal({"qkv.weight": torch.ones(6, 2)})
        _apply(journal, Split("qkv", ("q", "k", "v")), "q.weight", "k.weight", "v.weight")
        self.assertEqual({origin.keys for origin in journal.origins.values()}, {("qkv.weight",)})
        self.assertEqual(journal.ignored, {})

    def test_what_is_dropped_is_ignored_with_a_reason(self):
        journal = Journal({"unused": torch.ones(1), "other": torch.ones(1)})
        _apply(journal, Drop("unused$"))
        self.assertEqual(journal.ignored, {"unused": Drop.does})

    def test_what_is_dropped_is_no_part_of_what_is_made_later(self):
        journal = Journal({"unused": torch.ones(1), "q.weight": torch.ones(2, 2), "k.weight": torch.ones(2, 2)})
        _apply(journal, Drop("unused$"))
        _apply(journal, Join(("q", "k"), "qk"), "qk.weight")
        self.assertEqual(journal.origins["qk.weight"].keys, ("q.weight", "k.weight"))

    def test_a_change_in_place_keeps_the_origin_through_later_names(self):
        journal = Journal({"old.weight": torch.ones(2, 2, 1, 1)})
        _apply(journal, Flatten("old.weight"))
        _apply(journal, Rename("old.", "new."))
        self.assertEqual(journal.origins["new.weight"], Origin(("old.weight",), "converted", (Flatten.does,)))

    def test_what_comes_from_nowhere_is_written_by_rule(self):
        journal = Journal({})
        with journal.doing("an identity"):
            journal.update(weight=torch.eye(2))
        self.assertEqual(journal.origins["weight"], Origin((), "written by rule", ("an identity",)))

    def test_the_strongest_kind_and_all_changes_are_kept(self):
        journal = Journal({"a": torch.ones(4)})
        with journal.doing("to another grid", "resampled"):
            journal["a"] = journal["a"] * 2
        with journal.doing("reshaped"):
            journal["a"] = journal["a"].reshape(2, 2)
        self.assertEqual(journal.origins["a"], Origin(("a",), "resampled", ("to another grid", "reshaped")))

    def test_the_file_put_back_is_as_it_was(self):
        written = {"a": torch.ones(1)}
        journal = Journal(written)
        _apply(journal, Drop("a$"))
        journal.clear()
        journal.update(written)
        self.assertEqual((journal.origins, journal.ignored), ({"a": Origin(("a",))}, {}))

    def test_a_kind_that_is_none_is_refused(self):
        with self.assertRaisesRegex(ValueError, "magic"):
            with Journal({}).doing("something", "magic"):
                pass


if __name__ == "__main__":
    unittest.main()
