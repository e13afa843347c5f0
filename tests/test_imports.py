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

"""Which rooms of the fork import which: arrows run one way, from the command lines down to what keys mean."""

from __future__ import annotations

import ast
import tempfile
import unittest
from pathlib import Path

from parameterized import parameterized

ROOT = Path(__file__).parents[1]
# From the bottom to the top. A module imports modules of its own room, and of those below its level.
LEVELS: tuple[tuple[str, ...], ...] = (
    ("monai.utils", "monai.networks.construction", "monai.networks.state_dict"),
    ("monai.networks.layers",),
    ("monai.networks.blocks",),
    ("monai.networks.nets",),
    ("monai.networks.utils",),
    ("monai.networks.weights",),
    ("monai.networks.checkpoints", "monai.networks.volumes", "monai.visualize", "monai.inferers", "monai.handlers"),
    ("monai.networks",),  # its __init__ alone, which exports the checkpoints
    ("monai.apps",),
)
NETS_ELSEWHERE = {"monai.apps.generation": "monai.networks.nets"}
# programs that start what lives in the command lines
PROGRAMS = ("monai.networks.checkpoints.__main__", "monai.visualize.attention.__main__")
# The release defines this class beside its base. A file that amends may not give a class other bases, so that the class
# comes from a module of its own, which needs the base.
KNOWN_CYCLE = {"monai.inferers.inferer", "monai.inferers.vqvae_transformer"}
SABLOCK = "monai.networks.blocks.selfattention"
FOR_FILES = {"gzip", "io", "json", "mmap", "os", "pathlib", "pickle", "shutil", "struct", "tempfile", "zipfile"}


class Imports:
    """
    The imports of the modules of a tree, those inside of functions included.

    Args:
        root: the folder that holds ``monai``.
    """

    def __init__(self, root: Path) -> None:
        self.paths = {_name(path.relative_to(root)): path for path in sorted((root / "monai").rglob("*.py"))}
        self.all = {name: set(self._imported(name)) for name in self.paths}
        self.own = {name: {found for found in self.all[name] if found in self.paths} for name in self.paths}

    def closure(self, name: str) -> set[str]:
        """A module, and all modules of the tree that it needs."""
        found, left = set(), [name]
        while left:
            module = left.pop()
            if module not in found:
                found.add(module)
                left += self.own[module]
        return found

    def in_cycles(self) -> set[str]:
        """Modules that need themselves."""
        return {name for name in self.paths if any(name in self.closure(used) for used in self.own[name])}

    def wrong_arrows(self) -> list[str]:
        """Imports that do not lead down."""
        arrows = ((name, used) for name in self.paths for used in sorted(self.own[name]))
        return [f"{name} -> {used}" for name, used in arrows if name not in PROGRAMS and not _leads_down(name, used)]

    def lines(self, names: set[str]) -> int:
        """How many lines modules have together."""
        return sum(len(self.paths[name].read_text(encoding="utf-8").splitlines()) for name in names)

    def _imported(self, name: str) -> list[str]:
        path = self.paths[name]
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found: list[str] = []
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                start = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                module = ".".join([*start, *([node.module] if node.module else [])])
                inner = [f"{module}.{alias.name}" for alias in node.names]
                found += [one if one in self.paths else module for one in inner]
        return [one for one in found if one != name]  # a file that amends names the release's file, which is itself


def _name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _room(module: str) -> str:
    """The innermost room that a module lies in."""
    rooms = [*NETS_ELSEWHERE, *(room for level in LEVELS for room in level)]
    inside = [room for room in rooms if f"{module}.".startswith(f"{room}.")]
    room = max(inside, key=len, default="")
    return NETS_ELSEWHERE.get(room, room)


def _leads_down(module: str, used: str) -> bool:
    levels = {room: number for number, level in enumerate(LEVELS) for room in level}
    here, there = _room(module), _room(used)
    return here == there or levels[there] < levels[here]


class TestHouse(unittest.TestCase):
    imports = Imports(ROOT)

    def test_every_module_has_a_room(self):
        self.assertEqual([name for name in self.imports.paths if not _room(name)], [])
        outside = [name for name in self.imports.paths if _room(name) == "monai.networks"]
        self.assertEqual(outside, ["monai.networks"])

    def test_every_module_says_what_lives_there(self):
        trees = {name: ast.parse(path.read_text()) for name, path in self.imports.paths.items()}
        self.assertEqual([name for name, tree in trees.items() if not ast.get_docstring(tree)], [])

    def test_arrows_run_one_way(self):
        self.assertEqual(self.imports.wrong_arrows(), [])

    def test_no_cycles(self):
        self.assertEqual(self.imports.in_cycles(), KNOWN_CYCLE)

    def test_self_attention_needs_no_files(self):
        needed = self.imports.closure(SABLOCK)
        print(f"\n{SABLOCK} needs {len(needed)} files of the fork with {self.imports.lines(needed):,} lines")
        self.assertLessEqual(len(needed), 12)
        self.assertLessEqual(self.imports.lines(needed), 2000)
        self.assertEqual({name for name in needed if _room(name) == "monai.networks.checkpoints"}, set())
        for name in sorted(needed):
            self.assertEqual(self.imports.all[name] & FOR_FILES, set(), name)


class TestCanFail(unittest.TestCase):
    """A tree with one mistake in it."""

    def imports(self, files: dict[str, str]) -> Imports:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        for name, text in files.items():
            path = Path(folder.name, "monai", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return Imports(Path(folder.name))

    @parameterized.expand(
        [
            ("absolute", "from monai.networks.nets.vit import ViT"),
            ("a module", "from monai.networks.nets import vit"),
            ("relative", "from ..nets.vit import ViT"),
            ("plain", "import monai.networks.nets.vit"),
            ("in a function", "def build():\n    from monai.networks.nets.vit import ViT\n\n    return ViT"),
        ]
    )
    def test_a_block_that_imports_a_network(self, _, text):
        imports = self.imports({"networks/blocks/block.py": text, "networks/nets/vit.py": ""})
        self.assertEqual(imports.wrong_arrows(), ["monai.networks.blocks.block -> monai.networks.nets.vit"])

    @parameterized.expand(
        [
            ("networks/state_dict/load.py", "networks/blocks/block.py"),
            ("networks/checkpoints/read.py", "apps/checkpoints/cli.py"),
            ("visualize/attention/saving.py", "networks/checkpoints/write.py"),
            ("networks/nets/vit.py", "networks/checkpoints/read.py"),
            ("networks/nets/vit.py", "networks/__init__.py"),
            ("networks/nets/vit.py", "apps/generation/cli.py", 0),
            ("apps/generation/maisi/networks/unet.py", "networks/nets/vit.py", 0),
            ("apps/generation/maisi/networks/unet.py", "apps/checkpoints/cli.py"),
            ("networks/checkpoints/__main__.py", "apps/checkpoints/cli.py", 0),
            ("networks/checkpoints/read.py", "networks/blocks/block.py", 0),
        ]
    )
    def test_arrows(self, module, used, wrong=1):
        imports = self.imports({module: f"import {_name(Path('monai', used))}", used: ""})
        self.assertEqual(len(imports.wrong_arrows()), wrong)
        self.assertEqual(imports.in_cycles(), set())

    def test_a_cycle_through_a_function(self):
        imports = self.imports(
            {
                "networks/checkpoints/a.py": "from .b import x",
                "networks/checkpoints/b.py": "def f():\n    from . import c",
                "networks/checkpoints/c.py": "from monai.networks.checkpoints.a import y",
                "networks/checkpoints/d.py": "from .a import x",
            }
        )
        self.assertEqual(imports.wrong_arrows(), [])
        self.assertEqual(imports.in_cycles(), {f"monai.networks.checkpoints.{name}" for name in "abc"})


if __name__ == "__main__":
    unittest.main()
