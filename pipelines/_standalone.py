"""The source of one module as a file that stands alone.

A Hub repository gets one ``.py`` per component, and no helper file beside it is downloaded; so what
a module shares with others in its package is written into the copy that travels.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
import threading
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any


def standalone(module: str) -> str:
    """Source of ``module`` with what it imports from its own package written into it.

    ``from .x import f`` (or an absolute import from the same top-level package) is replaced by the
    source of ``f`` and of what ``f`` needs, recursively and once; imports are hoisted. Text is
    copied, not generated: comments stay, and the result does not depend on the version of Python. A
    module without such imports is returned as it is.

    Raises:
        ValueError: the module has no file, or does something that cannot be inlined (imports a
            module rather than names from it, imports inside a function, needs one name from two
            modules, runs a statement at import).
    """
    ours = {module.split(".")[0], __name__.split(".")[0]}
    root = _Source.read(module, ours)
    code = root.text
    if any(root.is_ours(name) for name, _ in root.imports.values()):
        code = _Inliner(root).write()
    _check_alone(root, code)
    return code


_PARSER = threading.Lock()


def parse(code: str) -> ast.Module:
    """``ast.parse``, by one thread at a time: two at once raise SystemError in Python 3.11
    (https://github.com/python/cpython/issues/106905)."""
    with _PARSER:
        return ast.parse(code)


def meaning(code: str) -> str:
    """What of a source text is run: no comments, docstrings or positions, and nothing that only
    some versions of Python put into a syntax tree."""
    return repr(_essence(parse(code)))


def _essence(value: Any) -> Any:
    if isinstance(value, list):
        return [_essence(item) for item in value if not _is_text(item)]
    if isinstance(value, ast.JoinedStr):  # Python 3.12 leaves empty strings in it
        return ("JoinedStr", [_essence(part) for part in value.values if not _is_empty(part)])
    if not isinstance(value, ast.AST):
        return repr(value)
    fields = [(name, _essence(part)) for name, part in ast.iter_fields(value) if part is not None]
    kept = [field for field in fields if field[0] not in ("ctx", "kind") and field[1] != []]
    return (type(value).__name__, kept)


def _is_empty(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value == ""


def _is_text(node: Any) -> bool:
    """A string that stands alone: documentation."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


@dataclass
class _Statement:
    node: ast.stmt
    text: str
    defines: set[str]

    @cached_property
    def uses(self) -> set[str]:
        return {node.id for node in ast.walk(self.node) if isinstance(node, ast.Name)}


@dataclass
class _Source:
    """A parsed module: what it imports, by bound name, and its other top-level statements."""

    name: str
    text: str
    ours: set[str]
    docstring: str = ""
    plain_imports: dict[str, set[str]] = field(default_factory=dict)
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)
    statements: list[_Statement] = field(default_factory=list)

    @classmethod
    def read(cls, name: str, ours: set[str]) -> _Source:
        module = sys.modules.get(name) or importlib.import_module(name)
        path = getattr(module, "__file__", None)
        if path is None or name == "__main__":
            raise ValueError(
                f"{name}: a class that travels with its weights must be defined in a module of its "
                "own, not in a script or a notebook"
            )
        source = cls(name, Path(path).read_text(encoding="utf-8"), ours)
        source._parse(module.__package__ or "")
        return source

    @cached_property
    def defines(self) -> dict[str, list[_Statement]]:
        """Name -> the statements that bind or extend it."""
        table: dict[str, list[_Statement]] = {}
        for statement in self.statements:
            for name in statement.defines:
                table.setdefault(name, []).append(statement)
        return table

    @cached_property
    def bound(self) -> set[str]:
        return {*self.imports, *self.plain_imports, *self.defines}

    def is_ours(self, module: str) -> bool:
        return module.split(".")[0] in self.ours

    def _parse(self, package: str) -> None:
        lines = self.text.splitlines()
        end = 0
        for node in parse(self.text).body:
            text = "\n".join(lines[end : node.end_lineno]).strip("\n")
            end = node.end_lineno or end
            if isinstance(node, ast.Import):
                self._parse_import(node)
            elif isinstance(node, ast.ImportFrom):
                self._parse_import_from(node, package)
            elif not _is_text(node):
                self.statements.append(_Statement(node, text, _defined(node)))
            elif self.statements:  # the documentation of the name above it
                self.statements[-1].text += "\n" + text
            else:
                self.docstring = text

    def _parse_import(self, node: ast.Import) -> None:
        for alias in node.names:
            bound = alias.asname or alias.name.split(".")[0]
            line = f"import {alias.name}" + (f" as {alias.asname}" if alias.asname else "")
            self.plain_imports.setdefault(bound, set()).add(line)
            if self.is_ours(alias.name):
                raise ValueError(f"{self.name}: write 'from {alias.name} import NAME' to export it")

    def _parse_import_from(self, node: ast.ImportFrom, package: str) -> None:
        module = node.module or ""
        if node.level:
            module = importlib.util.resolve_name("." * node.level + module, package)
        for alias in node.names:
            bound = alias.asname or alias.name
            if self.is_ours(module) and bound != alias.name or alias.name == "*":
                raise ValueError(f"{self.name}: import {bound!r} by its own name to export it")
            self.imports[bound] = (module, alias.name)


class _Inliner:
    """Collects what a module needs from others, then writes it in the order that it was in."""

    def __init__(self, root: _Source):
        self.root = root
        self.sources = {root.name: root}
        self.needs: dict[str, set[str]] = {root.name: set()}  # module -> modules
        self.wanted: dict[str, set[str]] = {root.name: set(root.defines)}  # module -> names
        self.plain: set[str] = set()
        self.members: dict[str, tuple[str, str]] = {}
        self.owner = dict.fromkeys(root.defines, root.name)
        for name in sorted({*root.imports, *root.plain_imports}):
            self._collect(root, name)

    def _collect(self, source: _Source, name: str) -> None:
        """Note that ``name``, as it is bound in ``source``, is needed."""
        if name in source.plain_imports:
            self._claim(name, "a module")
            self.plain |= source.plain_imports[name]
        elif name not in source.imports:
            self._collect_definition(source, name)
        elif source.is_ours(source.imports[name][0]):
            module = source.imports[name][0]
            self.needs[source.name].add(module)
            self._collect(self._load(module), name)
        else:
            self._claim(name, ".".join(source.imports[name]))
            self.members[name] = source.imports[name]

    def _collect_definition(self, source: _Source, name: str) -> None:
        if name in self.wanted[source.name]:
            return
        if name not in source.defines:
            raise ValueError(f"{source.name} defines no {name!r} that an export could inline")
        self._claim(name, source.name)
        self.wanted[source.name].add(name)
        for statement in source.defines[name]:
            for used in sorted((statement.uses | statement.defines) & source.bound):
                self._collect(source, used)

    def _load(self, module: str) -> _Source:
        if module not in self.sources:
            source = self.sources[module] = _Source.read(module, self.root.ours)
            self.needs[module], self.wanted[module] = set(), set()
            for statement in source.statements:
                if not statement.defines:
                    where = f"{module}, line {statement.node.lineno}"
                    raise ValueError(f"{where}: runs at import, so it cannot be inlined")
            if source.imports.get("annotations", ("",))[0] == "__future__":
                self._collect(source, "annotations")
        return self.sources[module]

    def _claim(self, name: str, owner: str) -> None:
        if self.owner.setdefault(name, owner) != owner:
            raise ValueError(
                f"{self.root.name}: the export needs {name!r} of {self.owner[name]} and of "
                f"{owner}; rename one"
            )

    def write(self) -> str:
        future = self.members.pop("annotations", None)
        parts = [self.root.docstring] if self.root.docstring else []
        parts += ["from __future__ import annotations"] if future else []
        parts += ["\n".join([*sorted(self.plain), *_member_imports(self.members)])]
        graph = {name: sorted(self.needs[name]) for name in sorted(self.needs)}  # one order always
        for name in TopologicalSorter(graph).static_order():
            source, wanted = self.sources[name], self.wanted[name]
            kept = [s.text for s in source.statements if s.defines & wanted or source is self.root]
            if kept:
                parts += [f"# From {name}:", *kept]
        return "\n\n\n".join(parts) + "\n"


def _defined(node: ast.stmt) -> set[str]:
    """Names that a top-level definition or assignment binds (or extends: ``TABLE["x"] = ...``)."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [name for target in targets for name in ast.walk(target)]
        return {name.id for name in names if isinstance(name, ast.Name)}
    return set()


def _member_imports(members: dict[str, tuple[str, str]]) -> list[str]:
    grouped: dict[str, list[str]] = {}
    for bound, (module, name) in sorted(members.items()):
        grouped.setdefault(module, []).append(name if name == bound else f"{name} as {bound}")
    return [f"from {module} import {', '.join(names)}" for module, names in sorted(grouped.items())]


def _check_alone(root: _Source, code: str) -> None:
    """What is left imports nothing of ours, nor looks so to the loader, which searches the text."""
    left = [node for node in ast.walk(parse(code)) if isinstance(node, ast.ImportFrom)]
    modules = ["." * node.level + (node.module or "") for node in left]
    modules += re.findall(r"^\s*(?:from|import)\s+(\.\S*)", code, flags=re.MULTILINE)
    for module in modules:
        if module.startswith(".") or root.is_ours(module):
            raise ValueError(
                f"{root.name}: {module!r} must be imported at the top of the file to be inlined"
            )
