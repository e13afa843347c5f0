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


"""Checkpoints of real packages, kept with the outputs of the networks that wrote them, load right or are refused."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import pytest
import torch
from parameterized import parameterized

from monai.networks.nets import DecoderOnlyTransformer
from tests.parity.references.__main__ import main
from tests.parity.references.cases import CASES, NETWORKS
from tests.parity.references.loading import attempt
from tests.parity.references.report import as_markdown
from tests.parity.references.rules import expected, known_facts
from tests.parity.references.runner import loads_into_the_fork
from tests.parity.references.store import FILES, load_file
from tests.parity.references.subset import find, kept, make_subset, subset
from tests.parity.references.targets import Target

torch.set_num_threads(1)

FC, NO_FC = {"use_proj_attn": True}, {"use_proj_attn": False}
MAISI = "AutoencoderKlMaisi"

# the beginning of a case's name, a network where it is another one, options, what the load must come to
TEST_CASES_RULES = [
    ["monai-generative 0.1.0, DiffusionModelUNet, 2-D,", None, FC, "exact"],
    ["monai-generative 0.1.0, DiffusionModelUNet, 2-D,", None, NO_FC, "refused"],
    ["monai-generative 0.1.0, DiffusionModelUNet, 2-D conditioned,", None, FC, "refused"],
    ["monai-generative before 0.1.0, DiffusionModelUNet, 3-D,", None, {}, "exact"],
    ["monai-generative 0.1.0, AutoencoderKL, 2-D,", None, FC, "refused"],
    ["monai-generative 0.1.x, AutoencoderKL, 2-D,", None, FC, "exact"],
    ["monai-generative 0.1.x, AutoencoderKL, 2-D,", None, NO_FC, "refused"],
    ["monai-generative==0.2.3, DiffusionModelUNet, 2-D", None, FC, "exact"],
    ["monai-generative==0.2.3, DiffusionModelUNet, 2-D", None, NO_FC, "exact"],
    ["monai-generative==0.2.3, DiffusionModelUNet, 2-D conditioned", None, FC, "exact"],
    ["monai-generative==0.2.3, DiffusionModelUNet, 2-D conditioned", None, NO_FC, "refused"],
    ["monai-generative==0.2.3, DecoderOnlyTransformer, self", None, NO_FC, "refused"],
    ["monai-generative==0.2.3, AutoencoderKL, 3-D transposed", None, {"use_convtranspose": True}, "refused"],
    ["monai-generative==0.2.3, AutoencoderKL, 3-D transposed", None, {"use_convtranspose": False}, "untold"],
    ["monai-generative==0.2.3, AutoencoderKL, 3-D transposed", MAISI, {"use_convtranspose": True}, "refused"],
    ["monai-generative==0.2.3, AutoencoderKL, 3-D", MAISI, {"use_convtranspose": False}, "refused"],
    ["monai==1.4.0, ControlNet, 2-D, include_fc=False", None, FC, "untold"],
    ["monai==1.4.0, ControlNet, 2-D, include_fc=False", None, NO_FC, "refused"],
    ["monai==1.4.0, ControlNet, 2-D, include_fc=True", None, FC, "exact"],
    ["monai==1.5.2, ControlNet, 2-D, include_fc=False", None, FC, "exact"],
    ["monai==1.5.2, ControlNet, 2-D, include_fc=False", None, NO_FC, "exact"],
    ["monai==1.5.2, ControlNet, 2-D, include_fc=True", None, NO_FC, "refused"],
    ["monai==1.5.2, ControlNet, 2-D conditioned, include_fc=False", None, NO_FC, "refused"],
    ["monai==1.5.2, ControlNet, 2-D conditioned, include_fc=False", None, {"include_fc": False}, "exact"],
    ["monai==1.6.1, SPADEDiffusionModelUNet, 2-D, include_fc=False", None, FC, "exact"],
    ["monai==1.6.1, SPADEDiffusionModelUNet, 2-D, include_fc=False", None, {"include_fc": False}, "exact"],
    ["monai==1.6.1, SPADEDiffusionModelUNet, 2-D, include_fc=False", None, NO_FC, "refused"],
    ["monai==1.2.0, ViTAutoEnc, 2-D small patches", None, {}, "refused"],
    ["monai==1.6.1, AutoencoderKlMaisi, 3-D, include_fc=False", None, {"use_convtranspose": True}, "untold"],
]


class TestSubset(unittest.TestCase):
    maxDiff = None

    @parameterized.expand([[case.slug] for case in subset()])
    def test_every_load_comes_to_what_the_facts_demand(self, name):
        loads = list(loads_into_the_fork(*load_file(FILES / f"{name}.pt.xz")))
        self.assertGreater(len(loads), 1)
        self.assertEqual([str(load) for load in loads if load.deviation], [])

    def test_holds_every_network_and_every_layout_in_small_files(self):
        cases = subset()
        self.assertEqual({case.network for case in cases}, set(NETWORKS))
        self.assertEqual({case.source for case in cases}, {case.source for case in CASES})
        files = {path.name for path in FILES.iterdir()}
        self.assertEqual(files, {f"{case.slug}.pt.xz" for case in cases})
        self.assertLess(sum(path.stat().st_size for path in FILES.iterdir()), 2.5e6)

    def test_a_file_tells_where_it_comes_from(self):
        case, content = kept("monai-generative==0.2.3, VQVAE, 2-D")
        self.assertEqual(vars(case), vars(find(case.name)))
        self.assertEqual(content["written by"], ["monai-generative==0.2.3", "monai==1.3.2"])
        self.assertEqual(content["command"], "python -m tests.parity.references --make-subset")


class TestRules(unittest.TestCase):
    @parameterized.expand(TEST_CASES_RULES)
    def test_verdict(self, beginning, network, options, verdict):
        case = find(beginning)
        self.assertEqual(expected(case, Target(network or case.network, case.kwargs, options)).verdict, verdict)

    def test_nothing_stays_untold_once_the_user_tells(self):
        for case in CASES:
            facts = known_facts(case)
            for options in (FC, NO_FC, {"use_convtranspose": True}, {"use_convtranspose": False}):
                self.assertNotEqual(expected(case, Target(case.network, case.kwargs, options), facts).verdict, "untold")

    def test_projections_that_were_never_trained_are_recognized_with_a_warning(self):
        case = find(
            "monai==1.4.0, AutoencoderKL, 2-D, include_fc=False, use_combined_linear=False, untrained projections"
        )
        for options, way, verdict, warned in (
            (NO_FC, "plain", "exact", True),
            (FC, "plain", "untold", False),
            (FC, "old", "untold", True),
        ):
            wanted = expected(case, Target(case.network, case.kwargs, options), way=way)
            self.assertEqual((wanted.verdict, wanted.warned), (verdict, warned))

    def test_nothing_is_written_inside_another_module(self):
        case = find("monai==1.5.2, AutoencoderKL, 2-D, include_fc=False, use_combined_linear=True")
        for way, verdict in (("plain", "exact"), ("nested", "refused")):
            self.assertEqual(expected(case, Target(case.network, case.kwargs, FC), way=way).verdict, verdict)


class TestJudge(unittest.TestCase):
    """What a load must not do is seen."""

    def setUp(self):
        self.case, self.reference = kept("monai==1.6.1, DecoderOnlyTransformer, cross")

    def attempt(self, way="plain"):
        return attempt(self.case.network, self.case.kwargs, self.reference, way)

    @parameterized.expand(
        [
            ["monai-generative before 0.1.0, DiffusionModelUNet, 3-D"],
            ["monai-generative==0.2.3, AutoencoderKL, 2-D"],
            ["monai-generative==0.2.3, DecoderOnlyTransformer, cross"],
        ]
    )
    def test_weights_matter(self, name):
        case, reference = kept(name)
        for key, value in list(reference["state_dict"].items())[::3]:
            # the softmax cancels a bias of the keys; masks and unused projections are not loaded
            if key.endswith(("to_k.bias", "causal_mask")) or ".proj_attn." in key:
                continue
            changed = {**reference["state_dict"], key: value * 1.5}
            result = attempt(case.network, case.kwargs, {**reference, "state_dict": changed})
            self.assertEqual((key, result.verdict), (key, "WRONG"))

    def test_exact(self):
        result = self.attempt()
        self.assertEqual((result.verdict, result.complaints), ("exact", ()))
        self.assertLess(result.difference, 1e-5)

    def test_outputs_that_are_not_numbers_are_wrong(self):
        self.reference["state_dict"] = {
            key: value * float("nan") for key, value in self.reference["state_dict"].items()
        }
        self.assertEqual(self.attempt().verdict, "WRONG")

    def test_an_error_that_is_no_refusal(self):
        with mock.patch.object(DecoderOnlyTransformer, "load_state_dict", side_effect=KeyError("to_q")):
            result = self.attempt()
        self.assertEqual((result.verdict, result.said), ("broken", "KeyError: 'to_q'"))

    @parameterized.expand([["emptied", dict.clear], ["written_into", lambda given: given["to_logits.bias"].zero_()]])
    def test_a_load_that_changes_the_checkpoint(self, _name, change):
        def load(_net, given):
            change(given)

        with mock.patch.object(DecoderOnlyTransformer, "load_state_dict", load):
            self.assertEqual(self.attempt().complaints, ("the load changed the checkpoint",))

    def test_a_refusal_that_changes_the_network(self):
        def refuse(net, _given):
            net.to_logits.bias.data.zero_()
            raise RuntimeError("no")

        with mock.patch.object(DecoderOnlyTransformer, "load_state_dict", refuse):
            result = self.attempt()
        self.assertEqual((result.verdict, result.complaints), ("refused", ("the refusal changed the network",)))

    def test_a_deviation_is_told(self):
        load = next(loads_into_the_fork(self.case, self.reference))
        self.assertEqual(load.deviation, "")
        spoiled = {**self.reference, "output": self.reference["output"] + 1}
        load = next(loads_into_the_fork(self.case, spoiled))
        self.assertIn("WRONG, not exact", load.deviation)
        self.assertIn("1 deviate", as_markdown([load]))


class TestCommand(unittest.TestCase):
    def run_main(self, *arguments: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(list(arguments))
            except SystemExit as stop:
                code = stop.code
        return code, out.getvalue(), err.getvalue()

    def test_list(self):
        code, out, _ = self.run_main("--list", "--package", "monai==1.2.0", "--network", "ViT")
        self.assertEqual((code, len(out.splitlines())), (0, 6))

    def test_a_name_that_means_nothing(self):
        code, _, err = self.run_main("--network", "Vit")
        self.assertEqual(code, 2)
        self.assertIn("no checkpoint matches ['*'] and ['Vit']", err)

    @pytest.mark.slow  # fetches two packages and runs them
    def test_real_packages(self):
        with tempfile.TemporaryDirectory() as folder:
            table, entries = Path(folder, "table.md"), Path(folder, "loads.json")
            arguments = ["--package", "monai-generative==0.2.3", "--network", "DecoderOnlyTransformer"]
            code, out, _ = self.run_main(*arguments, "--jobs", "1", "--markdown", str(table), "--json", str(entries))
            self.assertEqual(code, 0, out)
            self.assertIn("| DecoderOnlyTransformer | 2 | 16 | 0 / 2 → 8 | 0 / 14 → 0 | 8 | 0 |", table.read_text())
            loads = json.loads(entries.read_text())
        self.assertEqual({load["release, old"] for load in loads if load["way"] == "plain"}, {"exact", "WRONG"})

    @parameterized.expand(
        [
            ["monai-generative==0.2.3, SPADEDiffusionModelUNet, 2-D"],
            ["monai-generative before 0.1.0, DiffusionModelUNet, 3-D"],
            ["monai==1.2.0, ViT, 2-D"],
        ]
    )
    @pytest.mark.slow  # runs three packages
    def test_the_kept_files_can_be_made_again(self, name):
        case, known = kept(name)
        with tempfile.TemporaryDirectory() as folder:
            (path,) = make_subset(Path(folder), [case])
            _, made = load_file(path)
        self.assertEqual(made["state_dict"].keys(), known["state_dict"].keys())
        for key, value in known["state_dict"].items():
            torch.testing.assert_close(made["state_dict"][key], value, rtol=0, atol=0)
        torch.testing.assert_close(made["output"], known["output"], rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    unittest.main()
