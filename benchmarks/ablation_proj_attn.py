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
What the output projection of attention is worth: ``python -m benchmarks.ablation_proj_attn`` from the root.

Networks are trained on real MR slices with ``use_proj_attn=True`` and ``False``: an AutoencoderKL to give slices back,
a ViTAutoEnc to take noise off them. Denoising, not classification, as one head has no classes worth the name, while
every pixel is a target here, noise is new in every step, and PSNR judges both networks alike.

Both variants of a seed start from the same numbers in every parameter that both have, see the same images under the
same noise in the same order, and take their steps in turn. They are judged by blocks of neighboring slices; neither
these nor the slices next to them are trained on. All slices are those of one head, unless ``--data`` names a folder.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import torch

import monai
from benchmarks import ablation_picture, ablation_report
from benchmarks.__main__ import processor
from benchmarks.ablation_data import load_slices
from benchmarks.ablation_training import TASKS, Result, train
from demo.checks import DemoError
from monai.utils import optional_import

STEPS, SEEDS = 1000, 5

tqdm, has_tqdm = optional_import("tqdm", name="tqdm")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation_proj_attn", description=__doc__)
    parser.add_argument(
        "--data", type=Path, help="NIfTI file, or folder with such files (default: the example volume of nibabel)"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of every training (%(default)s)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many seeds to train with (%(default)s)")
    parser.add_argument("--networks", nargs="+", choices=TASKS, default=list(TASKS), help="networks (all)")
    parser.add_argument("--json", type=Path, help="file to write every number to")
    parser.add_argument("--png", type=Path, help="file to draw the curves to")
    parser.add_argument("--markdown", type=Path, help="file to write the table to")
    parser.add_argument("--from", type=Path, dest="source", help="show the --json of an earlier run, train nothing")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ablation; 1 where it cannot be run."""
    args = parse(argv)
    try:
        run(args)
    except (DemoError, OSError, ValueError) as error:
        print(f"ablation failed: {error}", file=sys.stderr)
        return 1
    return 0


def run(args: argparse.Namespace) -> None:
    """
    Train, or read an earlier run; print and write what was asked for.

    Raises:
        DemoError: if the default volume is missing.
        OSError: if the earlier run cannot be read.
        ValueError: if the data or a number is of no use, or a file would have no folder.
    """
    for path in (args.json, args.png, args.markdown):
        if path and not path.parent.is_dir():
            raise ValueError(f"there is no folder {path.parent} to write {path.name} to: make it first.")
    if args.source:
        results, setting = ablation_report.read_json(args.source)
    else:
        results, setting = measured(args)
    text = ablation_report.markdown(results, setting)
    print(text, end="")
    if args.json:
        ablation_report.write_json(args.json, results, setting)
    if args.markdown:
        args.markdown.write_text(text, encoding="utf-8")
    if args.png:
        ablation_picture.save(args.png, results, setting)


def measured(args: argparse.Namespace) -> tuple[list[Result], dict[str, Any]]:
    """
    Results of the networks, and what they depend on.

    Raises:
        DemoError: if the default volume is missing.
        ValueError: if the data or a number is of no use.
    """
    torch.set_num_threads(1)
    slices = load_slices(args.data)
    results = []
    for name in args.networks:
        with progress(name, args.steps * args.seeds) as advance:
            results.append(train(TASKS[name], slices, args.steps, args.seeds, advance))
    return results, {
        "command": command(args),
        "steps": args.steps,
        "seeds": args.seeds,
        "data": f"{slices.source}: {len(slices.training)} training, {len(slices.held_out)} held-out images",
        "machine": {
            "device": "one CPU thread",
            "processor": processor(),
            "python": f"Python {platform.python_version()}",
            "torch": f"torch {torch.__version__}",
            "fork": f"MONAI {monai.__version__}",
            "date": date.today().isoformat(),
        },
    }


@contextmanager
def progress(name: str, total: int) -> Iterator[Callable[[], object]]:
    """A progress bar where tqdm is installed, else a line; gives what to call after each step."""
    if has_tqdm:
        with tqdm(total=total, desc=name, unit="step", mininterval=1.0) as bar:
            yield bar.update
    else:
        print(f"{name}: {total} steps of both variants", file=sys.stderr, flush=True)
        yield lambda: None


def command(args: argparse.Namespace) -> str:
    """The command that measures these numbers again."""
    parts = ["python -m benchmarks.ablation_proj_attn"]
    parts += [f"--data {args.data}"] if args.data else []
    parts += [f"--steps {args.steps}"] if args.steps != STEPS else []
    parts += [f"--seeds {args.seeds}"] if args.seeds != SEEDS else []
    parts += [f"--networks {' '.join(args.networks)}"] if args.networks != list(TASKS) else []
    return " ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
