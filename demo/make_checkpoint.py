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

"""Remake ``tests/testing_data/vit_monai_1.5.2.pt``, a ViT that MONAI 1.5.2 trained on the slices of the demo's scan.

From the root of the repository, with nothing but Python::

    python -m demo.make_checkpoint

makes an environment in ``build/monai-1.5.2``, installs MONAI 1.5.2 there from PyPI, trains for some minutes with a
fixed seed and writes the file: state dict, a reference input, and the output that MONAI 1.5.2 gives for it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "tests" / "testing_data" / "vit_monai_1.5.2.pt"
REQUIREMENTS = ("torch==2.13.0", "monai==1.5.2", "numpy>=2.2,<2.5", "einops==0.8.2", "nibabel==5.4.2")


def environment(folder: Path) -> Path:
    """Make the environment of the old release where it is missing, and return its interpreter."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)
    return python


def main() -> int:
    """Train in the old environment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=CHECKPOINT, help="file to write (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=12000, help="training steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed (default: %(default)s)")
    args = parser.parse_args()
    try:
        python = environment(ROOT / "build" / "monai-1.5.2")
        command = [python, "-W", "ignore", "-m", "demo.train_checkpoint", "--output", args.output.resolve()]
        subprocess.run([*command, f"--steps={args.steps}", f"--seed={args.seed}"], check=True, cwd=ROOT)
    except subprocess.CalledProcessError as error:
        print(f"demo.make_checkpoint: {' '.join(map(str, error.cmd))} failed", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
