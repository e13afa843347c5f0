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

"""Remake a checkpoint of the demo: the package that wrote it trains it anew on the slices of the scan.

From the root of the repository::

    python -m demo.make_checkpoint ViT              # MONAI 1.5.2, some minutes
    python -m demo.make_checkpoint AutoencoderKL    # GenerativeModels 0.2.3, about a minute

pip fetches the pinned packages into ``build/packages``; a process of their own trains with a fixed seed, on one thread,
and writes the state dict, a reference input, and the output that the package gives for it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from fork import ForkError
from fork.packages import environment

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "testing_data"


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint is made.

    Args:
        file: the checkpoint.
        packages: what writes it, the first ones first on the path.
        module: trains, when it is run.
        steps: how many updates the training takes.
    """

    file: Path
    packages: tuple[str, ...]
    module: str
    steps: int


RECIPES = {
    "ViT": Recipe(FOLDER / "vit_monai_1.5.2.pt", ("monai==1.5.2",), "demo.train_vit", 12000),
    "AutoencoderKL": Recipe(
        FOLDER / "autoencoderkl_generative_0.2.3.pt",
        ("monai-generative==0.2.3", "monai==1.3.2"),
        "demo.train_autoencoder",
        800,
    ),
}


def main(argv: list[str] | None = None) -> int:
    """Train with the old packages; 1 where that fails."""
    words, _, details = __doc__.partition("\n")
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m demo.make_checkpoint", description=words, epilog=details, formatter_class=style
    )
    parser.add_argument("network", choices=RECIPES)
    parser.add_argument("--output", type=Path, help="file to write (default: the one in tests/testing_data)")
    parser.add_argument("--steps", type=int, help="updates of the weights (default: those of the kept file)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and training (default: %(default)s)")
    args = parser.parse_args(argv)
    recipe = RECIPES[args.network]
    output = (args.output or recipe.file).resolve()
    command = [sys.executable, "-W", "ignore", "-m", recipe.module, f"--output={output}", f"--seed={args.seed}"]
    command.append(f"--steps={recipe.steps if args.steps is None else args.steps}")
    try:
        subprocess.run(command, check=True, cwd=ROOT, env=environment(*recipe.packages))
    except (ForkError, subprocess.CalledProcessError) as error:
        print(f"demo.make_checkpoint failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
