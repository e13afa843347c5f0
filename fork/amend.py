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
Files of the fork that hold some definitions of a module, which the build puts in the place of the release's.

Such a file is a Python module that nobody imports as it is. What it may hold, and what becomes of it:

- A function, a constant (``NAME = value``) or the docstring of a class takes the place of the release's, together with
  its decorators and the comments directly above. Overloads belong to their function; a property's setter is another
  definition, named ``Class.size.setter``.
- The members of a class take the place of the members of the release's class, whose bases and decorators stay.
- What the release does not have is named in setup.cfg, after ``adds:``. It goes before the definition that follows it
  here, or else after the one that it follows. A name that the release has lost is thus an error, never an addition.
- An import of a name after ``adds:`` goes where isort has it among the release's imports from the same package. If
  there are none, one from the own package goes before the relative imports, and any other one behind all imports.
- An import that the release's file has as well, or from the release's file itself, tells readers and tools where a name
  comes from and goes nowhere. Any other import takes the place of the definition of that name.
- The module's docstring tells of the fork's file and goes nowhere, as do comments that stand apart, or at the top.

Every other byte stays, but for a mark behind an import that served nothing but what is replaced (fork/unused.py).
Whatever leaves a doubt is refused: a name that the release sets more than once, under a condition or together with
others; another kind of definition, or other bases; a statement that is no definition.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from fork.definitions import (
    Definition,
    Import,
    Module,
    Scope,
    bound_names,
    import_lines,
    imports,
    is_text,
    written_module,
)
from fork.pin import ForkError
from fork.splice import Splice
from fork.unused import mark_unused

__all__ = ["Amendment", "amend", "definition_text", "has_name"]

LATE = "  # noqa: E402, F401"
"""Behind an import below code, where a definition stood: it is there for those who import the name from here."""


@dataclass(frozen=True)
class Amendment:
    """
    A module of the release with the fork's definitions in it.

    Args:
        text: the module.
        replaced: names of the release's definitions in whose place the fork's stand.
        added: names that the release does not have.
        problems: why the fork's file does not fit; ``text`` is of use only where there are none.
    """

    text: bytes
    replaced: tuple[str, ...]
    added: tuple[str, ...]
    problems: tuple[str, ...]


@lru_cache(maxsize=256)
def amend(path: str, ours: bytes, theirs: bytes, adds: tuple[str, ...], release: str) -> Amendment:
    """
    Put the definitions of a file of the fork in the place of the release's.

    Args:
        path: where both files lie, such as ``monai/networks/utils.py``.
        ours: the fork's file.
        theirs: the release's file.
        adds: what the fork's file holds and the release's does not.
        release: whose release it is, such as "MONAI 1.6.1", for messages.
    """
    try:
        merging = _Merging(Module(path, ours, "the fork's"), Module(path, theirs, f"{release}'s"), adds, release)
    except ForkError as error:
        return Amendment(theirs, (), (), (str(error),))
    merging.run()
    text = merging.splice.text()
    problems = merging.problems or _problems_of_the_result(path, text, theirs, release)
    text = text if problems else mark_unused(path, text, theirs)
    return Amendment(text, tuple(merging.replaced), tuple(merging.added), tuple(problems))


def definition_text(path: str, data: bytes, name: str) -> bytes | None:
    """
    The text of a definition; None unless the module holds exactly one of that name.

    Args:
        path: where the module lies.
        data: its text.
        name: the definition, as an :class:`Amendment` names it.

    Raises:
        ForkError: if the module is no Python.
    """
    module = Module(path, data, "the release's")
    found = list(_named(module.scope(), name))
    return b"".join(module.lines_of(found[0])) if len(found) == 1 else None


def has_name(path: str, data: bytes, name: str) -> bool:
    """Whether a module has a name, such as an :class:`Amendment` adds, however it comes to it."""
    module = Module(path, data, "the release's")
    return name in dict(bound_names(module.tree.body)) or any(_named(module.scope(), name))


def _named(scope: Scope, name: str) -> Iterator[Definition]:
    yield from scope.find(name)
    for owner in scope.definitions:
        if owner.kind == "class" and name.startswith(f"{owner.name}."):
            yield from _named(scope.inside(owner), name.removeprefix(f"{owner.name}."))


def _problems_of_the_result(path: str, text: bytes, theirs: bytes, release: str) -> list[str]:
    if text == theirs:
        return [f"'{path}' changes nothing in {release}'s file: remove it, from setup.cfg, too"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of strings in the release's text
            compile(text, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        return [f"'{path}' and {release}'s file do not go together: {error}"]
    return []


class _Merging:
    """One file on its way to an :class:`Amendment`; the arguments are those of :func:`amend`, read."""

    def __init__(self, ours: Module, theirs: Module, adds: tuple[str, ...], release: str) -> None:
        self.ours = ours
        self.theirs = theirs
        self.adds = adds
        self.release = release
        self.splice = Splice(ours, theirs)
        self.replaced: list[str] = []
        self.added: list[str] = []
        self.problems: list[str] = []

    def run(self) -> None:
        """Compare the two files: what goes where, and what is wrong."""
        mine = self.ours.scope()
        self._merge_imports(mine)
        self._merge_scope(mine, self.theirs.scope(), "")
        for name in self.adds:
            if name not in self.added:
                self._problem(f"should add '{name}', as setup.cfg says, but does not hold it")

    def _problem(self, what: str) -> None:
        self.problems.append(f"'{self.ours.path}' {what}")

    # ------------------------------------------------------------------------------------------------ definitions

    def _merge_scope(self, ours: Scope, theirs: Scope, prefix: str) -> None:
        """Merge the definitions of the fork's file, or of a class in it, into the release's."""
        self._check_statements(ours)
        new: list[Definition] = []  # that wait for one that the release has
        place: Definition | None = None
        for item in ours.definitions:
            name = prefix + item.name
            if name in self.adds:
                self._check_new(name, item, theirs)
                self.added.append(name)
                new.append(item)
                continue
            found = self._place(name, item, theirs)
            if found:
                self._insert_before(found, new, item, theirs)
                self._replace(name, found, item, ours, theirs)
                new, place = [], found
        if new:
            self._insert_last(place, new, theirs, prefix)

    def _replace(self, name: str, place: Definition, item: Definition, ours: Scope, theirs: Scope) -> None:
        if item.kind == "class":
            mine, other = _header(item), _header(place)
            if mine == other:
                self._merge_scope(ours.inside(item), theirs.inside(place), f"{name}.")
            else:
                self._problem(f"has '{mine}' where {self.release}'s file has '{other}': only its members are replaced")
            return
        self.replaced.append(name)
        if not self.splice.replace(place, self.splice.lines(item, self.theirs.indentation(place.first))):
            self._problem(f"holds '{name}' just as {self.release} does: remove it")

    def _insert_before(self, place: Definition, new: list[Definition], item: Definition, theirs: Scope) -> None:
        """Put new definitions before the one that the definition ``item`` goes to."""
        if new:
            lines = self.splice.spaced(new, theirs.indentation)
            self.splice.insert(place.first - 1, lines + [b""] * self.splice.blank_lines_above(item))

    def _insert_last(self, place: Definition | None, new: list[Definition], theirs: Scope, prefix: str) -> None:
        """Put new definitions behind the place of the last one before them, or else at the end of their scope."""
        gap = self.splice.blank_lines_above(new[0]) if place else self._gap_at_the_end(new[0], theirs)
        if not place and theirs.on_one_line:
            self._problem(f"cannot add to '{prefix[:-1]}', which {self.release}'s file has on one line")
        lines = [b""] * (gap if self.theirs.lines else 0) + self.splice.spaced(new, theirs.indentation)
        self.splice.insert(place.last if place else theirs.last, lines)

    def _gap_at_the_end(self, item: Definition, theirs: Scope) -> int:
        """How many blank lines black and isort have between the end of a scope and one more definition."""
        behind_imports = bool(theirs.body) and isinstance(theirs.body[-1], (ast.Import, ast.ImportFrom))
        return 1 if theirs.header or (behind_imports and item.kind == "constant") else 2

    def _place(self, name: str, item: Definition | Import, theirs: Scope) -> Definition | None:
        """The release's definition that one of the fork's takes the place of; None after telling why there is none."""
        found = theirs.find(item.name)
        standing = {id(node) for definition in found for node in definition.nodes}
        others = [
            node for bound, node in bound_names(theirs.body, True) if bound == item.name and id(node) not in standing
        ]
        lines = [definition.nodes[-1].lineno for definition in found] + [getattr(node, "lineno", 0) for node in others]
        if not lines:
            problem = f"{self.release}'s file has no such name; what is new stands after 'adds:' in setup.cfg"
        elif len(lines) > 1:
            where = ", ".join(map(str, sorted(lines)))
            problem = f"{self.release}'s file sets it {len(lines)} times (lines {where}): replace the whole file"
        elif others:
            problem = f"{self.release}'s file sets it in '{self.theirs.beginning(others[0])}' (line {lines[0]})"
            problem += ": import it so, or under another name" if isinstance(item, Import) else ""
        else:
            problem = self._misfit(found[0], item)
        if problem:
            self._problem(f"should replace '{name}', but {problem}")
        return None if problem else found[0]

    def _misfit(self, place: Definition, item: Definition | Import) -> str:
        """Why something of the fork's cannot take the place of one definition; empty if it can."""
        if not place.alone:
            return f"another statement stands on its line in {self.release}'s file ({place.last})"
        if isinstance(item, Import):
            return ""
        if item.kind != place.kind:
            return f"it is a {place.kind} in {self.release}'s file and a {item.kind} here"
        if len(place.nodes) > 1 and len(item.nodes) == 1:
            return f"{self.release}'s file has overloads of it: write them, too"
        return ""

    def _check_new(self, name: str, item: Definition, theirs: Scope) -> None:
        if item.kind == "docstring":
            self._problem(f"cannot add '{name}': the docstring of a class can only be replaced")
        elif item.name in dict(bound_names(theirs.body, typing=True)):
            self._problem(f"should add '{name}', but {self.release}'s file has it")

    def _check_statements(self, ours: Scope) -> None:
        """The fork's file holds definitions, each once, and imports; nothing that would be lost."""
        names = [item.name for item in ours.definitions]
        names += [] if ours.header else [item.name for item in imports(self.ours, ours.body)]
        for twice in sorted({name for name in names if names.count(name) > 1}):
            self._problem(f"sets '{twice}' more than once")
        for node in ours.others:
            is_docstring = node is self.ours.tree.body[0] and is_text(node)
            if not is_docstring and (ours.header or not isinstance(node, (ast.Import, ast.ImportFrom))):
                self._problem(
                    f"may hold definitions and imports, not '{self.ours.beginning(node)}' (line {node.lineno})"
                )
        for item in ours.definitions:
            if not item.alone:
                self._problem(f"has another statement on the line of '{item.name}' ({item.last})")
            if item.name == "__all__" and not ours.header:
                self._problem("has an '__all__', but the release's stays: leave it out")

    # ---------------------------------------------------------------------------------------------------- imports

    def _merge_imports(self, mine: Scope) -> None:
        bound = list(bound_names(self.theirs.tree.body))
        names = {name for name, _ in bound}
        known = {item.what for item in imports(self.theirs, (node for _, node in bound))}
        everything = {name for name, _ in bound_names(self.theirs.tree.body, typing=True)}
        new: list[Import] = []
        for item in imports(self.ours, mine.body):
            if item.name in self.adds:
                self.added.append(item.name)
                new.append(item)
                if item.name in names:
                    self._problem(f"should add '{item.name}', but {self.release}'s file has it")
            elif item.module == self.ours.name and item.item:
                if item.item not in everything or item.name != item.item:
                    self._problem(f"takes '{item.item}' from itself, but {self.release}'s file has no such name")
            elif item.what not in known:
                self._replace_by_import(item)
        if new:
            self._add_imports(new)

    def _replace_by_import(self, item: Import) -> None:
        if item.name == "*" or (item.item is None and "." in item.name):
            self._problem(f"imports '{item.module}' without saying what of it: from {item.module} import ...")
        elif item.module == "__future__":
            self._problem(f"imports '{item.name}' from __future__, which {self.release}'s file does not")
        else:
            place = self._place(item.name, item, self.theirs.scope())
            if place:
                self.replaced.append(item.name)
                lines = import_lines([item])
                lines[0] += LATE if self._has_code_above(place) else ""
                self.splice.replace(place, [line.encode() for line in lines])

    def _has_code_above(self, place: Definition) -> bool:
        """Whether something else than imports and the docstring stands above: then linters ask for a reason."""
        above = [node for node in self.theirs.tree.body if node.lineno < place.first]
        return any(not isinstance(node, (ast.Import, ast.ImportFrom)) and not is_text(node) for node in above)

    def _add_imports(self, new: list[Import]) -> None:
        """Put imports where isort has them among those of their package, before relative ones, or else behind all."""
        modules = dict.fromkeys(item.written for item in new)
        groups = [[item for item in new if item.written == module] for module in sorted(modules, key=str.lower)]
        rest = {id(item) for group in groups if not self._add_sorted(group) for item in group}
        left = [item for item in new if id(item) in rest]
        relative = [node for node in self.theirs.tree.body if isinstance(node, ast.ImportFrom) and node.level]
        own = [item for item in left if relative and _package(item.written) == _package(self.theirs.name)]
        if own and not self._imports_from(own[0].written):
            self.splice.insert(relative[0].lineno - 1, [*(line.encode() for line in import_lines(own)), b""])
            left = [item for item in left if item not in own]
        if left:
            self._add_behind(left)

    def _imports_from(self, written: str) -> list[ast.ImportFrom]:
        """The release's imports from the package of a module."""
        found = [node for node in self.theirs.tree.body if isinstance(node, ast.ImportFrom)]
        return [node for node in found if _package(written_module(node)) == _package(written)]

    def _add_sorted(self, group: list[Import]) -> bool:
        """
        Add names of one module to the release's import of it, or put an import of it between its neighbors; returns
        whether the release has either.
        """
        if any(item.item is None or item.name != item.item for item in group):
            return False
        written = group[0].written
        near = self._imports_from(written)
        same = next((node for node in near if written_module(node) == written), None)
        if same is not None:
            names = [alias.name for alias in same.names]
            if any(alias.asname for alias in same.names) or not self.theirs.stands_alone(same):
                return False
            merged = sorted({*names, *(item.name for item in group)}, key=_isort_key)
            lines = import_lines([replace(group[0], name=name, item=name) for name in merged])
            self.splice.replace_lines(same.lineno, same.end_lineno or same.lineno, [line.encode() for line in lines])
            return True
        if not near:
            return False
        behind = [node for node in near if written_module(node).lower() < written.lower()]
        position = (behind[-1].end_lineno or behind[-1].lineno) if behind else near[0].lineno - 1
        self.splice.insert(position, [line.encode() for line in import_lines(group)])
        return True

    def _add_behind(self, new: list[Import]) -> None:
        """Put imports behind those with which the release's file begins, or behind its docstring."""
        lines = [line.encode() for line in import_lines(new)]
        body, above = self.theirs.tree.body, None
        for node in body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                break
            if isinstance(node, (ast.Import, ast.ImportFrom)) or (node is body[0] and is_text(node)):
                above = node
        if above:
            is_import = isinstance(above, ast.Import) or getattr(above, "module", "__future__") != "__future__"
            self.splice.insert(above.end_lineno or above.lineno, lines if is_import else [b"", *lines])
        elif body:
            self.splice.insert(body[0].lineno - 1, [*lines, b"", b""])
        else:
            self.splice.insert(len(self.theirs.lines), [b"", *lines] if self.theirs.lines else lines)


def _header(definition: Definition) -> str:
    """How a class begins: its decorators, name, bases and keywords."""
    (node,) = definition.nodes
    assert isinstance(node, ast.ClassDef)
    decorators = "".join(f"@{ast.unparse(decorator)} " for decorator in node.decorator_list)
    bases = [ast.unparse(base) for base in node.bases]
    bases += [f"{keyword.arg or '**'}={ast.unparse(keyword.value)}" for keyword in node.keywords]
    return f"{decorators}class {node.name}({', '.join(bases)})"


def _package(module: str) -> str:
    """What isort keeps together: the dots of a relative import, or the first name."""
    name = module.lstrip(".")
    return "." * (len(module) - len(name)) or name.partition(".")[0]


def _isort_key(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest, each by the alphabet."""
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[:1].isupper() else 2
    return kind, name.lower()
