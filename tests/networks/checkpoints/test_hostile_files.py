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

"""Hundreds of files that lie, bomb or would run code: each is refused in words, in time, and nothing of it runs."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
import time
import unittest
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.apps.checkpoints.cli import main
from monai.networks.checkpoints import load_checkpoint, networks_in, read_checkpoint
from tests.commands import run_command
from tests.networks.checkpoints.hostile.case import FINE, Case
from tests.networks.checkpoints.hostile.folder_cases import folder_cases
from tests.networks.checkpoints.hostile.other_cases import other_cases
from tests.networks.checkpoints.hostile.safetensors_cases import safetensors_cases
from tests.networks.checkpoints.hostile.sandbox import Outcome, apart, measured, slowness
from tests.networks.checkpoints.hostile.torch_cases import torch_cases

torch.set_num_threads(1)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # sparse, quantized and nested tensors
    CASES = [*torch_cases(), *safetensors_cases(), *folder_cases(), *other_cases()]
SECONDS, MEMORY = 2.0, 300_000_000
REMEDY = re.compile(
    r"fetch|copy|save|pass|choose|convert|unpack|run |make|name|from a source|build|git lfs|pip", re.IGNORECASE
)
VIT = {"_target_": "monai.networks.nets.ViT", "in_channels": 1, "img_size": [8, 8], "patch_size": [4, 4]}
VIT |= {"hidden_size": 4, "mlp_dim": 4, "num_layers": 1, "num_heads": 1, "spatial_dims": 2}


class Small(nn.Module):
    """What some of the files may be meant for."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 2)


class Raised(NamedTuple):
    """What a function of the library raised: the names of its classes, and its text."""

    kinds: list[str]
    text: str


def attempt(function: Callable[[Path], Any], path: Path) -> Raised | None:
    """Call a function of the library; None where it raises nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(path)
    except Exception as error:
        return Raised([cls.__name__ for cls in type(error).__mro__], str(error))
    return None


def load(path: Path) -> None:
    """Load into a network, which stays as it is where that fails."""
    net = Small()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    try:
        load_checkpoint(net, path)
    except Exception:
        if not all(torch.equal(value, before[key]) for key, value in net.state_dict().items()):
            raise AssertionError("the network was changed") from None
        raise


class TestHostileFiles(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        with tempfile.TemporaryDirectory() as folder:  # what a command imports late need not be imported by each child
            path, config = Path(folder, "net.pt"), Path(folder, "vit.json")
            torch.save({"net.weight": torch.ones(2, 2)}, path)
            config.write_text(json.dumps(VIT))
            for name in ("convert", "verify"):
                target = ("-o", Path(folder, "out.pt")) if name == "convert" else ()
                run_command(main, name, path, *target, "--config", config)

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.inside = self.folder / "inside"
        self.inside.mkdir()
        self.config = self.folder / "vit.json"
        self.config.write_text(json.dumps(VIT))

    def test_how_many(self):
        names = [case.name for case in CASES]
        self.assertEqual(len(set(names)), len(names))
        self.assertGreater(len(names), 450)

    def test_the_sandbox(self):
        """Otherwise the tests below would prove nothing."""
        self.assertGreater(apart(lambda: measured(lambda: len(bytearray(400_000_000)))).memory, MEMORY)
        self.assertGreater(apart(lambda: measured(lambda: sum(range(3 * 10**7)))).seconds, 0.1)
        with self.assertRaisesRegex(AssertionError, "signal 11"):
            apart(lambda: os.kill(os.getpid(), signal.SIGSEGV))
        with self.assertRaisesRegex(AssertionError, "longer than 0.2"):
            apart(lambda: time.sleep(5), timeout=0.2)

    @parameterized.expand([(case.name, case) for case in CASES])
    @unittest.skipUnless(sys.platform == "linux", "measures by /proc")
    def test_case(self, _, case: Case):
        path = case.path(self.inside)
        before = sorted(str(item) for item in self.folder.rglob("*"))
        found = self.outcomes(case, path)
        for name, outcome in found:
            self.assertLess(outcome.memory, MEMORY, name)
            if isinstance(outcome.value, tuple) and not isinstance(outcome.value, Raised):
                self.check_command(case, name, *outcome.value)
            else:
                self.check_function(case, name, outcome.value, path)
        (self.folder / "out.pt").unlink(missing_ok=True)
        self.assertEqual(sorted(str(item) for item in self.folder.rglob("*")), before)

    def outcomes(self, case: Case, path: Path) -> list[tuple[str, Outcome]]:
        """What comes of each way to a file; of three attempts the first that is in time, as others use this machine."""
        for _ in range(3):
            found: list[tuple[str, Outcome]] = apart(lambda: list(self.entrances(case, path)))
            slowest, name = max((outcome.seconds, name) for name, outcome in found)
            if slowest < SECONDS * slowness():
                return found
        raise AssertionError(f"{name} takes {slowest:.1f} s")

    def entrances(self, case: Case, path: Path) -> Iterator[tuple[str, Outcome]]:
        """Ways to a file, and what comes of each; in a process that may end by it."""
        for function in [read_checkpoint] if case.is_heavy else [read_checkpoint, networks_in, load]:
            yield function.__name__, measured(lambda function=function: attempt(function, path))
        config = ("--config", self.config)
        commands: list[tuple] = [("inspect", path), ("inspect", path, "--json")]
        if not case.is_heavy:
            commands.append(("inspect", path, "--quick"))
            commands.append(("convert", path, "-o", self.folder / "out.pt", "--force", *config))
            commands.append(("verify", path, *config))
        for command in commands:
            name = f"{command[0]} {command[2] if command[0] == 'inspect' and len(command) > 2 else ''}"
            yield name, measured(lambda command=command: run_command(main, *command))

    def check_function(self, case: Case, name: str, raised: Raised | None, path: Path) -> None:
        if raised is None:
            self.assertTrue(FINE in case.pattern or name == "networks_in", f"{name} reads it")
        elif name != "load" or FINE not in case.pattern:  # which may read, and is for another network then
            self.assertIn(case.error.__name__, raised.kinds, raised.text)
            self.assertRegex(raised.text, re.compile(case.pattern, re.DOTALL))
            self.assertRegex(raised.text, REMEDY)
            self.assertIn(str(path), raised.text)
            self.assertLess(len(raised.text), 3000)

    def check_command(self, case: Case, name: str, code: int, out: str, err: str) -> None:
        self.assertNotIn("Traceback", err)
        for line in (out + err).split("\n"):
            self.assertTrue(line.replace("\t", "").isprintable(), line)
        inspects = name.startswith("inspect")
        codes = {
            "inspect --quick": case.inspected if case.glanced is None else case.glanced,
            "inspect --json": case.inspected,
            "inspect ": case.inspected,
        }
        expected = case.code if codes.get(name) is None else codes[name]
        if FINE in case.pattern and (code == 0 if inspects else code in (2, 3)):
            return
        self.assertEqual(code, expected, out + err)
        if code == 0:
            return
        if "--json" in name:
            self.assertEqual((json.loads(out)["exit_code"], err), (expected, ""))
            return
        self.assertEqual(out, "")
        self.assertRegex(err, re.compile(f"^error: .*({case.pattern})", re.DOTALL))


if __name__ == "__main__":
    unittest.main()
