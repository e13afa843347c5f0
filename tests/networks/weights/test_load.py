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

"""Loads that account for everything: each parameter of the network, each tensor of the file."""

from __future__ import annotations

import json
import tempfile
import unittest
from pathlib import Path

import torch
from parameterized import parameterized

from monai.networks import load_checkpoint
from monai.networks.checkpoints.untrusted import NetworkNotChosen
from monai.networks.nets import UNETR, AutoencoderKL, UNet, ViT, ViTAutoEnc
from monai.networks.weights.report import LoadReport
from tests.networks.weights.kept_autoencoder import kept_autoencoder

SMALL = {"in_channels": 1, "img_size": 16, "patch_size": 8, "hidden_size": 24, "mlp_dim": 32, "num_layers": 1}
VIT = {**SMALL, "num_heads": 2, "spatial_dims": 2}


def classifier(classes: int) -> ViT:
    return ViT(**VIT, classification=True, num_classes=classes)


class LoadCase(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.file = Path(folder.name) / "weights.pt"

    def saved(self, content) -> Path:
        torch.save(content.state_dict() if isinstance(content, torch.nn.Module) else content, self.file)
        return self.file

    def assert_accounts_for_all(self, report: LoadReport, net: torch.nn.Module, tensors) -> None:
        self.assertEqual([line.key for line in report.parameters], list(net.state_dict()))
        self.assertEqual({line.key for line in report.tensors}, set(tensors))
        used = {key for line in report.parameters for key in line.tensors}
        self.assertEqual(used, {line.key for line in report.tensors if line.outcome == "used"})
        self.assertTrue(all(line.how for line in report.tensors))

    def assert_refused(self, net: torch.nn.Module, pattern: str, **options) -> None:
        before = {key: value.clone() for key, value in net.state_dict().items()}
        with self.assertRaisesRegex(RuntimeError, pattern):
            load_checkpoint(net, self.file, **options)
        self.assertTrue(all(torch.equal(value, before[key]) for key, value in net.state_dict().items()))


class TestAccount(LoadCase):
    def test_own_keys_are_all_loaded(self):
        net = classifier(2)
        report = load_checkpoint(net, self.saved(classifier(2))).report
        self.assert_accounts_for_all(report, net, net.state_dict())
        self.assertEqual(report.counts, {"loaded": len(net.state_dict())})

    def test_an_old_file_says_what_was_converted_and_what_is_ignored(self):
        options, state_dict = kept_autoencoder()
        net = AutoencoderKL(**options)
        loaded = load_checkpoint(net, self.saved(state_dict))
        self.assert_accounts_for_all(loaded.report, net, loaded.state_dict)
        self.assertEqual(loaded.report.left, ())
        self.assertTrue(all("proj_attn" in key for key in loaded.report.ignored))
        self.assertEqual(set(loaded.report.ignored.values()), {"its network never used it"})
        self.assertIn("written by rule", loaded.report.counts)
        self.assertEqual(loaded.report.layouts, ("GenerativeModels 0.2.0 to 0.2.3",))

    def test_json_has_every_line(self):
        net = classifier(2)
        report = load_checkpoint(net, self.saved(classifier(2))).report
        values = json.loads(report.to_json())
        self.assertEqual([line["key"] for line in values["parameters"]], list(net.state_dict()))
        self.assertEqual(values["network"], "ViT")

    def test_the_text_names_what_is_not_simply_loaded(self):
        net = classifier(3)
        report = load_checkpoint(net, self.saved(classifier(2)), allow=("classification_head.*",)).report
        text = str(report)
        self.assertIn("2 left", text)
        self.assertIn("classification_head.0.weight", text)
        self.assertIn("allow='classification_head.*'", text)

    def test_torch_s_partial_load_is_accounted_for_too(self):
        net = classifier(2)
        state = dict(classifier(2).state_dict())
        del state["norm.weight"]
        report = load_checkpoint(net, self.saved({**state, "other.weight": torch.ones(1, 1)}), strict=False).report
        self.assertEqual(report.left, ("norm.weight",))
        self.assertEqual(list(report.ignored), ["other.weight"])


class TestPartial(LoadCase):
    def test_another_number_of_classes(self):
        source, net = classifier(2), classifier(3)
        head = net.classification_head[0].weight.detach().clone()
        report = load_checkpoint(net, self.saved(source), allow=("classification_head.*",)).report
        self.assert_accounts_for_all(report, net, source.state_dict())
        self.assertEqual(report.left, ("classification_head.0.weight", "classification_head.0.bias"))
        self.assertTrue(torch.equal(net.classification_head[0].weight, head))
        self.assertTrue(torch.equal(net.norm.weight, source.norm.weight))
        self.assertTrue(torch.equal(net.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight))

    def test_another_number_of_classes_is_refused_unless_allowed(self):
        self.saved(classifier(2))
        self.assert_refused(classifier(3), "size mismatch for classification_head.0.weight")

    def test_an_allowed_parameter_that_fits_is_loaded(self):
        source, net = classifier(2), classifier(2)
        report = load_checkpoint(net, self.saved(source), allow=("classification_head.*",)).report
        self.assertEqual(report.left, ())
        self.assertTrue(torch.equal(net.classification_head[0].weight, source.classification_head[0].weight))

    def test_missing_parameters_are_refused_with_the_remedy(self):
        state = dict(classifier(2).state_dict())
        del state["norm.weight"]
        self.saved(state)
        self.assert_refused(classifier(2), r"(?s)Missing.*norm\.weight.*allow=")

    def test_extra_tensors_are_refused_with_the_remedy_and_may_be_ignored(self):
        self.saved({**classifier(2).state_dict(), "aux.weight": torch.ones(2, 2)})
        self.assert_refused(classifier(2), r"(?s)Unexpected.*aux\.weight.*ignore=")
        report = load_checkpoint(classifier(2), self.file, ignore=("aux.*",)).report
        self.assertEqual(report.ignored, {"aux.weight": "left out by ignore='aux.*'"})

    def test_nothing_loaded_is_always_an_error(self):
        self.saved({"aux.weight": torch.ones(2, 2)})
        self.assert_refused(classifier(2), "Nothing of the file", allow=("*",), ignore=("*",))

    @parameterized.expand([("allow", "no parameter of the network"), ("ignore", "no tensor of the file")])
    def test_a_pattern_that_names_nothing_is_refused(self, argument, message):
        self.saved(classifier(2))
        self.assert_refused(classifier(2), message, **{argument: ("haed.*",)})

    @parameterized.expand(["allow", "ignore"])
    def test_one_text_is_no_tuple_of_patterns(self, argument):
        with self.assertRaisesRegex(TypeError, argument):
            load_checkpoint(classifier(2), self.saved(classifier(2)), **{argument: "head.*"})

    def test_options_and_a_load_that_is_not_strict(self):
        with self.assertRaisesRegex(ValueError, "allow="):
            load_checkpoint(classifier(2), self.saved(classifier(2)), strict=False, allow=("norm.*",))

    def test_a_network_of_the_release(self):
        options = {"spatial_dims": 2, "in_channels": 1, "channels": (4, 8), "strides": (2,)}
        source, net = UNet(out_channels=2, **options), UNet(out_channels=3, **options)
        keys = [key for key, value in net.state_dict().items() if value.shape != source.state_dict()[key].shape]
        report = load_checkpoint(net, self.saved(source), allow=keys).report
        self.assertEqual(report.left, tuple(keys))
        self.assert_accounts_for_all(report, net, source.state_dict())


class TestTies(LoadCase):
    """Parameters that are one and the same tensor."""

    def tied(self) -> torch.nn.ModuleDict:
        net = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
        net["b"].weight = net["a"].weight
        return net

    def test_other_values_each_are_refused(self):
        self.saved(torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)}))
        self.assert_refused(self.tied(), r"a\.weight, b\.weight are one and the same")

    def test_what_is_loaded_into_one_is_in_the_other(self):
        source, net = self.tied(), self.tied()
        report = load_checkpoint(net, self.saved(source), ignore=("b.weight",), allow=("b.weight",)).report
        self.assertEqual(report.left, ())
        self.assertEqual({line.key: line.tensors for line in report.parameters}["b.weight"], ("a.weight",))
        self.assertTrue(torch.equal(net["b"].weight, source["a"].weight))

    def test_a_submodule_that_is_there_twice(self):
        part = torch.nn.Linear(2, 2)
        net = torch.nn.ModuleDict({"x": part, "y": part})
        report = load_checkpoint(net, self.saved(torch.nn.Linear(2, 2)), into="x").report
        self.assertEqual(report.left, ())


class TestEncoders(LoadCase):
    def test_an_autoencoder_into_a_segmentation_network(self):
        source = ViTAutoEnc(**{**VIT, "patch_size": (4, 4)}, out_channels=1)
        net = UNETR(
            in_channels=1,
            out_channels=2,
            img_size=16,
            feature_size=4,
            hidden_size=24,
            mlp_dim=32,
            num_heads=2,
            spatial_dims=2,
        )
        self.saved(source)
        self.assertTrue(net.patch_size == (16, 16))
        options = {"allow": ("blocks.*",), "ignore": ("conv3d_transpose*",)}
        self.assert_refused(net, "size mismatch for patch_embedding", into="vit", **options)

    def test_an_encoder_is_loaded_into_its_place(self):
        net, source = torch.nn.ModuleDict({"vit": ViT(**VIT), "head": torch.nn.Linear(2, 2)}), ViT(**VIT)
        report = load_checkpoint(net, self.saved(source), into="vit").report
        self.assert_accounts_for_all(report, net, source.state_dict())
        self.assertEqual(report.left, ("head.weight", "head.bias"))
        self.assertTrue(torch.equal(net["vit"].norm.weight, source.norm.weight))

    def test_a_compiled_part(self):
        net, source = torch.nn.ModuleDict({"vit": torch.compile(ViT(**VIT))}), ViT(**VIT)
        report = load_checkpoint(net, self.saved(source), into="vit").report
        self.assert_accounts_for_all(report, net, source.state_dict())
        self.assertEqual(report.left, ())
        self.assertTrue(torch.equal(net["vit"].norm.weight, source.norm.weight))

    def test_a_place_that_is_none(self):
        with self.assertRaisesRegex(ValueError, "(?s)into='encoder'.*patch_embedding"):
            load_checkpoint(ViT(**VIT), self.saved(ViT(**VIT)), into="encoder")

    def test_a_network_without_memory(self):
        with torch.device("meta"):
            net = ViT(**VIT)
        with self.assertRaisesRegex(RuntimeError, "to_empty"):
            load_checkpoint(net, self.saved(ViT(**VIT)))


class TestAverages(LoadCase):
    def both(self) -> tuple[ViT, ViT]:
        raw, ema = ViT(**VIT), ViT(**VIT)
        self.saved({"model": raw.state_dict(), "model_ema": ema.state_dict()})
        return raw, ema

    @parameterized.expand([("raw", 0), ("ema", 1)])
    def test_one_of_both(self, weights, which):
        expected = self.both()[which]
        net = ViT(**VIT)
        load_checkpoint(net, self.file, weights=weights)
        self.assertTrue(torch.equal(net.blocks[0].mlp.linear1.weight, expected.blocks[0].mlp.linear1.weight))

    def test_the_question_is_open_without(self):
        self.both()
        with self.assertRaisesRegex(NetworkNotChosen, "moving average"):
            load_checkpoint(ViT(**VIT), self.file)

    def test_a_file_without_an_average(self):
        with self.assertRaisesRegex(NetworkNotChosen, "no moving average"):
            load_checkpoint(ViT(**VIT), self.saved(ViT(**VIT)), weights="ema")

    def test_another_word(self):
        self.both()
        with self.assertRaisesRegex(ValueError, "weights='best'"):
            load_checkpoint(ViT(**VIT), self.file, weights="best")


class OldName(torch.nn.Module):
    """A module that takes its weight under the name that it had before."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2))

    def _load_from_state_dict(self, state_dict, prefix, *arguments):
        if f"{prefix}old" in state_dict:
            state_dict[f"{prefix}weight"] = state_dict.pop(f"{prefix}old")
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class TestNothingChangesBeforeARefusal(LoadCase):
    """torch finds a wrong shape, or a module of a user's own what it lacks, when others are loaded already."""

    def own(self) -> torch.nn.Module:
        return torch.nn.ModuleDict({"linear": torch.nn.Linear(2, 2), "old": OldName()})

    def test_another_head(self):
        net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 3))
        self.saved(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)))
        self.assert_refused(net, r"size mismatch for 1\.weight.*out_channels=")

    @parameterized.expand([("another size", {"old.bias": torch.ones(5)}), ("nothing", {"old.bias": None})])
    def test_a_module_that_loads_in_its_own_way(self, _, changes):
        state = {"linear.weight": torch.ones(2, 2), "linear.bias": torch.ones(2), "old.old": torch.ones(3), **changes}
        self.saved({key: value for key, value in state.items() if value is not None})
        self.assert_refused(self.own(), r"old\.bias")

    def test_what_such_a_module_takes_is_not_ignored(self):
        net = self.own()
        state = {"linear.weight": torch.ones(2, 2), "linear.bias": torch.ones(2), "old.old": torch.ones(3)}
        report = load_checkpoint(net, self.saved({**state, "old.bias": torch.ones(2)})).report
        self.assertEqual(net["old"].weight.tolist(), [1.0, 1.0, 1.0])
        self.assertEqual(report.ignored, {})
        self.assertEqual({line.key: line.outcome for line in report.tensors}["old.old"], "left to its module")

    @parameterized.expand([(torch.int8,), (torch.bool,), (torch.complex64,)])
    def test_numbers_of_another_kind(self, dtype):
        net = torch.nn.Linear(2, 2)
        self.saved({"weight": net.weight.detach().to(dtype), "bias": net.bias.detach()})
        self.assert_refused(net, f"the file has {dtype}, which does not become torch.float32")

    def test_numbers_too_large_for_half(self):
        net = torch.nn.Linear(2, 2)
        torch.nn.init.constant_(net.weight, 1e5)
        path = self.saved(net)
        with self.assertWarnsRegex(UserWarning, "weight.*bfloat16"):
            load_checkpoint(torch.nn.Linear(2, 2).half(), path)

    def test_parameters_that_share_their_memory(self):
        net = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
        self.saved(net)
        net["b"].weight.data = net["a"].weight.data
        self.assert_refused(net, r"a\.weight, b\.weight are one and the same")


if __name__ == "__main__":
    unittest.main()
