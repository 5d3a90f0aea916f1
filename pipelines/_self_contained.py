"""Pipelines that carry their own code: what they save loads where hfgen is not installed.

``save_pretrained`` of diffusers writes ``["hfgen.models.vae_mlp", "MLPVAE"]`` into
``model_index.json`` and copies no code, so the folder loads nowhere else. ``SelfContainedMixin``
puts the source of the pipeline and of every component that is no library class beside the weights,
as one standalone file each, and names those files in the index:

    model_index.json    {"_class_name": ["vae_pipeline__1a2b3c4d", "VAEPipeline"],
                         "vae": ["vae_mlp__5e6f7a8b", "MLPVAE"], ...}
    vae_pipeline__1a2b3c4d.py
    vae/config.json  vae/vae_mlp__5e6f7a8b.py  vae/diffusion_pytorch_model.safetensors

The file names carry a hash of the code, since diffusers copies the code of all local folders
into one flat cache, where a file of the same name would replace another's code.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import json
import os
import re
import sys
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from diffusers import DiffusionPipeline
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES
from diffusers.utils.torch_utils import is_compiled_module
from huggingface_hub import file_exists

HASHED = re.compile(r"(?P<stem>\w+)__[0-9a-f]{8}")
"""Name of an exported file: stem of the source file, two underscores, 8 digits of a hash."""

_Base = DiffusionPipeline if TYPE_CHECKING else object


class SelfContainedMixin(_Base):
    """Saves code beside weights, and loads without running it where the same code is installed.

    Use: ``class MyPipeline(SelfContainedMixin, DiffusionPipeline)``.
    """

    _card: str | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any):
        """As in diffusers. With ``trust_remote_code=True`` the repository's code runs; without it
        only installed code does, and a ValueError says so where the two differ."""
        kwargs = {"use_safetensors": True, **kwargs}  # no stranger's pickle
        if kwargs.get("trust_remote_code"):
            return DiffusionPipeline.from_pretrained(pretrained_model_name_or_path, **kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        index = super()._dict_from_json_file(json_file)
        return use_installed(index, cls, str(Path(json_file).parent))

    def save_pretrained(
        self, save_directory: str | os.PathLike, safe_serialization: bool = True, **kwargs: Any
    ) -> None:
        """As in diffusers; always safetensors, since a pickle runs code when it is loaded."""
        if not safe_serialization:
            raise ValueError("safe_serialization=False: weights are saved as safetensors only")
        folder = str(save_directory)  # diffusers splits it as a string when it pushes
        self._card = _read_card(folder)
        super().save_pretrained(folder, **kwargs)

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Write ``model_index.json`` and the code that it names."""
        folder = Path(json_file_path).parent
        index = json.loads(self.to_json_string())
        index.pop("_name_or_path", None)
        version = getattr(_root_package(__name__), "__version__", None)
        if version is not None:
            index["_hfgen_version"] = version
        for name, entry in index.items():
            component = _unwrapped(getattr(self, name, None))
            if not is_component(entry) or entry[0] is None:
                continue
            _forget_origin(folder / name)
            if not is_library(type(component)):
                index[name] = write_code(type(component), folder / name)
        index["_class_name"] = write_code(type(self), folder)
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        Path(json_file_path).write_text(text, encoding="utf-8")

    def _upload_folder(self, working_dir: Any, repo_id: str, **kwargs: Any):
        """Upload, with the card that stood in the folder or where the pipeline came from, in place
        of the empty one that diffusers has just written. One that the repository has stays."""
        card = self._card or _read_card(self.name_or_path)
        if card and not file_exists(repo_id, "README.md", token=kwargs.get("token")):
            Path(working_dir, "README.md").write_text(card, encoding="utf-8")
        return super()._upload_folder(working_dir, repo_id, **kwargs)


def _forget_origin(folder: Path) -> None:
    """Drop the path that a component was loaded from: it tells nothing but the sharer's folders."""
    for path in folder.glob("*config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _read_card(folder: str | None) -> str | None:
    path = Path(folder or "", "README.md")
    return path.read_text(encoding="utf-8") if folder and path.is_file() else None


# ------------------------------------------------------------------------- saving


def is_component(entry: Any) -> TypeGuard[list[str]]:
    """Whether a value of ``model_index.json`` names a component: ``[library, class]``."""
    return isinstance(entry, list | tuple) and len(entry) == 2


def is_library(cls: type) -> bool:
    """Whether diffusers finds the class by itself, in one of the libraries that it loads from."""
    libraries = {name.split(".")[0] for name, classes in LOADABLE_CLASSES.items() if classes}
    return cls.__module__.split(".")[0] in libraries


def write_code(cls: type, folder: Path) -> list[str]:
    """Write the standalone source of ``cls`` into ``folder``; returns its entry for the index."""
    code = standalone(cls.__module__)
    stem = export_name(cls.__module__, code)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.py"):  # of an earlier save into the same folder
        if HASHED.fullmatch(old.stem) and _stem(old.stem) == _stem(stem):
            old.unlink()
    (folder / f"{stem}.py").write_text(code, encoding="utf-8", newline="\n")
    return [stem, cls.__name__]


def export_name(module: str, code: str | None = None) -> str:
    """Stem of the exported file of ``module``: ``vae_mlp__5e6f7a8b``."""
    code = standalone(module) if code is None else code
    digest = hashlib.sha256(repr(_meaning(ast.parse(code))).encode()).hexdigest()[:8]
    return f"{_stem(module.rsplit('.', 1)[-1])}__{digest}"


def _meaning(value: Any) -> Any:
    """What of a syntax tree is run: no comments, docstrings or positions, and nothing that only
    some versions of Python put there. So a better docstring does not make an old file look foreign.
    """
    if isinstance(value, list):
        return [_meaning(item) for item in value if not _is_text(item)]
    if not isinstance(value, ast.AST):
        return repr(value)
    fields = [(name, _meaning(part)) for name, part in ast.iter_fields(value) if part is not None]
    kept = [field for field in fields if field[0] not in ("ctx", "kind") and field[1] != []]
    return (type(value).__name__, kept)


def _is_text(node: Any) -> bool:
    """A string that stands alone: documentation."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _stem(name: str) -> str:
    exported = HASHED.fullmatch(name)
    return exported["stem"] if exported else name


def _unwrapped(component: Any) -> Any:
    return component._orig_mod if is_compiled_module(component) else component


def _root_package(module: str) -> Any:
    return sys.modules.get(module.split(".")[0])


# ------------------------------------------------------------------------- loading


def use_installed(index: dict[str, Any], pipeline: type, where: str) -> dict[str, Any]:
    """``model_index.json`` with installed modules in place of exported files of the same content.

    Raises:
        ValueError: the repository's code is not installed, or differs from what is.
    """
    index = dict(index)
    saved_by = index.get("_hfgen_version")
    class_name = index.get("_class_name")
    if is_component(class_name):
        if class_name[1] == pipeline.__name__:
            same_module(class_name[0], [pipeline.__module__], where, saved_by)
        index["_class_name"] = pipeline.__name__
    for name, entry in index.items():
        if is_component(entry) and HASHED.fullmatch(str(entry[0])):
            candidates = installed_modules("models", *entry)
            module = same_module(entry[0], candidates, f"{where}/{name}", saved_by)
            LOADABLE_CLASSES.setdefault(module, {})  # or the download takes it for a missing file
            index[name] = [module, entry[1]]
    return index


def installed_modules(room: str, exported: str, class_name: str) -> list[str]:
    """Modules that an exported file may come from: one in our ``room``, or imported already."""
    stem = _stem(exported)
    root = (__package__ or "").rpartition(".")[0]
    if root and importlib.util.find_spec(f"{root}.{room}"):
        if importlib.util.find_spec(f"{root}.{room}.{stem}"):
            importlib.import_module(f"{root}.{room}.{stem}")
    same_stem = [name for name in list(sys.modules) if name.rpartition(".")[2] == stem]
    found = [(name, getattr(sys.modules[name], class_name, None)) for name in same_stem]
    return [name for name, cls in found if isinstance(cls, type) and cls.__module__ == name]


def same_module(exported: str, candidates: list[str], where: str, saved_by: str | None) -> str:
    """The candidate whose export has the same name, hence the same content; else a ValueError."""
    names = [export_name(module) for module in candidates]
    if exported in names:
        return candidates[names.index(exported)]
    version = getattr(_root_package(__name__), "__version__", None)
    here = f"installed is {' and '.join(names)}.py" if names else "no such code is installed"
    raise ValueError(
        f"{where} brings its own code, {exported}.py (saved by hfgen {saved_by or '?'}), but {here}"
        f" (hfgen {version or 'is not installed'}): read that file, then pass "
        "trust_remote_code=True to run it"
    )


# ---------------------------------------------------------------- one module, standing alone


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
        for node in ast.parse(self.text).body:
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
    left = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    modules = ["." * node.level + (node.module or "") for node in left]
    modules += re.findall(r"^\s*(?:from|import)\s+(\.\S*)", code, flags=re.MULTILINE)
    for module in modules:
        if module.startswith(".") or root.is_ours(module):
            raise ValueError(
                f"{root.name}: {module!r} must be imported at the top of the file to be inlined"
            )
