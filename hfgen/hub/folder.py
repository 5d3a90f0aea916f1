"""A folder that is to be shared, or came from a stranger: which files it holds and whether they may
pass.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import yaml
from packaging.version import Version

import hfgen
from hfgen.errors import HfgenError
from hfgen.pipelines._standalone import parse  # pyright: ignore

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".dill")
SAMPLE_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
HASHED_CODE = re.compile(r"^[\w.-]+__[0-9a-f]{6,64}\.py$")


@dataclass(frozen=True)
class Shared:
    """What is pushed. ``files``: path in the repository -> file; ``run``: the run's folder, None
    for a bare pipeline.
    """

    pipeline: Path
    run: Path | None
    files: dict[str, Path]


def collect(folder: str | Path) -> Shared:
    """The files to share of a run (its ``pipeline``, recipe, metrics, pictures) or of a pipeline
    folder.

    Raises HfgenError when there is no pipeline, when a file may be a pickle, or when an index or
    config is broken.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise HfgenError(f"{folder}: no such folder; give a run (runs/NAME) or a saved pipeline")
    run = folder if (folder / "pipeline").is_dir() else None
    pipeline = folder / "pipeline" if run else folder
    check_pipeline(pipeline)
    files = visible_files(pipeline)
    if run:
        files |= {path.name: path for path in record(run)}
        files |= {f"samples/{path.name}": path for path in pictures(run)}
    check_yaml(files)
    refuse_pickles(files, str(folder))
    return Shared(pipeline, run, files)


def record(run: Path) -> list[Path]:
    """What a run says of itself: recipe, numbers, machine, card; those files that it has."""
    names = ("recipe.yaml", "metrics.jsonl", "environment.json", "README.md")
    return [path for path in (*(run / n for n in names), metrics_file(run)) if path.is_file()]


def metrics_file(run: Path) -> Path:
    """Where ``hfgen evaluate`` leaves a run's numbers, or a repository keeps them."""
    measured = run / "evaluation" / "metrics.json"
    return measured if measured.is_file() else run / "metrics.json"


# The pictures a card shows, in its order; other samples stay in the run.
CARD_PICTURES = ("grid", "interpolation", "reconstructions", "denoising", "similarity")


def pictures(run: Path) -> list[Path]:
    """The pictures of a run that its card shows."""
    found = {
        path.stem: path for path in (run / "samples").glob("*") if path.suffix in SAMPLE_PICTURES
    }
    return [found[name] for name in CARD_PICTURES if name in found]


def visible_files(folder: Path) -> dict[str, Path]:
    """Path inside ``folder`` -> file, without hidden ones and Python's caches."""
    found = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
        if path.is_file() and not hidden:
            found["/".join(parts)] = path
    return found


def check_pipeline(folder: Path, origin: str | None = None) -> dict[str, object]:
    """The parsed ``model_index.json``; HfgenError, which names ``origin`` (default: the folder),
    when it is not a pipeline.
    """
    index, origin = folder / "model_index.json", origin or str(folder)
    if not index.is_file():
        state = "a run that has exported no pipeline yet" if is_run(folder) else "not a pipeline"
        raise HfgenError(
            f"{origin}: {state} (no model_index.json); give a run or a folder of save_pretrained"
        )
    try:
        values = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise HfgenError(f"{origin}/{index.name}: not valid JSON ({error})") from None
    if not isinstance(values, dict) or "_class_name" not in values:
        raise HfgenError(
            f"{origin}/{index.name}: names no _class_name; it was not written by save_pretrained"
        )
    refuse_newer(values, origin)
    return values


def is_run(folder: Path) -> bool:
    """Whether a folder looks like a run, finished or not."""
    return (folder / "checkpoints").is_dir() or (folder / "recipe.yaml").is_file()


def refuse_newer(index: dict[str, object], origin: str) -> None:
    """HfgenError when a later version of hfgen saved the pipeline than is installed."""
    saved, installed = str(index.get("_hfgen_version", "0")), hfgen.__version__
    if Version(saved) > Version(installed):
        raise HfgenError(
            f"{origin}: saved by hfgen {saved}, newer than the installed {installed}: pip install "
            "-U hfgen"
        )


def components(index: dict[str, object]) -> dict[str, tuple[str, str]]:
    """Component -> (its library or code file, its class), of a parsed ``model_index.json``."""
    pairs = {name: value for name, value in index.items() if not name.startswith("_")}
    return {name: (str(pair[0]), str(pair[1])) for name, pair in pairs.items() if is_pair(pair)}


def is_pair(value: object) -> TypeGuard[list[object]]:
    """Whether a value of the index names a class: [library or code file, class]."""
    return isinstance(value, list) and len(value) == 2 and value[0] is not None


def index_entries(index: dict[str, object]) -> list[tuple[str, str]]:
    """(library or code file, class) of the pipeline, when it names its own code, and of every
    component."""
    own = index["_class_name"]
    first = [(str(own[0]), str(own[1]))] if is_pair(own) else []
    return [*first, *components(index).values()]


def check_yaml(files: dict[str, Path]) -> None:
    """HfgenError when the card's metadata or the recipe is not a YAML mapping."""
    if "README.md" in files:
        card_metadata(files["README.md"].read_text(encoding="utf-8"), str(files["README.md"]))
    if "recipe.yaml" in files:
        parse_mapping(files["recipe.yaml"].read_text(encoding="utf-8"), str(files["recipe.yaml"]))


_FRONT = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)


def split_card(text: str) -> tuple[str, str]:
    """The YAML between the two "---" lines at the top of a card, and the text below; "" without
    them.
    """
    match = _FRONT.match(text)
    return (match.group(1), text[match.end() :]) if match else ("", text)


def card_metadata(text: str, origin: str) -> dict[str, object]:
    """The metadata of a card; HfgenError names the line where its YAML is broken."""
    front, _ = split_card(text)
    if text.startswith("---") and not front:
        raise HfgenError(
            f"{origin}: the metadata that begins with '---' is never closed by another '---'"
        )
    return parse_mapping(front, origin) if front.strip() else {}


def parse_mapping(text: str, origin: str) -> dict[str, object]:
    """A YAML mapping; HfgenError otherwise."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise HfgenError(
            f"{origin}:{line} is not valid YAML: {getattr(error, 'problem', error)}"
        ) from None
    if not isinstance(values, dict):
        raise HfgenError(f"{origin}: expected a YAML mapping, found {type(values).__name__}")
    return values


def refuse_pickles(names: Iterable[str], origin: str) -> None:
    """HfgenError when a file may hold a pickle: reading one runs whatever its author wrote."""
    bad = sorted(name for name in names if name.endswith(PICKLES))
    if bad:
        raise HfgenError(
            f"{origin}: {_few(bad)} may hold a pickle, which can run code; share weights as "
            "safetensors"
        )


def code_files(names: Iterable[str]) -> list[str]:
    """The Python files that ``trust_remote_code`` would run."""
    return sorted(name for name in names if name.endswith(".py"))


def imported_modules(source: str, origin: str) -> set[str]:
    """Top-level packages that a Python file imports; relative ones as "."; HfgenError where it does
    not parse.
    """
    try:
        tree = parse(source)
    except SyntaxError as error:
        raise HfgenError(
            f"{origin}: line {error.lineno} is not valid Python ({error.msg})"
        ) from None
    found: set[str] = set()
    left: list[ast.AST] = [tree]
    while left:
        node = left.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." if node.level else (node.module or "").split(".")[0])
        elif not isinstance(node, ast.Try):  # an import that is tried is optional
            left.extend(ast.iter_child_nodes(node))
    return found


def check_code(folder: Path, names: Iterable[str]) -> None:
    """HfgenError when a code file would not load alone: it imports hfgen, a neighbour, or what is
    not installed.
    """
    for name in names:
        wanted = imported_modules((folder / name).read_text(encoding="utf-8"), f"{folder}/{name}")
        bound = wanted & {"hfgen", "."}
        if bound:
            inside = "a neighbouring file" if "." in bound else "hfgen"
            raise HfgenError(
                f"{folder}/{name}: imports {inside}, so it cannot load alone; export the pipeline "
                "again"
            )
        missing = sorted(module for module in wanted if not _installed(module))
        if missing:
            raise HfgenError(
                f"{folder}/{name}: imports {_few(missing)}, which is not installed here"
            )


def _installed(module: str) -> bool:
    return module in sys.stdlib_module_names or importlib.util.find_spec(module) is not None


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
