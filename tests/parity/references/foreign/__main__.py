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

"""
Build the networks of other packages with random weights, load these into ours, compare the outputs, and hand the
weights back to the packages.

diffusers is installed into an environment of its own below build/, with the torch that runs this; MONAI's older
releases are unpacked. The exit status is 1 if an output differs by more than 1e-5 of the largest.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from fork.packages import unpacked
from fork.referee import ROOT
from monai.networks.weights.source import translate_back
from monai.networks.weights.sources_diffusion import diffusers_config
from tests.networks.weights.foreign.files import keep
from tests.networks.weights.foreign.loading import build, difference, load, outputs, source
from tests.networks.weights.foreign.rows import KEPT, PACKAGES, ROWS, TOLERANCE, Row


def process(package: str) -> tuple[str, list[str]]:
    """The interpreter that imports a package, and the folders that it looks into first."""
    if package.startswith("monai=="):
        return sys.executable, [str(unpacked(package)), str(ROOT)]
    home = ROOT / "build" / "packages" / f"{package.replace('==', '-')}-environment"
    python = home / "bin" / "python"
    if not (home / "complete").exists():
        venv.create(home, with_pip=True, clear=True)
        requirements = [package, f"torch=={torch.__version__.partition('+')[0]}", "numpy", "safetensors"]
        subprocess.run([python, "-m", "pip", "install", "-q", *requirements], check=True)
        (home / "complete").touch()
    return str(python), [str(ROOT)]


def ask(package: str, task: str, place: Path) -> dict[str, Any]:
    """Have a package write or run, see :mod:`~tests.parity.references.foreign.writer`."""
    python, folders = process(package)
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"}
    command = [python, "-W", "ignore", "-m", "tests.parity.references.foreign.writer", task, str(place), package]
    subprocess.run(command, check=True, cwd=place.parent, env=variables)
    answer: dict[str, Any] = torch.load(place, weights_only=True)
    return answer


def try_row(row: Row, reference: dict[str, Any], handed: dict[str, Any]) -> float:
    """Load a reference, and add what goes back to the package. Returns the difference of the outputs."""
    net = build(row)
    layout = source(row.source)
    load(net, reference["state_dict"], layout, reference["config"], row.allow)
    if layout.reversible:
        back = {"config": diffusers_config(net), "state_dict": translate_back(net, net.state_dict(), layout)}
        handed[row.full_name] = {**back, "inputs": reference["inputs"]}
    return difference(outputs(net, reference["inputs"]), reference["output"])


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns 1 if an output differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity.references.foreign", description=__doc__)
    parser.add_argument("--package", default="*", metavar="PATTERN", help=f"of {', '.join(PACKAGES)}")
    parser.add_argument("--make-files", action="store_true", help="write the files of tests/testing_data/weights")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    wrong = 0
    print("| network | into ours | back again |\n|---|---|---|")
    for package in (one for one in PACKAGES if fnmatch(one, options.package)):
        with tempfile.TemporaryDirectory() as scratch:
            references = ask(package, "write", Path(scratch, "references.pt"))
            rows = [row for row in ROWS if row.package == package]
            handed: dict[str, Any] = {}
            into = {row.full_name: try_row(row, references[row.full_name], handed) for row in rows}
            if handed:
                torch.save(handed, Path(scratch, "handed.pt"))
                handed = ask(package, "run", Path(scratch, "handed.pt"))
        for row in rows:
            name = row.full_name
            back = difference(handed[name]["output"], references[name]["output"]) if name in handed else None
            wrong += not (into[name] <= TOLERANCE and (back is None or back <= TOLERANCE))
            print(f"| {name} | {into[name]:.1e} | {'-' if back is None else f'{back:.1e}'} |")
            if options.make_files and name in KEPT:
                print(f"{keep(row, references[name]).stat().st_size} bytes kept")
    print(f"{len(ROWS)} networks known, {wrong} WRONG")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
