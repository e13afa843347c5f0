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

"""Which files of a tree a module imports, lazily or not."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import PurePosixPath

from fork.series.pull import Reader

__all__ = ["exports_only", "imported_files", "imported_names", "packages_around"]


def imported_files(path: str, read: Reader) -> set[str]:
    """
    The files that a module names in its imports: modules, and those from which a package has a name.

    Args:
        path: of the module.
        read: reads a file of the tree.
    """
    found: set[str] = set()
    for module, name in _imports(path, read(path) or b""):
        found |= _files_of(module, name, read)
    return found - {path}


def imported_names(path: str, package: str, read: Reader) -> set[str | None]:
    """
    The names that a module imports from a package itself; None among them where it imports the package.

    Args:
        path: of the module.
        package: the path of the package's ``__init__.py``.
        read: reads a file of the tree.
    """
    wanted = PurePosixPath(package).parent.as_posix().replace("/", ".")
    found = set(_imports(path, read(path) or b""))
    names = {name for module, name in found if module == wanted}
    return names | ({None} if tuple(wanted.rpartition(".")[::2]) in found else set())


def exports_only(data: bytes) -> bool:
    """Whether a package does nothing but name what is in its modules."""
    return all(
        isinstance(node, (ast.ImportFrom, ast.Import))
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__")
        for node in ast.parse(data).body
    )


def packages_around(path: str, files: Iterable[str]) -> set[str]:
    """The packages that Python imports on the way to these files; not those in which the module itself lies."""
    folders = {parent for each in files for parent in PurePosixPath(each).parents} - {*PurePosixPath(path).parents}
    return {f"{folder}/__init__.py" for folder in folders}


@lru_cache(maxsize=4096)
def _imports(path: str, data: bytes) -> tuple[tuple[str, str | None], ...]:
    """Modules, and the name that is imported from each, those for type checkers apart."""
    place = PurePosixPath(path)
    found: list[tuple[str, str | None]] = []
    for node in _nodes(ast.parse(data)):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                above = place.parts[: len(place.parts) - node.level]
                module = ".".join([*above, *([module] if module else [])])
            found += [(module, alias.name) for alias in node.names]
    return tuple(found)


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            yield node
            yield from _nodes(node)


def _files_of(module: str, name: str | None, read: Reader) -> set[str]:
    base = module.replace(".", "/")
    if name and (read(f"{base}/{name}.py") or read(f"{base}/{name}/__init__.py") is not None):
        return _files_of(f"{module}.{name}", None, read)
    if read(f"{base}.py") is not None:
        return {f"{base}.py"}
    package = f"{base}/__init__.py"
    data = read(package)
    if data is None:
        return set()
    if name is None:
        return {package}
    for source, exported in _imports(package, data):
        if exported == name and source != module:
            return _files_of(source, name, read) | {package}
    return {package}
