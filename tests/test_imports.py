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
"""What the modules of monai/ import: which way, and how much of it a block takes."""

from __future__ import annotations

import ast
import unittest
from pathlib import Path

from parameterized import parameterized

ROOT = Path(__file__).parents[1]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "monai").rglob("*.py"))
}
# a room imports itself and those before it
ROOMS = ["monai.networks.state_dict", "monai.networks.blocks", "monai.networks.nets"]


def imports(module: str) -> set[str]:
    """The fork's own modules that a module imports, at its top or later, packages around them aside."""
    path = FILES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names} | {base}
    return (found & FILES.keys()) - {module}


def closure(module: str) -> set[str]:
    """A module and all that it needs of the fork."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        seen.add(module := waiting.pop())
        waiting += imports(module) - seen
    return seen


class TestImports(unittest.TestCase):
    def test_self_attention_takes_few_files(self):
        needed = closure("monai.networks.blocks.selfattention")
        self.assertIn("monai.networks.state_dict.hooks", needed)
        self.assertLessEqual(len(needed), 12, sorted(needed))
        self.assertLessEqual(sum(len(FILES[module].read_text().splitlines()) for module in needed), 2000)
        self.assertEqual([module for module in needed if "checkpoints" in module], [])

    @parameterized.expand([(room,) for room in ROOMS])
    def test_arrows_run_one_way(self, room):
        earlier = ROOMS[: ROOMS.index(room)]
        allowed = (f"{room}.", *(f"{other}." for other in earlier), "monai.networks.layers.")
        wrong = {}
        for module in FILES:
            if module.startswith(room):
                found = [name for name in imports(module) if not f"{name}.".startswith(allowed)]
                if found:
                    wrong[module] = found
        self.assertEqual(wrong, {})


if __name__ == "__main__":
    unittest.main()
