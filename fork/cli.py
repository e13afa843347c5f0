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

"""The command line: ``python -m fork``, run in the repository."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fork.amend import Amendment
from fork.overlay import amendments, check, differences, is_linked, list_problems, merge, outdated, release_problems
from fork.patch import make_patch
from fork.pin import ForkError, Pin, read_pin
from fork.rebase import compare
from fork.wheel import cache_place, cached_wheel, pristine

__all__ = ["main"]

EXAMPLES = """\
examples:
  python -m fork status                   what the fork replaces, amends and adds, and whether all fits
  python -m fork build --link             merged package in build/fork; an edit in monai/ takes effect there
  python -m fork build /tmp/merged        the same as plain files, elsewhere
  python -m fork compare DIR              whether the monai that lies in DIR is this fork
  python -m fork patch -o attention.patch patch for an upstream pull request
  python -m fork series -o pulls          the same in small pull requests: fixes, and features in their order
  python -m fork series --check           whether each of them applies, and passes its tests
  python -m fork rebase 1.6.2             what a move to MONAI 1.6.2 has to look at
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run one command.

    Returns:
        the exit status: 0, or 1 after one line on stderr that tells what is wrong.
    """
    options = _parser().parse_args(arguments)
    try:
        out: int = options.run(read_pin(options.root), options)
        return out
    except BrokenPipeError:  # the reader, a pager say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ForkError, OSError) as error:
        print(f"fork: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("fork: interrupted", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fork",
        description="MONAI with the fork laid over the release that setup.cfg pins.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--root", type=Path, help="the repository (default: the one that holds this program)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("status", help="tell what the fork changes and adds; exit 1 if something is off")
    command.set_defaults(run=_status)

    command = commands.add_parser("build", help="merge the fork and the release into a folder")
    command.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="the folder (default: build/fork)")
    command.add_argument(
        "--link",
        action="store_true",
        help="links instead of copies; once linked, a folder stays so",
    )
    command.set_defaults(run=_build)

    command = commands.add_parser("compare", help="tell whether an installed package is the fork; exit 1 if it is not")
    command.add_argument("folder", type=Path, metavar="DIR", help="the folder that holds monai")
    command.set_defaults(run=_compare)

    command = commands.add_parser("patch", help="write the fork as a patch against the release")
    command.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help="where to write it")
    command.set_defaults(run=_patch)

    _add_series(
        commands.add_parser("series", help="write or check the pull requests that carry the fork over to MONAI")
    )

    command = commands.add_parser("rebase", help="tell what another release changed in what the fork replaces")
    command.add_argument("version", metavar="VERSION", help="the release, such as 1.6.2")
    command.set_defaults(run=_rebase)
    return parser


def _add_series(command: argparse.ArgumentParser) -> None:
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("-o", "--output", type=Path, metavar="DIR", help="write them here, as mail patches for git am")
    what.add_argument("--check", action="store_true", help="apply each to the release, check its style, run its tests")
    what.add_argument("--onto", type=Path, metavar="PATH", help="the same on a git checkout of upstream")
    command.add_argument("--only", action="append", default=[], metavar="NAME", help="check this one alone; repeatable")
    command.add_argument("--no-tests", action="store_true", help="run no tests")
    command.add_argument("--tests-from", type=Path, metavar="PATH", help="a git copy of upstream whose tests run, too")
    command.add_argument("--author", metavar="NAME", help="'Name <address>' (default: git's settings)")
    command.set_defaults(run=_series)


def _status(pin: Pin, options: argparse.Namespace) -> int:
    problems = list_problems(pin)
    wheel = cached_wheel(pin)
    tree = pin.build / "fork"
    print(f"version   {pin.full_version}")
    print(f"release   MONAI {pin.version}, {pin.wheel}, sha256 {pin.sha256}")
    print(f"wheel     {_wheel_state(pin)}")
    amended: dict[str, Amendment] = {}
    if wheel:
        problems += release_problems(pin, pristine(pin.root), pin.version)
        amended = amendments(pin, pristine(pin.root), pin.version)
    merged = "not there yet"
    if tree.exists() and wheel and not problems:
        stale = differences(tree, pin, pristine(pin.root), is_linked(tree))
        merged = f"{tree}, {'linked' if is_linked(tree) else 'copied'}, " + ("out of date" if stale else "up to date")
        if stale:
            problems.append(f"{tree} is out of date in {len(stale)} files ({stale[0]}, ...): run python -m fork build")
    elif tree.exists():
        merged = f"{tree}, not compared"
    print(f"merged    {merged}")
    for title, files in (("replaces", pin.replaces), ("amends", pin.amends), ("adds", pin.adds)):
        print(f"{title:<9} {len(files)} files")
        for path, reason in files.items():
            print(f"  {path}\n      {reason}")
            for verb, names in _definitions(amended.get(path)):
                print(f"      {verb} {', '.join(names)}")
    for problem in problems:
        print(f"fork: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _definitions(amendment: Amendment | None) -> list[tuple[str, tuple[str, ...]]]:
    both = [("replaces", amendment.replaced), ("adds", amendment.added)] if amendment else []
    return [(verb, names) for verb, names in both if names]


def _wheel_state(pin: Pin) -> str:
    if cached_wheel(pin):
        return "fetched and verified"
    return "not fetched yet" if not cache_place(pin).exists() else f"{cache_place(pin)} is not the pinned one"


def _build(pin: Pin, options: argparse.Namespace) -> int:
    folder = options.folder or pin.build / "fork"
    print(merge(folder, link=options.link or is_linked(folder), root=pin.root))
    return 0


def _compare(pin: Pin, options: argparse.Namespace) -> int:
    check(pin)
    release = pristine(pin.root)
    check(pin, release)
    other = outdated(options.folder, pin, release)
    if other:
        more = f" (and {len(other) - 1} more)" if len(other) > 1 else ""
        raise ForkError(f"'{options.folder}' does not hold '{other[0]}' as the fork has it{more}")
    print(f"{options.folder}: {pin.full_version}, {len(pin.files)} files of the fork")
    return 0


def _patch(pin: Pin, options: argparse.Namespace) -> int:
    options.output.write_bytes(make_patch(pin))
    print(f"{options.output}: MONAI {pin.version} -> {pin.full_version}, {len(pin.files) + 1} files")
    return 0


def _series(pin: Pin, options: argparse.Namespace) -> int:
    from fork.series.command import Series, check_series, write_series

    if options.output:
        write_series(Series(pin), options.output, options.author)
        return 0
    fine = check_series(
        Series(pin),
        only=options.only,
        with_tests=not options.no_tests,
        onto=options.onto,
        tests_from=options.tests_from,
        author=options.author,
    )
    return 0 if fine else 1


def _rebase(pin: Pin, options: argparse.Namespace) -> int:
    move = compare(pin, options.version)
    for line in move.report():
        print(line)
    for problem in move.problems:
        print(f"fork: {problem}", file=sys.stderr)
    return 1 if move.problems else 0
