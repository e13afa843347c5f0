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

"""One run of the demo."""

from __future__ import annotations

import argparse

import torch

import monai
import monai.networks.nets as nets
from demo.checkpoint import ViTCheckpoint, read_checkpoints
from demo.checks import DemoError
from demo.measure import scripted_difference
from demo.picture import Attention, save
from demo.release import Release
from demo.rows import ROWS, Row
from demo.table import Result, table, tasks, write_json
from demo.volume import Scan, load_scan, scan_path
from demo.work import Setting


def run(args: argparse.Namespace) -> list[str]:
    """Run the chosen rows, print the table, write the picture.

    Returns:
        a line for each check that does not hold.

    Raises:
        DemoError: when the demo cannot run.
    """
    rows, device = choose(args.rows), device_of(args.device)
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    with Release() as release:
        scan, checkpoints = load_scan(), read_checkpoints(args.checkpoint)
        print(f"scan: {scan_path().name}, {' x '.join(map(str, scan.slices.shape[2:]))} x {len(scan.slices)} voxels")
        print(
            f"MONAI {monai.__version__} against the release {release.version()}, torch {torch.__version__}, {device}\n"
        )
        results = []
        for row in rows:
            generator = torch.Generator().manual_seed(args.seed)
            results.append(run_row(row, Setting(scan, generator, device, checkpoints, release), args.seed))
    print(table(results))
    print("\nscripted, release: largest difference of outputs; ms: one sample, one thread\n")
    print(tasks(results))
    if args.json:
        write_json(args.json, results)
    failures = [line for result in results for line in result.failures()]
    attention = attention_of(checkpoints.vit, scan) if "vit" in [row.key for row in rows] else None
    failures += [f"picture: {check}" for check in attention.checks() if not check.passed] if attention else []
    strips = [result.outcome.strip for result in results if result.outcome.strip is not None]
    if attention or strips:
        save(args.output / "attention.png", attention, strips)
        print(f"\npicture: {args.output / 'attention.png'}")
    return failures


def choose(keys: str | None) -> tuple[Row, ...]:
    """The rows of a comma separated list of keys, all by default."""
    known = {row.key: row for row in ROWS}
    chosen = keys.split(",") if keys else list(known)
    for key in chosen:
        if key not in known:
            raise DemoError(f"no row {key!r}, rows are {', '.join(known)}")
    return tuple(known[key] for key in chosen)


def device_of(name: str) -> torch.device:
    """A device that works, with the same arithmetic as the CPU."""
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise DemoError(f"device {name!r} does not work: {str(error).splitlines()[0]}") from error
    torch.backends.cudnn.allow_tf32 = False
    return torch.device(name)


def run_row(row: Row, setting: Setting, seed: int) -> Result:
    """Build, work, script and compare one network."""
    torch.manual_seed(seed)
    net = getattr(nets, row.network)(**row.options).to(setting.device)
    outcome = row.work(net, setting)
    net.eval()
    inputs = row.batch(setting.scan).to(setting.device)
    try:
        scripted = scripted_difference(net, inputs)
    except RuntimeError as error:
        raise DemoError(f"{row.title} does not script, save and load: {' '.join(str(error).split())[:300]}") from error
    options = row.release_options or row.options
    difference, ours, theirs = setting.release.compare(row.network, options, net, inputs)
    parameters = sum(p.numel() for p in net.parameters())
    return Result(row.key, row.title, parameters, outcome, scripted, difference, ours, theirs)


def attention_of(checkpoint: ViTCheckpoint, scan: Scan) -> Attention:
    """Where the ViT of the checkpoint looks."""
    net = getattr(nets, checkpoint.network)(**checkpoint.options, save_attn=True)
    return Attention(net, checkpoint, scan.slices[checkpoint.slice, None])
