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

"""How the networks leave Python, as a table: ``python -m tests.parity.exports --help``."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

from fork.pin import ForkError
from fork.referee import release_environment
from tests.networks.exports.columns import COLUMNS
from tests.networks.exports.report import as_markdown, as_text
from tests.networks.exports.row import Row
from tests.networks.exports.rows import ROWS
from tests.networks.exports.runner import Cell, passes, run_row


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; a name that means nothing ends the program."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity.exports", description=__doc__)
    parser.add_argument("--rows", nargs="+", metavar="PATTERN", help="as ViT, 'ControlNet/*' or '*/3-D*'")
    parser.add_argument("--columns", nargs="+", metavar="NAME", default=list(COLUMNS), help=", ".join(COLUMNS))
    parser.add_argument("--release", action="store_true", help="run the release's networks, too")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    parser.add_argument("--jobs", type=int, default=1, help="how many rows run at once (default 1)")
    parser.add_argument("--list", action="store_true", help="list the rows and stop")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.columns if name not in COLUMNS]
    if unknown:
        parser.error(f"no column is called '{unknown[0]}': choose from {', '.join(COLUMNS)}")
    try:
        options.rows = choose(options.rows or ["*"])
    except ValueError as error:
        parser.error(str(error))
    return options


def choose(patterns: list[str]) -> list[Row]:
    """
    Rows whose name, or network, matches one of the patterns.

    Raises:
        ValueError: if a pattern matches no row.
    """
    chosen: list[Row] = []
    for pattern in patterns:
        matches = [row for row in ROWS if fnmatch(row.name, pattern) or fnmatch(row.network, pattern)]
        if not matches:
            raise ValueError(f"no row matches '{pattern}': --list shows them")
        chosen += [row for row in matches if row not in chosen]
    return [row for row in ROWS if row in chosen]


def fill(options: argparse.Namespace, release: dict[str, str] | None) -> dict[str, dict[str, Cell]]:
    """Run the rows and tell of each when it is done."""

    def one(row: Row) -> dict[str, Cell]:
        cells = run_row(row, options.columns, release)
        print(f"{'release' if release else 'fork'} {row.name}")
        for column in options.columns:
            print(f"    {column:14} {as_text(row, column, cells[column])}", flush=True)
        return cells

    with ThreadPoolExecutor(options.jobs) as pool:
        return dict(zip([row.name for row in options.rows], pool.map(one, options.rows)))


def main(arguments: list[str] | None = None) -> int:
    """Run the grid. Returns 1 if a cell of the fork is not as it should be."""
    options = parse(arguments)
    if options.list:
        print("\n".join(row.name for row in options.rows))
        return 0
    variables = None
    if options.release:
        try:
            variables = release_environment()
        except ForkError as error:
            print(error, file=sys.stderr)
            return 2
    fork = fill(options, None)
    release = fill(options, variables) if variables else None
    table = as_markdown(options.rows, options.columns, fork, release)
    if options.markdown:
        options.markdown.write_text(table, encoding="utf-8")
    else:
        print(f"\n{table}")
    wrong = [
        f"{row.name} {column}"
        for row in options.rows
        for column in options.columns
        if not passes(row, column, fork[row.name][column])
    ]
    if wrong:
        print(f"{len(wrong)} cells of the fork fail: {'; '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
