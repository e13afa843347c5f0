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

"""Where the definitions of a module stand in its text."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from fork.pin import ForkError

__all__ = [
    "Definition",
    "Import",
    "Module",
    "Scope",
    "bound_names",
    "import_lines",
    "imports",
    "is_text",
    "written_module",
]

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
LINE_LENGTH = 120


@dataclass(frozen=True)
class Definition:
    """
    A function, class, constant or docstring in the text of a module.

    Args:
        name: its name where it stands. The setter of a property ``size`` is ``size.setter``, and the docstring of a
            class is ``__doc__``.
        kind: "function", "class", "constant" or "docstring".
        nodes: its statements: one, or a function's overloads and the function.
        first: its first line, counted from 1, with decorators and the comments directly above.
        last: its last line.
        alone: whether no other statement shares a line with it.
    """

    name: str
    kind: str
    nodes: tuple[ast.stmt, ...]
    first: int
    last: int
    alone: bool


@dataclass(frozen=True)
class Import:
    """
    A name that an import statement binds.

    Args:
        name: the name.
        module: the imported module, or the one that holds the imported object, without relative dots.
        item: the object's name in that module; None if the module itself is imported.
        written: the module as the statement has it.
    """

    name: str
    module: str
    item: str | None
    written: str

    @property
    def what(self) -> tuple[str, str]:
        """The name, and what it stands for, however the statement says it."""
        return self.name, f"{self.module}.{self.item}" if self.item else self.module


class Module:
    """
    A Python module: its text and its statements.

    Args:
        path: where it lies, such as ``monai/networks/utils.py``.
        data: its text.
        owner: whose it is, for the message.

    Raises:
        ForkError: if it is no Python.
    """

    def __init__(self, path: str, data: bytes, owner: str) -> None:
        try:
            data.decode("utf-8")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.tree = ast.parse(data, path)
        except (SyntaxError, ValueError) as error:
            raise ForkError(f"{owner} '{path}' cannot be read as Python: {error}") from None
        self.path = path
        self.lines = data.splitlines(keepends=True)  # of bytes: at the ends of lines that Python counts, nowhere else

    @property
    def name(self) -> str:
        """Its dotted name."""
        return ".".join(self._parts[:-1] if self._parts[-1] == "__init__" else self._parts)

    @property
    def newline(self) -> bytes:
        """How its lines end, by the first of them."""
        return b"\r\n" if self.lines and self.lines[0].endswith(b"\r\n") else b"\n"

    def scope(self) -> Scope:
        """What the module itself defines."""
        return Scope(self, self.tree.body, 0)

    def lines_of(self, definition: Definition) -> list[bytes]:
        """The text of a definition."""
        return self.lines[definition.first - 1 : definition.last]

    def stands_alone(self, node: ast.stmt) -> bool:
        """Whether nothing else is on the lines of a statement, comments included."""
        lines = b"".join(self.lines[node.lineno - 1 : node.end_lineno])
        return not node.col_offset and b"#" not in lines and b";" not in lines

    def beginning(self, node: ast.AST) -> str:
        """The first line of a statement, for a message."""
        return self.lines[getattr(node, "lineno", 1) - 1].decode().strip()[:60]

    def indentation(self, line: int) -> bytes:
        """What stands before the text of a line, counted from 1."""
        text = self.lines[line - 1]
        return text[: len(text) - len(text.lstrip())]

    def absolute(self, node: ast.ImportFrom) -> str:
        """The module that ``from ... import`` names, without relative dots."""
        package = self._parts[: len(self._parts) - node.level] if node.level else ()
        return ".".join([*package, *([node.module] if node.module else [])])

    @property
    def _parts(self) -> tuple[str, ...]:
        return PurePosixPath(self.path).with_suffix("").parts


class Scope:
    """
    The statements of a module, or of a class in it.

    Args:
        module: the module.
        body: the statements.
        header: the line on which the class begins; 0 for the module itself.

    Attributes:
        definitions: those that stand here, in order; not those under conditions.
        others: the statements that define nothing, or several names, or names under conditions.
    """

    def __init__(self, module: Module, body: list[ast.stmt], header: int) -> None:
        self.module = module
        self.body = body
        self.header = header
        self.definitions: list[Definition] = []
        self.others: list[ast.stmt] = []
        end, overloads = header, ()  # type: tuple[int, tuple[ast.stmt, ...]]
        for node, following in zip(body, [*body[1:], None]):
            if _overloads(node, following):
                overloads = (*overloads, node)
                continue
            self._add((*overloads, node), end, following)
            end, overloads = node.end_lineno or node.lineno, ()

    @property
    def indentation(self) -> bytes:
        """What stands before each of the statements."""
        return self.module.indentation(self.body[0].lineno) if self.header else b""

    @property
    def last(self) -> int:
        """The last line of the class, or of the file."""
        return (self.body[-1].end_lineno or 0) if self.header else len(self.module.lines)

    @property
    def on_one_line(self) -> bool:
        """Whether the statements of a class begin on the line of its header."""
        first = self.body[0] if self.header else None
        return bool(first and self.module.lines[first.lineno - 1][: first.col_offset].strip())

    def find(self, name: str) -> list[Definition]:
        """The definitions of that name."""
        return [definition for definition in self.definitions if definition.name == name]

    def inside(self, definition: Definition) -> Scope:
        """The statements of a class that is defined here."""
        (node,) = definition.nodes
        assert isinstance(node, ast.ClassDef)
        return Scope(self.module, node.body, node.lineno)

    def _add(self, nodes: tuple[ast.stmt, ...], end: int, following: ast.stmt | None) -> None:
        """Sort in the statements of one definition, after a statement that ends on the line ``end``."""
        node = nodes[-1]
        names, kind = _defined(node)
        if self.header and node is self.body[0] and is_text(node):
            names, kind = ["__doc__"], "docstring"
        if kind is None or len(names) != 1:
            self.others.append(node)
            return
        start, last = _first_line(nodes[0]), node.end_lineno or node.lineno
        before = self.module.lines[nodes[0].lineno - 1][: nodes[0].col_offset]
        alone = not before.strip() and (following is None or _first_line(following) > last)
        first = self._with_comments(start, end) if alone else start
        self.definitions.append(Definition(names[0], kind, nodes, first, last, alone))

    def _with_comments(self, start: int, end: int) -> int:
        """The first of the comments directly above a line; comments that begin the file are no definition's."""
        comment = self.module.indentation(start) + b"#"
        first = start
        while first - 1 > end and self.module.lines[first - 2].startswith(comment):
            first -= 1
        return start if first == 1 else first


def bound_names(body: Iterable[ast.AST], typing: bool = False) -> Iterator[tuple[str, ast.AST]]:
    """
    Names that statements bind, each with its statement, those under conditions as well.

    Args:
        body: the statements.
        typing: whether to name what is bound for type checkers alone, too.
    """
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from ((alias.asname or alias.name.partition(".")[0], node) for alias in node.names)
        elif isinstance(node, (ast.ClassDef, *FUNCTIONS)) or not hasattr(node, "body"):
            yield from ((name, node) for name in _defined(node)[0])
        elif isinstance(node, ast.If) and _is_for_typing(node.test) and not typing:
            yield from bound_names(node.orelse)
        else:
            targets = [getattr(node, "target", None), *(item.optional_vars for item in getattr(node, "items", []))]
            yield from ((name, node) for target in targets for name in _stored(target))
            for part in ("body", "handlers", "orelse", "finalbody"):
                yield from bound_names(getattr(node, part, []), typing)


def imports(module: Module, nodes: Iterable[ast.AST]) -> Iterator[Import]:
    """
    The names that import statements of a module bind, ``*`` for all that another module exports.

    Args:
        module: the module.
        nodes: statements; others than imports count for nothing.
    """
    for node in nodes:
        for alias in node.names if isinstance(node, (ast.Import, ast.ImportFrom)) else ():
            if isinstance(node, ast.ImportFrom):
                yield Import(alias.asname or alias.name, module.absolute(node), alias.name, written_module(node))
            else:
                yield Import(alias.asname or alias.name, alias.name, None, alias.name)


def import_lines(items: list[Import]) -> list[str]:
    """Import statements for these names, one for each module, as Black writes them."""
    lines = []
    for module in dict.fromkeys((item.written, item.item is None and item.name) for item in items):
        group = [item for item in items if (item.written, item.item is None and item.name) == module]
        lines += _import_of(group)
    return lines


def written_module(node: ast.ImportFrom) -> str:
    """The module of an import as the statement has it."""
    return "." * node.level + (node.module or "")


def is_text(node: ast.stmt) -> bool:
    """Whether a statement is a string alone, as a docstring is."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _import_of(group: list[Import]) -> list[str]:
    module = group[0].written
    if group[0].item is None:
        return [f"import {module}" if group[0].name == module else f"import {module} as {group[0].name}"]
    names = [each.name if each.name == each.item else f"{each.item} as {each.name}" for each in group]
    line = f"from {module} import {', '.join(names)}"
    return [line] if len(line) <= LINE_LENGTH else [f"from {module} import (", *(f"    {name}," for name in names), ")"]


def _defined(node: ast.AST) -> tuple[list[str], str | None]:
    """The names that a statement binds, imports apart, and the kind of definition that it is, if it is one."""
    if isinstance(node, ast.ClassDef):
        return [node.name], "class"
    if isinstance(node, FUNCTIONS):
        return [_role(node)], "function"
    if isinstance(node, ast.Assign):
        return [name for target in node.targets for name in _stored(target)], "constant"
    if isinstance(node, ast.AnnAssign):
        return _stored(node.target), "constant"
    return (_stored(node.target), None) if isinstance(node, ast.AugAssign) else ([], None)


def _role(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """The name of a function, with ``.setter`` and the like for what extends a property of that name."""
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Attribute) and isinstance(decorator.value, ast.Name):
            if decorator.value.id == node.name:
                return f"{node.name}.{decorator.attr}"
    return node.name


def _stored(target: ast.AST | None) -> list[str]:
    """The names that a target of an assignment binds."""
    found = [] if target is None else list(ast.walk(target))
    return [node.id for node in found if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]


def _overloads(node: ast.stmt, following: ast.stmt | None) -> bool:
    """Whether a function is an overload of the one that follows it."""
    if not isinstance(node, FUNCTIONS) or not isinstance(following, FUNCTIONS) or node.name != following.name:
        return False
    return any(ast.unparse(decorator).split(".")[-1] == "overload" for decorator in node.decorator_list)


def _first_line(node: ast.stmt) -> int:
    out: int = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
    return out


def _is_for_typing(test: ast.expr) -> bool:
    return ast.unparse(test).split(".")[-1] == "TYPE_CHECKING"
