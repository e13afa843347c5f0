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
import dataclasses
import importlib
import inspect
import io
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest.mock import Mock, patch

import matplotlib.image
import pytest
import torch
from parameterized import parameterized

from benchmarks import kernels, operations, picture, table
from benchmarks.__main__ import main
from benchmarks.case import Case, Goals, Growth, Input, Setting
from benchmarks.cases import CASES, GROWTHS, choose
from benchmarks.curve_cases import CURVES, GPU, LARGE
from benchmarks.measure import FIXED_ALLOCATION, seconds
from benchmarks.processes import BenchmarkError, Processes
from benchmarks.result import Check, Result, exponent, grown
from benchmarks.run import Effort, measure
from benchmarks.small_cases import SMALL
from benchmarks.target_cases import SABLOCK, TARGETS, decoder
from benchmarks.training_cases import LOADING, TRAINING
from benchmarks.work import WORK, make
from fork import pristine
from fork.referee import ROOT

torch.set_num_threads(1)

MACHINE = {"device": "one CPU thread", "torch": "torch 2"}
SHORT = Effort(rounds=1, turn=0.001, budget=1.0)
SA = {"hidden_size": 8, "num_heads": 2}
TOKENS = {"x": Input((1, 8, 8))}
TINY = Case(
    "tiny", "a tiny SABlock", "tiny", SABLOCK, SA, TOKENS, goals=Goals(release=0.0, limit=1e9), tokens=8, flash=True
)
REL_POS = dataclasses.replace(
    TINY, name="tiny-rel-pos", options={**SA, "rel_pos_embedding": "decomposed", "input_size": (2, 2, 2)}, flash=False
)
BROKEN = dataclasses.replace(TINY, name="tiny-broken", options={**SA, "num_heads": 3})
SAMPLED = dataclasses.replace(
    CASES["decode-64"],
    name="tiny-decode",
    group="tiny",
    options=decoder(6, attn_layers_dim=8, attn_layers_heads=2, attn_layers_depth=2),
    tokens=6,
)
CONDITIONED = dataclasses.replace(
    SAMPLED,
    options={**SAMPLED.options, "with_cross_attention": True},
    inputs={**SAMPLED.inputs, "context": Input((1, 5, 8))},
)
VIT = {"in_channels": 1, "img_size": 8, "patch_size": 4, "hidden_size": 8, "mlp_dim": 16, "num_layers": 2}
TEST_CASE_LIMIT = [
    (name, CASES[name])
    for name in ("sablock-16", "sablock-causal", "sablock-16-train", "cross-small", "spatial-8x8", "transformer-16")
] + [
    ("separate", dataclasses.replace(TINY, options={**SA, "use_combined_linear": False, "qkv_bias": True})),
    ("without-projection", dataclasses.replace(TINY, options={**SA, "include_fc": False})),
    (
        "vit",
        dataclasses.replace(
            CASES["vit"], options={**VIT, "num_heads": 2}, inputs={"x": Input((1, 1, 8, 8, 8))}, tokens=8
        ),
    ),
    ("greedy", dataclasses.replace(SAMPLED, work="greedy")),
    ("greedy-conditioned", dataclasses.replace(CONDITIONED, work="greedy")),
]
TEST_CASE_BAD_ARGUMENT = [
    (["sablock", "nothing", "none"], "no case or group 'none', 'nothing'; groups are curves, gpu, large, loading"),
    (["tiny", "--device", "quantum"], "device 'quantum'"),
    (["tiny", "--device", "cuda"], "finds no CUDA GPU here"),
    (["tiny", "--rounds", "0"], "--rounds must be at least 1, got 0"),
    (["--from", "nowhere.json"], "nowhere.json"),
]


def first(output):
    """The tensor that counts: networks that return several begin with it."""
    return output if torch.is_tensor(output) else output[0]


def results() -> list[Result]:
    """Two made-up cases of a curve."""
    return [
        Result(
            dataclasses.replace(CASES["decode-511"], goals=Goals(release=3.0, limit=2.0, memory=0.1, rival=1.0)),
            {"fork": 0.5, "release": 2.0, "flash": 1.0, "limit": 0.2, "rival": 0.75},
            {"fork": 3_000_000, "release": 20_000_000},
            ("a note",),
        ),
        Result(CASES["decode-255"], {"fork": 0.25, "release": 0.5}, {"fork": 1_500_000, "release": 5_000_000}),
    ]


def run_main(*arguments: str) -> tuple[int, str, str]:
    """The command line in this process: its code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return code, out.getvalue(), err.getvalue()


class TestCases(unittest.TestCase):
    def test_names(self):
        """No case hides another, growths name cases that exist, and the groups can be chosen."""
        self.assertEqual(len(CASES), sum(map(len, (TARGETS, SMALL, TRAINING, LOADING, CURVES, LARGE, GPU))))
        for growth in GROWTHS:
            self.assertGreater(len(growth.cases), 1, growth.title)
            self.assertLessEqual(set(growth.cases), set(CASES), growth.title)
        self.assertEqual({case.group for case in choose([])}, {"targets", "small", "training", "loading", "curves"})
        self.assertEqual(choose(["small", "vit"]), [CASES["vit"], *SMALL])
        self.assertIn(CASES["decode-1023"], choose(["targets"]))
        self.assertNotIn(CASES["decode-1023"], choose(["targets"], quick=True))
        self.assertEqual(choose(["decode-1023"], quick=True), [CASES["decode-1023"]])

    @parameterized.expand([(name,) for name in CASES])
    def test_arguments(self, name):
        """The class takes the options of a case, and its method the inputs."""
        case = CASES[name]
        module, _, class_name = case.target.rpartition(".")
        target = getattr(importlib.import_module(module), class_name)
        inspect.signature(target).bind(**case.options)
        method = target.forward if case.method == "__call__" else getattr(target, case.method)
        if case.work not in ("state_dict", "load"):
            inspect.signature(method).bind(None, **case.inputs)
        self.assertIn(case.work, WORK)
        if case.flash:
            self.assertIn("use_flash_attention", inspect.signature(target).parameters)

    @parameterized.expand(TEST_CASE_LIMIT)
    def test_limit(self, _, case):
        """A limit computes what its network does."""
        expected, result = (first(make(case, variant, Setting())()) for variant in ("network", "limit"))
        self.assertGreater(float(expected.double().std()), 0.0)
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)

    def test_limit_draws(self):
        """The limit of sampling draws tokens, one a step."""
        drawn = [make(CONDITIONED, "limit", Setting())() for _ in range(5)]
        self.assertEqual(drawn[0].shape, (1, 6))
        self.assertFalse(all(torch.equal(drawn[0], tokens) for tokens in drawn))

    def test_compiled(self):
        """What is to be compiled is, and nothing else."""
        greedy = dataclasses.replace(SAMPLED, work="greedy")
        for case, compiled in ((TINY, "SABlock"), (greedy, "CachedDecoder")):
            with patch.object(torch.nn.Module, "compile", autospec=True) as compiling:
                make(case, "network", Setting())
                make(dataclasses.replace(case, compiled=True), "limit", Setting())
                compiling.assert_not_called()
                make(dataclasses.replace(case, compiled=True), "network", Setting())
                self.assertEqual(type(compiling.call_args.args[0]).__name__, compiled)

    def test_ill_variants(self):
        with self.assertRaisesRegex(ValueError, "no variant 'best', there are network, flash"):
            make(TINY, "best", Setting())
        with self.assertRaisesRegex(ValueError, "no limit is known for .*VQVAE"):
            make(CASES["vqvae-small"], "limit", Setting())

    def test_step(self):
        """A step of training hands a gradient of every weight to the optimizer, and is the same each time."""
        gradients = []

        def step(optimizer):
            gradients.extend(weight.grad for group in optimizer.param_groups for weight in group["params"])

        with patch.object(torch.optim.SGD, "step", step):
            call = make(dataclasses.replace(TINY, work="step"), "network", Setting())
            self.assertEqual(float(call()), float(call()))
        self.assertEqual(len(gradients), 6)
        self.assertTrue(all(float(gradient.abs().max()) > 0.0 for gradient in gradients))

    def test_load(self):
        self.assertEqual(int(make(dataclasses.replace(TINY, work="load"), "network", Setting())()), 3)

    def test_weights_follow_their_names(self):
        """Two networks of a case are equal, in another type as well; no output is constant."""
        one, two = (make(CASES["unet-small"], "network", Setting())() for _ in range(2))
        self.assertTrue(torch.equal(one, two))
        self.assertGreater(float(one.std()), 0.0)
        double = make(CASES["unet-small"], "network", Setting(dtype=torch.float64))()
        self.assertEqual(double.dtype, torch.float64)
        torch.testing.assert_close(one.double(), double, atol=1e-4, rtol=1e-4)


class TestMeasure(unittest.TestCase):
    def test_seconds(self):
        """The shortest of the calls counts, a warm-up does not."""
        times = iter([0.0, 3.0, 10.0, 11.0, 20.0, 22.0])
        called = []
        with patch.dict("benchmarks.measure.CLOCKS", wall=lambda: next(times)):
            self.assertEqual(seconds(lambda: called.append(0), 3, Setting()), 1.0)
        self.assertEqual(len(called), 4)
        self.assertGreater(seconds(lambda: sum(range(10000)), 1, Setting(clock="cpu"), warm=False), 0.0)

    @unittest.skipUnless(sys.platform == "linux", "the memory of a process is read from Linux's /proc")
    def test_peak_bytes(self):
        """A tensor that lives during the call counts, what came before does not."""
        program = (
            "import torch; from benchmarks.case import Setting; from benchmarks.measure import peak_bytes; "
            "kept = torch.ones(5_000_000); "
            "print(peak_bytes(lambda: torch.ones(20_000_000).sum(), Setting()), float(kept[0]))"
        )
        environment = {**os.environ, **FIXED_ALLOCATION}
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True, text=True
        )
        peak, first = done.stdout.split()
        self.assertGreater(int(peak), 75e6)
        self.assertLess(int(peak), 95e6)
        self.assertEqual(float(first), 1.0)


class TestResults(unittest.TestCase):
    def test_ratios(self):
        slow, fast = results()
        self.assertEqual((slow.speed_over("release"), slow.speed_over("flash"), slow.over_limit()), (4.0, 2.0, 2.5))
        self.assertIsNone(fast.over_limit())
        met = {check.what: check.met for check in slow.checks()}
        self.assertEqual(
            met,
            {
                "speed over the release": True,
                "speed over x-transformers": True,
                "time over the limit": False,
                "memory over the release's": False,
            },
        )
        self.assertEqual([check.met for check in fast.checks()], [True])
        self.assertEqual(str(Check("speed", 0.96, 0.97, True)), "speed 0.96 < 0.97")
        self.assertFalse(Check("speed", math.nan, 0.97, True).met)

    def test_growth(self):
        """Factors are by doubling, whatever the steps; the exponent is that of the power law."""
        self.assertAlmostEqual(exponent([10, 100, 1000], [3, 300, 30000]), 2.0)
        slow, fast = results()
        by_name = {"decode-511": slow, "decode-255": fast}
        growth = Growth("time", ("decode-255", "decode-511"), "seconds", 1.9, per_doubling=True)
        found = grown(growth, by_name)
        self.assertAlmostEqual(found.doublings[0], 2.0, delta=0.01)
        self.assertFalse(found.check.met)
        self.assertTrue(grown(dataclasses.replace(growth, at_most=1.9, per_doubling=False), by_name).check.met)
        self.assertIsNone(grown(dataclasses.replace(growth, cases=("decode-255", "decode-64")), by_name))
        self.assertEqual(grown(growth, by_name, "release").growth, growth)

    def test_table(self):
        text = table.table(results())
        row = next(line for line in text.splitlines() if "511 tokens sampled" in line)
        for part in ("500.0", "2,000", "4.00x", "2.00x", "2.50x", "3.0", "20.0", "[1, 2]"):
            self.assertIn(part, row)
        self.assertIn("missed: time over the limit 2.5 > 2; memory over the release's 0.15 > 0.1", row)
        self.assertIn("[1] a note\n[2] x-transformers, with its cache: 750.0 ms, 1.50x", text)
        self.assertRegex(text, "255 tokens sampled .* met\n")
        document = table.markdown(results(), [], MACHINE, "python -m benchmarks")
        self.assertIn("`python -m benchmarks` on one CPU thread, torch 2:", document)
        self.assertEqual(len([line for line in document.splitlines() if line.startswith("|")]), 4)

    def test_files(self):
        """JSON holds everything and is read back; the picture is one."""
        with tempfile.TemporaryDirectory() as folder:
            file, png = Path(folder) / "results.json", Path(folder) / "curves.png"
            plain = [dataclasses.replace(result, case=CASES[result.case.name]) for result in results()]
            table.write_json(file, plain, [], MACHINE)
            again, machine = table.read_json(file)
            self.assertEqual((machine, [r.as_row() for r in again]), (MACHINE, [r.as_row() for r in plain]))
            self.assertEqual(json.loads(file.read_text())["results"][0]["speed_over_release"], 4.0)
            self.assertTrue(picture.save(png, plain, MACHINE))
            pixels = matplotlib.image.imread(png)
            self.assertGreater(min(pixels.shape[:2]), 400)
            self.assertGreater(float(pixels.std()), 0.05)
            self.assertFalse(picture.save(png, plain[:1], MACHINE))
            code, out, _ = run_main("--from", str(file), "--markdown", str(Path(folder) / "table.md"))
            self.assertEqual(code, 0)
            self.assertIn("511 tokens sampled", out)
            file.write_text(file.read_text().replace("decode-255", "gone"))
            self.assertIn("holds cases that are no longer known: gone", run_main("--from", str(file))[2])


class TestCommandLine(unittest.TestCase):
    @parameterized.expand(TEST_CASE_BAD_ARGUMENT)
    def test_bad_arguments(self, arguments, message):
        if "cuda" in arguments and torch.cuda.is_available():
            self.skipTest("this machine has a CUDA GPU, which is no bad argument")
        with patch.dict(CASES, tiny=TINY):
            code, _, err = run_main(*arguments)
        self.assertEqual(code, 1)
        self.assertIn(message, err)

    def test_list(self):
        code, out, _ = run_main("--list")
        self.assertEqual((code, len(out.splitlines())), (0, len(CASES)))

    def test_no_fork(self):
        """A Python that finds the release in the place of the fork is told so."""
        with patch("benchmarks.processes.find_spec") as found:
            found.return_value.origin = str(pristine() / "monai" / "__init__.py")
            with patch.dict(CASES, tiny=TINY):
                self.assertIn("is a release of MONAI, install the fork", run_main("tiny")[2])

    def test_kernels(self):
        rows = list(kernels.rows_of(16, "float32", 32))
        self.assertEqual(len(rows), 2 * len(kernels.OPTIONS))
        lines = kernels.kernel_table([dataclasses.replace(rows[0], bytes=32 * 32 * 4), *rows[1:]]).splitlines()
        self.assertEqual(len(lines), 3)
        self.assertTrue(lines[2].startswith("| 16 | float32 | **1.0** / "))


class TestOperations(unittest.TestCase):
    """Counted, not timed."""

    def test_count(self):
        weight = torch.ones(3, 4, requires_grad=True)
        calls, numbers = operations.count_operations(lambda: (torch.ones(2, 3) @ weight.t().t()).sum())
        self.assertEqual((calls, numbers), (3, 6 + 8 + 1))  # ones, the product, the sum; a transposition writes nothing

    def test_table(self):
        row = operations.OperationsRow(TINY, (1200, 3), (2_000_000, 4_400_000))
        last = operations.operations_table([row]).splitlines()[-1]
        self.assertEqual(last, f"| {TINY.title} | 1,200 | 3 | 2.0 M | 4.4 M |")


class TestProcesses(unittest.TestCase):
    """The fork and the release, for real."""

    @classmethod
    def setUpClass(cls):
        cls.processes = Processes()
        cls.addClassCleanup(cls.processes.close)

    def assert_no_more(self, name):
        """What a training step asks torch for."""
        row = next(operations.measure_operations([CASES[name]], self.processes))
        for ours, theirs in (row.calls, row.numbers):
            self.assertGreater(ours, 0)
            self.assertLessEqual(ours, theirs)

    @parameterized.expand([("step-vitautoenc",), ("step-vqvae",)])
    def test_no_more_than_in_the_release(self, name):
        self.assert_no_more(name)

    @parameterized.expand([(case.name,) for case in TRAINING if case.name not in ("step-vitautoenc", "step-vqvae")])
    @pytest.mark.grid
    def test_no_more_in_other_networks(self, name):
        self.assert_no_more(name)

    def test_release_is_the_release(self):
        release, fork = (Path(self.processes.ask(which, "where")[0]).resolve() for which in ("release", "fork"))
        self.assertTrue(release.is_relative_to(pristine().resolve()))
        self.assertFalse(fork.is_relative_to(pristine().resolve()))
        self.assertNotEqual(self.processes.version("release"), self.processes.version("fork"))

    @parameterized.expand([("release", "fork"), ("fork", "release")])
    def test_wrong_origin(self, which, other):
        """Where a process runs another MONAI than it should, all are ended."""
        started = []

        def start(worker, variables):
            runs = other if variables["side"] == which else variables["side"]
            started.append(Mock(ask=Mock(return_value=self.processes.ask(runs, "where"))))
            return started[-1]

        with Processes() as processes, patch("benchmarks.processes.Referee", start):
            processes.variables = {side: {"side": side} for side in ("fork", "release")}
            with self.assertRaisesRegex(BenchmarkError, f"the process of the {which} imported .*monai"):
                processes.ask("fork", "peak")
        for referee in started:
            referee.close.assert_called_once()

    def test_run(self):
        """One run of the command line: times and peaks of all sides, in the table and in the file."""
        tiny = {case.name: case for case in (TINY, REL_POS, BROKEN, SAMPLED)}
        with tempfile.TemporaryDirectory() as folder, patch.dict(CASES, tiny), patch.object(Processes, "close"):
            file = Path(folder) / "results.json"
            with patch("benchmarks.__main__.Processes", return_value=self.processes):
                code, out, err = run_main("tiny", "--quick", "--rounds", "1", "--clock", "cpu", "--json", str(file))
            rows = {row["name"]: row for row in json.loads(file.read_text())["results"]}
        self.assertEqual(code, 1, err)  # for the broken case
        self.assertRegex(out, "a tiny SABlock +[0-9.]+ +[0-9.]+ +[0-9.]+x")
        self.assertEqual(set(rows["tiny"]["seconds"]), {"fork", "release", "flash", "limit"})
        self.assertEqual(set(rows["tiny"]["bytes"]), {"fork", "release", "flash", "limit"})
        self.assertGreater(min(rows["tiny"]["seconds"].values()), 0.0)
        self.assertEqual(rows["tiny"]["notes"], [])
        self.assertTrue(rows["tiny"]["checks"][0]["met"])
        self.assertIn("the result of release is another one", rows["tiny-rel-pos"]["notes"][0])
        self.assertEqual(rows["tiny-decode"]["notes"], [])
        self.assertTrue(rows["tiny-broken"]["failed"])
        self.assertIn("the fork fails: ValueError: hidden_size 8 should be divisible", out)

    def test_obstacles(self):
        """What this machine lacks is noted, not measured."""
        compiled = dataclasses.replace(TINY, compiled=True)
        with patch.object(shutil, "which", return_value=None):
            result = measure(compiled, self.processes, Setting(), SHORT)
        self.assertEqual(result.seconds, {})
        self.assertIn("not measured: torch.compile needs a C++ compiler", result.notes[0])
        rival = dataclasses.replace(SAMPLED, rival=True, release=False, memory=False)
        with patch("benchmarks.run.find_spec", return_value=None):
            result = measure(rival, self.processes, Setting(), SHORT)
        self.assertEqual(set(result.seconds), {"fork", "limit"})
        self.assertIn("pip install x-transformers==", result.notes[0])


if __name__ == "__main__":
    unittest.main()
