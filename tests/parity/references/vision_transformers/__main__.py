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
Load what the real packages write into networks of this one, and have the packages load what is written back: timm,
transformers of two generations and DINOv2, each in an environment of its own under build/foreign, with random weights.

The exit status is 1 if a result differs by more than 1e-5 of the largest value.
"""

from __future__ import annotations

import argparse
import lzma
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

import torch

from fork.referee import ROOT
from monai.networks.weights.source import translate_back
from monai.networks.weights.vit_config import transformers_config
from tests.networks.weights.vit_files import (
    CASES,
    FILES,
    TINY_SIZES,
    Case,
    as_mae,
    difference,
    load,
    network_for,
    results,
    source_of,
)
from tests.parity.references.vision_transformers import writer

TOLERANCE = 1e-5
ENVIRONMENTS = {
    "timm 1.0, transformers 5, DINOv2": (["timm==1.0.31", "transformers==5.24.0"], ["dinov2==0.0.1.dev2"]),
    "transformers 4": (["transformers==4.46.3", "numpy"], []),
}
OPTIONS = ({}, {"proj_type": "perceptron"}, {"use_combined_linear": False})


def interpreter(name: str) -> Path:
    """The Python of an environment, made on the first call."""
    home = ROOT / "build" / "foreign" / name.replace(" ", "_").replace(",", "")
    python = home / "bin" / "python"
    if not (home / "done").exists():
        packages, bare = ENVIRONMENTS[name]
        venv.create(home, with_pip=True, clear=True)
        version = torch.__version__.partition("+")[0]
        subprocess.run([python, "-m", "pip", "install", "-q", f"torch=={version}", *packages], check=True)
        if bare:
            subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", *bare], check=True)
        (home / "done").touch()
    return python


def rows(python: Path, names: list[str], folder: Path) -> Iterator[tuple[str, str, float]]:
    """Write, load, write back and read; each result with its difference."""
    _run(python, "write", folder, names)
    back = []
    for name in names:
        case, content = CASES[name], torch.load(folder / f"{name}.pt", weights_only=True)
        for kind in ("state_dict", "memory"):
            for options in OPTIONS if kind in content else ():
                net = network_for(case, **options)
                load(net, content[kind], None, content["config"], case.ignore, case.allow)
                words = [f"{key}={value}" for key, value in options.items()]
                yield name, ", ".join(["in", kind, *words]), difference(results(net, content), content)
                if kind == "state_dict":
                    last = net
        if name == "hf-mae":
            yield name, "in, keys of MAE's authors", _mae(case, content)
        if name != "hf-mae encoder":
            _write_back(last, case, folder)
            back.append(name)
    _run(python, "read", folder, back)
    for name in back:
        found = torch.load(folder / f"{name}.read.pt", weights_only=True)
        yield name, "back", difference(found, torch.load(folder / f"{name}.pt", weights_only=True))


def make_tiny(python: Path) -> None:
    """Write the files that the repository keeps."""
    FILES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        _run(python, "tiny", Path(folder), list(TINY_SIZES))
        for name in TINY_SIZES:
            raw = Path(folder, f"{name}.pt").read_bytes()
            path = FILES / f"{name}.pt.xz"
            path.write_bytes(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))
            print(f"{path.name}: {path.stat().st_size} bytes")


def _mae(case: Case, content: dict) -> float:
    net = network_for(case)
    load(net, as_mae(content["state_dict"]), "mae", {"num_heads": 2, "decoder_num_heads": 4})
    return difference(results(net, content), content)


def _write_back(net: torch.nn.Module, case: Case, folder: Path) -> None:
    if "classification_head.*" in case.allow:
        net.classification_head = torch.nn.Identity()
    layout = source_of(CASES[case.back or case.name].source)
    content = {"state_dict": translate_back(net, net.state_dict(), layout), "builder": case.back or case.name}
    if case.source.startswith("hf"):
        content["config"] = transformers_config(net, case.source)
    torch.save(content, folder / f"{case.name}.back.pt")


def _run(python: Path, command: str, folder: Path, names: list[str]) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([python, writer.__file__, command, folder, *names], check=True, env=environment)


def main() -> int:
    """Run the command. Returns 1 if a result differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity.references.vision_transformers", description=__doc__)
    parser.add_argument("--python", type=Path, help="an environment that is there already, with all packages")
    parser.add_argument(
        "--make-tiny", action="store_true", help=f"write the files of {FILES.relative_to(ROOT)}, and stop"
    )
    options = parser.parse_args()
    if options.make_tiny:
        make_tiny(options.python or interpreter(next(iter(ENVIRONMENTS))))
        return 0
    worst = 0.0
    for name in ENVIRONMENTS:
        names = [case for case in CASES if name.startswith("timm") or case.startswith("hf")]
        with tempfile.TemporaryDirectory() as folder:
            for case, way, value in rows(options.python or interpreter(name), names, Path(folder)):
                print(f"| {name} | {case} | {CASES[case].source} | {way} | {value:.1e} |", flush=True)
                worst = max(worst, value)
        if options.python:
            break
    print(f"largest difference {worst:.1e}, of at most {TOLERANCE:g}")
    return int(not worst <= TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
