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

"""Private names of torch are used in one module, which documents them all."""

from __future__ import annotations

import ast
import re
import unittest
from pathlib import Path

from monai.networks.state_dict import torch_private

ROOT = Path(__file__).parents[1]
HOME = "monai/networks/state_dict/torch_private.py"
NAMES = set(re.findall(r"``[\w.]*?(_[a-z]\w+)``", torch_private.__doc__ or ""))
OVERRIDDEN = {"_apply", "_version", "_load_from_state_dict"}
# a pickle's own names, which it decodes without torch
DECODES = {"monai/networks/checkpoints/pickles.py": {"_metadata"}}


def private_names(path: Path) -> set[str]:
    """Names in the code of a file that the module has a function for, and those of torch's private modules."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            found |= {node.attr} & NAMES
            if isinstance(node.value, ast.Name) and node.value.id == "torch" and re.match("_[^_]", node.attr):
                found.add(node.attr)
        elif isinstance(node, ast.Constant):
            found |= {node.value} & NAMES if isinstance(node.value, str) else set()
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            found |= {part for part in (node.module or "").split(".") if part.startswith("_")}
            found |= {alias.name for alias in node.names if alias.name.startswith("_")}
    return found - OVERRIDDEN


class TestPrivateNames(unittest.TestCase):
    def test_documented(self):
        self.assertIn("_forward_hooks", NAMES)
        used = private_names(ROOT / HOME) - {"_C", "_python_dispatch", "_functorch"}
        self.assertEqual(sorted(used - NAMES), [])

    def test_nobody_else_uses_them(self):
        found = {}
        for path in sorted((ROOT / "monai").rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            # strings that name a wrapper in keys are part of files, not of torch
            names = private_names(path) - DECODES.get(name, set()) - {"_orig_mod"}
            if names and name != HOME:
                found[name] = sorted(names)
        self.assertEqual(found, {})


if __name__ == "__main__":
    unittest.main()
