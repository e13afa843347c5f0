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


"""What became of the loads, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from tests.parity.references.cases import Case
from tests.parity.references.rules import UNTOLD
from tests.parity.references.runner import Load

__all__ = ["as_json", "as_markdown", "summary"]

HEAD = "| written by | network | checkpoints | loads | exact | WRONG | refused | untold |"
LEGEND = (
    "Release, strictly / by `load_old_state_dict` → fork. WRONG: loads that succeed with other outputs though the file "
    "tells better. Refused: loads that the fork refuses, as it must. Untold: nothing in the file tells what to do:"
)


def as_markdown(loads: Sequence[Load]) -> str:
    """A row for all loads, for each package, and for each of its networks."""
    plain = sorted((load for load in loads if load.way == "plain"), key=lambda load: _order(load.case))
    rows = [_row("**all**", "", plain)]
    for source, of_source in groupby(plain, key=lambda load: load.case.source):
        members = list(of_source)
        rows.append(_row(f"**{source}**", "", members))
        rows += [_row("", name, list(chosen)) for name, chosen in groupby(members, key=lambda load: load.case.network)]
    separator = "|---" * (HEAD.count("|") - 1) + "|"
    untold = [f"- {sentence}" for sentence in UNTOLD.values()]
    return "\n".join([HEAD, separator, *rows, "", LEGEND, *untold, "", summary(loads), ""])


def summary(loads: Sequence[Load]) -> str:
    """The numbers of loads and of deviations, in a sentence or two."""
    parts = []
    for way, words in (
        ("plain", "by load_state_dict"),
        ("nested", "in a user's module"),
        ("old", "by load_old_state_dict"),
        ("facts", "told facts"),
    ):
        chosen = [load for load in loads if load.way == way]
        parts.append(f"{len(chosen)} {words}")
    worst = max((load.result.difference or 0.0 for load in loads if load.result.verdict == "exact"), default=0.0)
    deviations = sum(bool(load.deviation) for load in loads)
    checkpoints = len({load.case.name for load in loads})
    return (
        f"{checkpoints} checkpoints, {len(loads)} loads ({', '.join(parts)}): {deviations} deviate. "
        f"Exact loads differ by {worst:.1e} of the largest output at most."
    )


def as_json(loads: Iterable[Load]) -> list[dict[str, Any]]:
    """A flat entry for each load."""
    return [
        {
            "checkpoint": load.case.name,
            "written by": load.case.source,
            "network": load.case.network,
            "target": load.target.name,
            "way": load.way,
            "expected": load.expectation.verdict,
            "because": load.expectation.reason,
            "verdict": load.result.verdict,
            "difference": load.result.difference,
            "said": load.result.said[:300],
            "deviation": load.deviation,
            "release, strict": load.release[0].verdict if load.release else None,
            "release, old": load.release[1].verdict if load.release else None,
        }
        for load in loads
    ]


def _order(case: Case) -> tuple[bool, str, str]:
    return case.source.startswith("monai=="), case.source, case.network


def _row(source: str, network: str, loads: list[Load]) -> str:
    told = [load for load in loads if load.expectation.verdict != "untold"]
    cells = [source, network, str(len({load.case.name for load in loads})), str(len(loads))]
    for verdict in ("exact", "WRONG"):
        release = [_release(told, number, verdict) for number in (0, 1)]
        got = sum(load.result.verdict == verdict for load in told)
        wanted = sum(load.expectation.verdict == verdict for load in told)
        of = f" of {wanted}" if got < wanted else ""
        cells.append(f"{release[0]} / {release[1]} → {got}{of}")
    cells += [str(sum(load.result.verdict == "refused" for load in told)), str(len(loads) - len(told))]
    return f"| {' | '.join(cells)} |"


def _release(loads: list[Load], number: int, verdict: str) -> str:
    verdicts = [load.release[number].verdict for load in loads if load.release]
    return str(verdicts.count(verdict)) if set(verdicts) - {"no loader", "broken"} else "–"
