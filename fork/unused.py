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
Imports of a module of the release that served nothing but what the fork replaces.

Other code may import these names from there, so that they stay; a mark tells linters.
"""

from __future__ import annotations

import ast

from fork.definitions import Module, imports

__all__ = ["MARK", "mark_unused"]

MARK = b"  # noqa: F401"
"""On the first line of a statement, where flake8 looks for it and isort leaves it."""


def mark_unused(path: str, text: bytes, theirs: bytes) -> bytes:
    """
    Mark the imports that the release's module uses and the merged one does not.

    Args:
        path: of the module.
        text: the merged module, which is Python.
        theirs: the release's module.
    """
    module = Module(path, text, "the merged")
    lost = _used(Module(path, theirs, "the release's").tree) - _used(module.tree)
    lines = list(module.lines)
    for node in module.tree.body:
        first = node.lineno - 1
        names = {item.name.partition(".")[0] for item in imports(module, [node])}
        if names & lost and b"#" not in lines[first]:
            text_of_line = lines[first].rstrip(b"\r\n")
            lines[first] = text_of_line + MARK + lines[first][len(text_of_line) :]
    return b"".join(lines)


def _used(tree: ast.Module) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
