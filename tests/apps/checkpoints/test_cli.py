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

import contextlib
import io
import json
import subprocess
import sys
import tempfile
import unittest
import warnings
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.apps.checkpoints.cli import main
from monai.apps.checkpoints.command_line import in_flags
from monai.apps.checkpoints.progress import bar
from monai.networks.checkpoints import read_checkpoint
from monai.networks.nets import DiffusionModelUNet
from monai.utils import optional_import
from tests.commands import help_and_imports, run_command

torch.set_num_threads(1)

_, HAS_TQDM = optional_import("tqdm")  # which draws the bars, and which nothing else needs

UNET = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "num_res_blocks": 1, "channels": [8, 16]}

UNET |= {"attention_levels": [False, True], "norm_num_groups": 4, "num_head_channels": 4}


def randomized(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return net.eval()


run = partial(run_command, main)


class CommandCase(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.path, self.config = self.folder / "net.pt", self.folder / "net.json"
        self.net = randomized(DiffusionModelUNet(**UNET))
        torch.save({"unet_state_dict": self.net.state_dict(), "scale_factor": 1.5}, self.path)
        self.write_config("DiffusionModelUNet", UNET)

    def write_config(self, name: str, arguments: dict) -> None:
        self.config.write_text(json.dumps({"_target_": f"monai.networks.nets.{name}", **arguments}))

    def assert_fails(self, code: int, pattern: str, *arguments: object) -> None:
        found, out, err = run(*arguments)
        self.assertEqual((found, out), (code, ""), err)
        self.assertRegex(err, f"^error: {pattern}")
        self.assertNotIn("Traceback", err)
        found, out, err = run(*arguments, "--json")
        self.assertEqual((found, err), (code, ""))
        answer = json.loads(out)
        self.assertEqual(answer["exit_code"], code)
        self.assertRegex(answer["error"], f"^{pattern}")


class TestInspect(CommandCase):
    def test_text(self):
        code, out, err = run("inspect", self.path)
        self.assertEqual((code, err), (0, ""))
        for words in ("torch zip", "unet_state_dict", "1.5", "float32", "this package", "NaN, inf"):
            self.assertIn(words, out)
        self.assertEqual(sum("middle_block.attention.attn " in line for line in out.splitlines()), 1)
        self.assertTrue(all(len(line) <= 140 for line in out.splitlines()), out)

    def test_json(self):
        code, out, _ = run("inspect", self.path, "--json")
        answer = json.loads(out)
        self.assertEqual((code, answer["command"], answer["exit_code"]), (0, "inspect", 0))
        (network,) = answer["networks"]
        self.assertEqual(network["keys"], len(self.net.state_dict()))
        self.assertEqual(network["attention"][0]["projection"], "used")
        self.assertEqual(network["layouts"][0]["name"], "own")
        torch.save({**self.net.state_dict()}, self.path)  # as the release writes it, which says no more
        (network,) = json.loads(run("inspect", self.path, "--json")[1])["networks"]
        self.assertEqual(network["attention"][0]["projection"], "trained")
        self.assertEqual(network["layouts"][0]["source"], "MONAI 1.2 or newer")
        self.assertEqual(
            json.loads(run("inspect", self.path, "--json", "--quick")[1])["networks"][0]["not_finite"], None
        )

    def test_failures(self):
        self.assert_fails(2, "absent.pt does not exist", "inspect", "absent.pt")
        self.assert_fails(2, ".* called 'ema'.*'unet_state_dict'", "inspect", self.path, "--name", "ema")
        self.path.write_bytes(self.path.read_bytes()[:-1000])
        self.assert_fails(3, "", "inspect", self.path)
        self.path.write_bytes(b"")
        self.assert_fails(3, ".*empty", "inspect", self.path)

    def test_code_in_a_pickle(self):
        marker = self.folder / "it ran"

        class Evil:
            def __reduce__(self):
                return (open, (str(marker), "w"))

        torch.save({"weight": torch.ones(2, 2), "evil": Evil()}, self.path)
        self.assert_fails(3, "", "inspect", self.path)
        self.assertFalse(marker.exists())


class TestConvert(CommandCase):
    def test_formats_and_layouts(self):
        for name, layout in (("new.safetensors", "fork"), ("new.pt", "monai-1.6")):
            target = self.folder / name
            arguments = ("convert", self.path, "-o", target, "--config", self.config, "--to", layout)
            code, out, err = run(*arguments)
            self.assertEqual((code, err), (0, ""))
            self.assertIn("DiffusionModelUNet", out)
            found = read_checkpoint(target)
            self.assertEqual(found.scale_factor, 1.5)
            for key, value in self.net.state_dict().items():
                self.assertTrue(torch.equal(found.state_dict[key], value), key)
            self.assert_fails(2, f"'{target}' exists: .*--force", *arguments)
            self.assertEqual(run(*arguments, "--force")[0], 0)
        answer = json.loads(run(*arguments, "--force", "--json")[1])
        self.assertEqual((answer["layout"], answer["keys_written"]), ("monai-1.6", len(self.net.state_dict())))
        self.assertEqual(answer["arguments"], UNET)

    def test_in_place(self):
        arguments = ("convert", self.path, "-o", self.path, "--config", self.config)
        self.assert_fails(2, ".*exists", *arguments)
        self.assertEqual(run(*arguments, "--force")[0], 0)
        self.assertEqual(read_checkpoint(self.path).state_dict.keys(), self.net.state_dict().keys())

    def test_failures(self):
        target = self.folder / "new.pt"
        start = ("convert", self.path, "-o", target, "--config")
        self.write_config("DiffusionModelUNet", {**UNET, "channels": [8, 32]})
        self.assert_fails(3, "(.|\n)*size mismatch", *start, self.config)
        self.write_config("DiffusionModelUNet", {**UNET, "depth": 3})
        self.assert_fails(2, ".*cannot be built.*'depth'", *start, self.config)
        self.assert_fails(2, "there is no configuration 'absent.json'", *start, "absent.json")
        self.assert_fails(2, ".*no suffix", "convert", self.path, "-o", "new.txt", "--config", self.config)
        self.assert_fails(2, "there is no folder", "convert", self.path, "-o", "absent/a.pt", "--config", self.config)
        self.assertFalse(target.exists())

    def test_facts(self):
        """An error asks for a flag, and the flag answers it."""
        torch.save(dict(self.net.state_dict()), self.path)  # a file of the fork's own says what was used
        self.write_config("DiffusionModelUNet", {**UNET, "use_proj_attn": False})
        arguments = ("convert", self.path, "-o", self.folder / "new.pt", "--config", self.config)
        self.assert_fails(3, "(.|\n)*pass --projection-used no", *arguments)
        self.assertEqual(run(*arguments, "--projection-used", "no")[0], 0)

    def test_interrupted(self):
        arguments = ("convert", self.path, "-o", self.folder / "new.pt", "--config", self.config)
        with mock.patch("torch.save", side_effect=KeyboardInterrupt):
            self.assert_fails(130, "interrupted", *arguments)
        self.assertEqual(sorted(path.name for path in self.folder.iterdir()), ["net.json", "net.pt"])

    def test_the_memory_does_not_suffice(self):
        arguments = ("convert", self.path, "-o", self.folder / "new.pt", "--config", self.config)
        with mock.patch("torch.save", side_effect=MemoryError):
            self.assert_fails(2, "the memory does not suffice", *arguments)


class TestVerify(CommandCase):
    def test_text_and_json(self):
        code, out, err = run("verify", self.path, "--config", self.config)
        self.assertEqual((code, err), (0, ""))
        answer = json.loads(run("verify", self.path, "--config", self.config, "--json")[1])
        (output,) = answer["outputs"]
        self.assertIn(output["sha256"], out)
        self.assertRegex(output["sha256"], "^[0-9a-f]{64}$")
        self.assertEqual((answer["comparison"], answer["network"]), (None, "DiffusionModelUNet"))
        other = json.loads(run("verify", self.path, "--config", self.config, "--json", "--size", 8, "--batch", 1)[1])
        self.assertEqual(other["outputs"][0]["shapes"], [[1, 1, 8, 8]])

    def test_warnings(self):
        """NaN weights load, and are told."""
        with torch.no_grad():
            self.net.out[2].conv.weight[0, 0] = float("nan")
        torch.save(self.net.state_dict(), self.path)
        with warnings.catch_warnings(record=True) as leaked:
            warnings.simplefilter("always")
            code, out, err = run("verify", self.path, "--config", self.config)
            answer = json.loads(run("verify", self.path, "--config", self.config, "--json")[1])
        self.assertEqual((code, leaked), (0, []))
        self.assertRegex(err, "^warning: .*NaN or infinite.*out.2.conv.weight")
        self.assertEqual(err, "".join(f"warning: {text}\n" for text in answer["warnings"]))
        self.assertIsNone(answer["outputs"][0]["mean"])

    def test_failures(self):
        start = ("verify", self.path, "--config", self.config)
        self.assert_fails(2, "--size 9 does not fit", *start, "--size", 9)
        self.assert_fails(2, "--against: there is no", *start, "--against", "absent")
        self.assert_fails(2, "--against-config needs --against", *start, "--against-config", self.config)
        self.assert_fails(2, "absent.pt does not exist", *start, "--inputs", "absent.pt")
        for flag, value in (("--size", "0"), ("--batch", "-1"), ("--tolerance", "nan"), ("--seed", "x")):
            self.assert_fails(2, f"argument {flag}: ", *start, flag, value)


class TestAccounts(CommandCase):
    def setUp(self):
        super().setUp()
        state = {**self.net.state_dict(), "aux.weight": torch.ones(1, 1)}
        del state["out.2.conv.bias"]
        torch.save(state, self.path)
        self.start = (self.path, "--config", self.config)
        self.options = ("--allow", "out.*", "--ignore", "aux.*")

    def test_what_is_left_and_ignored_is_named(self):
        code, out, err = run("verify", *self.start, *self.options)
        self.assertEqual((code, err), (0, ""))
        self.assertRegex(out, r"account +\d+ loaded, 1 left; \d+ of \d+ tensors of the file used")
        self.assertRegex(out, r"left \(it may stay, by allow='out\.\*'\): out\.2\.conv\.bias")
        self.assertRegex(out, r"ignored \(left out by ignore='aux\.\*'\): aux\.weight")
        self.assertRegex(out, r"untrained +mean 0, std 0")

    def test_the_account_is_in_the_json(self):
        code, out, _ = run("convert", *self.start, *self.options, "-o", self.folder / "new.pt", "--json")
        account = json.loads(out)["account"]
        self.assertEqual(code, 0)
        outcomes = {line["key"]: line["outcome"] for line in account["parameters"]}
        self.assertEqual(outcomes.keys(), self.net.state_dict().keys())
        self.assertEqual([key for key, outcome in outcomes.items() if outcome == "left"], ["out.2.conv.bias"])
        self.assertNotIn("out.2.conv.bias", torch.load(self.folder / "new.pt"))

    def test_nothing_is_left_that_is_not_named(self):
        self.assert_fails(
            3, r"(.|\n)*out\.2\.conv\.bias(.|\n)*aux\.weight(.|\n)*--allow 'name\.\*'", "verify", *self.start
        )

    def test_values_of_the_options(self):
        for flag, value in (("--in-channels", "x"), ("--out-channels", "a"), ("--source", "nobody"), ("--grid", "0")):
            self.assert_fails(2, f".*{flag.strip('-').replace('-', '.')}", "verify", *self.start, flag, value)
        self.assert_fails(2, "argument --to", "convert", *self.start, "-o", self.folder / "new.pt", "--to", "nobody")


class TestCommandLine(CommandCase):
    def test_help(self):
        for command in ((), ("inspect",), ("convert",), ("verify",)):
            code, out, err = run(*command, "--help")
            self.assertEqual((code, err), (0, ""))
            self.assertRegex(out, "exit codes:\n  0 ")
            self.assertIn("examples", out)
            self.assertTrue(all(len(line) <= 125 for line in out.splitlines()))
        self.assertIn("$expressions are run", run("convert", "--help")[1])

    def test_help_imports_nothing(self):
        """Beyond ``import monai``, so that it costs no more."""
        self.assertRegex(help_and_imports("monai.networks.checkpoints"), r"usage: (.|\n)*\nimported: \[\]\n$")

    def test_usage(self):
        self.assert_fails(2, "the following arguments are required: COMMAND")
        self.assert_fails(2, "argument COMMAND: invalid choice", "remove")
        self.assert_fails(2, "the following arguments are required: FILE.*convert --help", "convert")
        self.assert_fails(2, "unrecognized arguments: --fast", "inspect", self.path, "--fast")
        self.assert_fails(
            2, "argument --to: invalid choice", "convert", "a", "-o", "b.pt", "--config", "c", "--to", "x"
        )

    def test_as_a_program(self):
        command = [sys.executable, "-W", "ignore", "-m", "monai.networks.checkpoints", "inspect", str(self.path)]
        done = subprocess.run([*command, "--json", "--progress"], capture_output=True, text=True, cwd=self.folder)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(json.loads(done.stdout)["networks"][0]["scale_factor"], 1.5)
        self.assertEqual("reading net.pt: 100%" in done.stderr, HAS_TQDM)


class TestParts(unittest.TestCase):
    @parameterized.expand(
        [
            (
                "Then load it by load_old_state_dict(state_dict, facts=CheckpointFacts(projection_used=False)).",
                "Then pass --projection-used no.",
            ),
            (
                "Load it by load_old_state_dict(state_dict, facts=CheckpointFacts(cross_attention_scaled=False)) if it "
                "was, and with True if not.",
                "Pass --cross-attention-scaled no if it was, and yes if not.",
            ),
            ("see CheckpointFacts.transposed_upsampling", "see --transposed-upsampling"),
            ("choose with name=, from 'a'", "choose with --name, from 'a'"),
            ("or pass overwrite=True to replace it", "or pass --force to replace it"),
        ]
    )
    def test_messages_name_flags(self, text, expected):
        self.assertEqual(in_flags(text), expected)

    def test_bar(self):
        for wanted, shown in ((True, True), (False, False), (None, False)):  # stderr is no terminal here
            err = io.StringIO()
            with contextlib.redirect_stderr(err), bar("reading", 2**30, wanted) as advance:
                advance(2**29)
            self.assertEqual("reading" in err.getvalue() and "50%" in err.getvalue(), shown and HAS_TQDM)
        with mock.patch.dict(sys.modules, {"tqdm": None}), bar("reading", 10, True) as advance:
            advance(10)


if __name__ == "__main__":
    unittest.main()
