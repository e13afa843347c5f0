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
Load what real packages wrote, into the fork and into the pristine release: every network, with every set of options.

The packages come through pip and are never installed. Each writes its checkpoints in a process of its own, once, into
build/references. The exit status is 1 if a load into the fork deviates from what the facts demand.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from fnmatch import fnmatch
from multiprocessing import get_context
from pathlib import Path

from fork.packages import unpacked
from fork.pin import ForkError
from fork.referee import RefereeError
from tests.parity.references.cases import CASES, WRITERS
from tests.parity.references.report import as_json, as_markdown, summary
from tests.parity.references.runner import Load, run
from tests.parity.references.store import FILES, forget
from tests.parity.references.subset import make_subset

EXAMPLES = """\
examples:
  python -m tests.parity.references --markdown table.md --json loads.json
  python -m tests.parity.references --package 'monai-generative*' --network AutoencoderKL --no-release
  python -m tests.parity.references --make-subset
"""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; a name that means nothing ends the program."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.parity.references",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--package", nargs="+", default=["*"], metavar="PATTERN", help=f"of {', '.join(WRITERS)}")
    networks = sorted({case.network for case in CASES})
    parser.add_argument("--network", nargs="+", default=["*"], metavar="PATTERN", help=f"of {', '.join(networks)}")
    parser.add_argument("--no-release", action="store_true", help="leave the release out, which saves time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every load there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there instead of printing it")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), metavar="N", help="processes (default: %(default)s)"
    )
    parser.add_argument("--list", action="store_true", help="list the checkpoints and stop")
    parser.add_argument(
        "--make-subset", action="store_true", help="write the files of tests/testing_data/checkpoints, and stop"
    )
    options = parser.parse_args(arguments)
    chosen = [
        case
        for case in CASES
        if any(fnmatch(case.writer, pattern) for pattern in options.package)
        and any(fnmatch(case.network, pattern) for pattern in options.network)
    ]
    if not chosen:
        parser.error(f"no checkpoint matches {options.package} and {options.network}: --list shows all")
    options.cases = chosen
    return options


def load_all(tasks: list[tuple[str, str]], with_release: bool, jobs: int) -> list[Load]:
    """Run the loads of each package and network, ``jobs`` at a time, and tell of each when it is done."""
    loads: dict[tuple[str, str], list[Load]] = {}
    begun = time.monotonic()
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(run, *task, with_release): task for task in tasks}
        for future in as_completed(futures):
            task = futures[future]
            loads[task] = future.result()
            seconds = time.monotonic() - begun
            print(f"[{len(loads)}/{len(tasks)}, {seconds:.0f} s] {' '.join(task)}: {summary(loads[task])}")
            for load in loads[task]:
                if load.deviation:
                    print(f"    {load}", flush=True)
    return [load for task in tasks for load in loads[task]]


def remake_subset() -> int:
    """Write the files of the subset and remove others beside them. Returns the exit status."""
    made = make_subset()
    for path in set(FILES.glob("*.pt.xz")) - set(made):
        path.unlink()
    print(f"{len(made)} files, {sum(path.stat().st_size for path in made) / 1e6:.2f} MB in {FILES}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns 1 if a load deviates, 2 if a package cannot be had."""
    options = parse(arguments)
    if options.list:
        print("\n".join(case.name for case in options.cases))
        return 0
    try:
        for writer in dict.fromkeys(case.writer for case in options.cases):
            for requirement in WRITERS[writer]:
                unpacked(requirement)
        if options.make_subset:
            return remake_subset()
        forget()
        tasks = list(dict.fromkeys((case.writer, case.network) for case in options.cases))
        loads = load_all(tasks, not options.no_release, options.jobs)
    except (ForkError, RefereeError) as error:
        print(error, file=sys.stderr)
        return 2
    if options.json:
        options.json.write_text(json.dumps(as_json(loads), indent=1) + "\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(as_markdown(loads), encoding="utf-8")
    else:
        print(f"\n{as_markdown(loads)}")
    print(summary(loads))
    return 1 if any(load.deviation for load in loads) else 0


if __name__ == "__main__":
    sys.exit(main())
