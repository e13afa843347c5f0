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

"""Which tests may ask the release: those here, and those of the fork's own tools."""

from __future__ import annotations

import ast
import unittest
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
MAY_ASK = ("parity", "dropin", "fork", "demo", "benchmarks", "runtests")
REFEREES = ("fork", "tests.parity", "tests.dropin")
UPSTREAM = TESTS.parent / "fork" / "pulls" / "upstream_tests.txt"


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at its top or later."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def contract_files() -> list[Path]:
    """What could go upstream: every file of tests but those that may ask the release."""
    return [path for path in sorted(TESTS.rglob("*.py")) if path.relative_to(TESTS).parts[0] not in MAY_ASK]


class TestHouse(unittest.TestCase):
    def test_contracts_do_not_ask_the_release(self):
        asking = {}
        for path in contract_files():
            names = [name for name in sorted(imported(path)) if f"{name}.".startswith(tuple(f"{r}." for r in REFEREES))]
            if names:
                asking[str(path.relative_to(TESTS))] = names
        self.assertEqual(asking, {})

    def test_contracts_have_paths_of_their_own(self):
        upstream = set(UPSTREAM.read_text(encoding="utf-8").split())
        self.assertIn("tests/networks/blocks/test_selfattention.py", upstream)
        ours = {path.relative_to(TESTS.parent).as_posix() for path in contract_files() if path.name != "__init__.py"}
        self.assertEqual(ours & upstream, set())


if __name__ == "__main__":
    unittest.main()
