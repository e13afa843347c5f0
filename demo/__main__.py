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

"""The fork's networks on a real MR scan: ``python -m demo`` from the root of the repository."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
NEEDED = ("torch", "nibabel", "matplotlib", "einops")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=HERE / "output", help="folder of the picture (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and training (%(default)s)")
    parser.add_argument("--json", type=Path, help="file to write every figure to")
    parser.add_argument("--device", default="cpu", help="device to run on (%(default)s)")
    parser.add_argument("--rows", help="rows to run, separated by commas (default: all)")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        action="append",
        default=[],
        help="checkpoint of an older package to take in place of the repository's of the same network; repeatable",
    )
    return parser.parse_args(argv)


def lacking() -> str | None:
    """What is not installed and how to install it, None where all is there."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return f"{', '.join(missing)} missing, run: pip install {' '.join(missing)}"
    monai = importlib.util.find_spec("monai")
    if monai is None or monai.origin is None:  # the repository's own monai/ is no package
        return f"the fork is not installed, run: pip install -e {HERE.parent}"
    return None


def main(argv: list[str] | None = None) -> int:
    """Run the demo; 1 where something does not hold."""
    args = parse(argv)
    start = time.perf_counter()
    reason = lacking()
    if reason:
        print(f"demo failed: {reason}", file=sys.stderr)
        return 1
    warnings.filterwarnings("ignore")
    from demo.checks import DemoError
    from demo.run import run

    try:
        failures = run(args)
    except (DemoError, OSError) as error:
        failures = [str(error)]
    if failures:
        print(f"demo failed: {'; '.join(failures)}", file=sys.stderr)
        return 1
    print(f"\nall checks passed in {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
