"""``hfgen check``: whether a shared model holds what it promises, as a table of ✓ and ✗."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from huggingface_hub import ModelCardData

from hfgen.errors import HfgenError
from hfgen.hub.facts import FROM_TEXT, SCORING, TASK, tensor_shapes
from hfgen.hub.fetch import locate
from hfgen.hub.folder import (
    card_metadata,
    check_code,
    check_pipeline,
    code_files,
    components,
    index_entries,
    parse_mapping,
    refuse_pickles,
    split_card,
    visible_files,
)
from hfgen.hub.trust import ask, foreign_code, listed
from hfgen.pipelines._self_contained import HASHED, export_name  # pyright: ignore

TASKS = (TASK, FROM_TEXT, SCORING, "image-to-image")
_CONFIGS = (
    "config.json",
    "scheduler_config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
)


@dataclass(frozen=True)
class Row:
    """One line of the table. ``passed`` is None where the question does not arise."""

    name: str
    passed: bool | None
    detail: str


@dataclass
class Report:
    """The result of ``check``."""

    source: str
    rows: list[Row] = field(default_factory=list)

    @property
    def status(self) -> int:
        """Exit status: 0 when nothing failed, else 1."""
        return int(any(row.passed is False for row in self.rows))

    def table(self) -> str:
        """The rows as text, one line each."""
        signs = {True: "✓", False: "✗", None: "–"}
        width = max(len(row.name) for row in self.rows)
        return "\n".join(
            f"{signs[row.passed]} {row.name.ljust(width)}  {row.detail}" for row in self.rows
        )


def check(
    path_or_id: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
) -> Report:
    """Examine a run, a pipeline folder or a Hub repository; see ``Report.table``.

    Args:
        trust_remote_code: let code that is not hfgen's run in the clean process without asking.
    Raises:
        HfgenError: nothing there or no access to it; or its code was not allowed to run.
    """
    report = Report(str(path_or_id))
    kind = "local folder" if Path(path_or_id).is_dir() else "as the Hub lists it"
    folder = locate(path_or_id, revision=revision, token=token)
    report.rows.append(Row("files", True, f"{len(visible_files(folder))} files, {kind}"))
    pipeline = folder / "pipeline" if (folder / "pipeline").is_dir() else folder
    report.rows += check_files(folder, pipeline)
    if report.status == 0:
        foreign = foreign_code(pipeline)
        ask(str(path_or_id), foreign, trust_remote_code=trust_remote_code)
        report.rows += check_images(pipeline, foreign)
    return report


def check_files(folder: Path, pipeline: Path) -> list[Row]:
    """What can be told without running anything; ``pipeline`` lies in ``folder``, or is it."""
    return [
        _row(name, examine, pipeline if name in PIPELINE_CHECKS else folder)
        for name, examine in FILE_CHECKS.items()
    ]


def _row(name: str, examine: Callable[[Path], str | None], folder: Path) -> Row:
    try:
        detail = examine(folder)
    except HfgenError as error:
        return Row(name, False, str(error).removeprefix(f"{folder}/").removeprefix(f"{folder}: "))
    return Row(name, True, detail) if detail else Row(name, None, "none")


# ---------------------------------------------------------------------------------------- by file


def check_index(folder: Path) -> str:
    """``model_index.json`` names a pipeline, and every component has its folder."""
    index = check_pipeline(folder)
    missing = [name for name in components(index) if not (folder / name).is_dir()]
    if missing:
        raise HfgenError(
            f"model_index.json names {', '.join(missing)}, and there is no such folder"
        )
    named = index["_class_name"]
    return f"{named[1] if isinstance(named, list) else named}: {', '.join(components(index))}"


def check_pickles(folder: Path) -> str:
    """No file may hold a pickle."""
    refuse_pickles(visible_files(folder), str(folder))
    return "none"


def check_weights(folder: Path) -> str | None:
    """Every safetensors file is whole, and every shard that an index names is there."""
    files = visible_files(folder)
    for name, path in files.items():
        if name.endswith(".safetensors.index.json"):
            shards = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
            lost = sorted(shard for shard in shards if not (path.parent / shard).is_file())
            if lost:
                raise HfgenError(f"{name} names {lost[0]}, which is missing")
    weights = {name: path for name, path in files.items() if name.endswith(".safetensors")}
    tensors = sum(len(tensor_shapes(path)) for path in weights.values())
    return f"{tensors} tensors in {len(weights)} file(s)" if weights else None


def check_configs(folder: Path) -> str | None:
    """Each component's config is JSON and names the class that the index names."""
    read = []
    for name, (_, class_name) in components(check_pipeline(folder)).items():
        for path in [folder / name / file for file in _CONFIGS if (folder / name / file).is_file()]:
            written = _json(path).get("_class_name", class_name)
            if written != class_name:
                raise HfgenError(f"{name}/{path.name} is of {written}, the index says {class_name}")
            read.append(name)
    return ", ".join(read)


def _json(path: Path) -> dict[str, object]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise HfgenError(f"{path.parent.name}/{path.name} is not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise HfgenError(f"{path.parent.name}/{path.name} is not a JSON object")
    return values


def check_own_code(folder: Path) -> str | None:
    """The code that the index names is there, loads alone, and its name says its content."""
    names = code_files(visible_files(folder))
    for library, _ in index_entries(check_pipeline(folder)):
        if HASHED.fullmatch(library) and not any(Path(name).stem == library for name in names):
            raise HfgenError(f"model_index.json names {library}.py, which is missing")
    check_code(folder, names)
    for name in names:
        stem = Path(name).stem
        content = export_name(stem, (folder / name).read_text(encoding="utf-8"))
        if HASHED.fullmatch(stem) and content != stem:
            raise HfgenError(f"{name} was changed after it was exported (content: {content})")
    return ", ".join(names)


def check_card(folder: Path) -> str:
    """``README.md``: metadata that the Hub accepts, and pictures that exist."""
    card = folder / "README.md"
    if not card.is_file():
        raise HfgenError("no README.md; hfgen card writes one")
    text = card.read_text(encoding="utf-8")
    metadata = card_metadata(text, "README.md")
    if metadata.get("library_name") != "diffusers":
        raise HfgenError(f"library_name is {metadata.get('library_name')!r}, not 'diffusers'")
    if metadata.get("pipeline_tag") not in TASKS:
        tag = metadata.get("pipeline_tag")
        raise HfgenError(f"pipeline_tag is {tag!r}; valid: {', '.join(TASKS)}")
    if not metadata.get("license"):
        raise HfgenError("no license")
    try:
        ModelCardData(**metadata)  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        raise HfgenError(f"metadata: {' '.join(str(error).split())}") from None
    lost = [name for name in _pictures(split_card(text)[1]) if not (folder / name).is_file()]
    if lost:
        raise HfgenError(f"shows {lost[0]}, which is missing")
    return f"{metadata['pipeline_tag']}, license {metadata['license']}"


def _pictures(body: str) -> list[str]:
    """Relative targets of a card's pictures."""
    targets = re.findall(r"!\[[^\]]*\]\(([^)\s]+)", body)
    return [target for target in targets if "://" not in target]


def check_recipe(folder: Path) -> str | None:
    """``recipe.yaml``, so that it can be trained again."""
    path = folder / "recipe.yaml"
    if not path.is_file():
        return None
    recipe = parse_mapping(path.read_text(encoding="utf-8"), "recipe.yaml")
    absent = [key for key in ("name", "family", "data", "model", "objective") if key not in recipe]
    if absent:
        raise HfgenError(f"recipe.yaml lacks {', '.join(absent)}")
    return str(recipe["name"])


FILE_CHECKS: dict[str, Callable[[Path], str | None]] = {
    "index": check_index,
    "pickles": check_pickles,
    "safetensors": check_weights,
    "configs": check_configs,
    "code": check_own_code,
    "card": check_card,
    "recipe": check_recipe,
}
PIPELINE_CHECKS = ("index", "pickles", "safetensors", "configs", "code")
"""Those that look at the pipeline inside a run rather than at the run."""


# ----------------------------------------------------------------------------------- by loading it


def check_images(folder: Path, foreign: Mapping[str, str]) -> list[Row]:
    """Load in a process without hfgen and, unless the code is foreign, in one with it; compare the
    images bit for bit.
    """
    with tempfile.TemporaryDirectory() as scratch:
        clean = _Drawing(folder, Path(scratch) / "clean.npy", "--without-hfgen")
        if foreign:
            nothing = f"brings code of its own: {listed(foreign)}"
            return [_loaded("loads without hfgen", clean), Row("loads with hfgen", None, nothing)]
        installed = _Drawing(folder, Path(scratch) / "installed.npy")
        rows = [_loaded("loads without hfgen", clean), _loaded("loads with hfgen", installed)]
        if not (rows[0].passed and rows[1].passed):
            return rows
        return rows + compare_images(np.load(clean.target), np.load(installed.target))


def compare_images(a: np.ndarray, b: np.ndarray) -> list[Row]:
    """Whether the first images (or scores) are finite, and the second the same bit for bit."""
    same = a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    what = "images" if a.ndim > 1 else "scores"
    told = f"{len(a)} {what}" + (f" of {'×'.join(map(str, a.shape[1:]))}" if a.ndim > 1 else "")
    return [
        Row(f"{what} finite", bool(np.isfinite(a).all()), told),
        Row(f"{what} equal", same, "bit for bit" if same else f"differ by {_distance(a, b)}"),
    ]


def _distance(a: np.ndarray, b: np.ndarray) -> str:
    same_shape = a.shape == b.shape
    return f"{np.abs(a - b).max():.2g}" if same_shape else f"shape: {a.shape} and {b.shape}"


class _Drawing:
    """``clean_process.py`` at work on a folder."""

    def __init__(self, folder: Path, target: Path, *flags: str):
        script = Path(__file__).with_name("clean_process.py")
        self.target = target
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(script), str(folder.resolve()), str(target), *flags],
            env={**os.environ, "HF_MODULES_CACHE": f"{target}.modules"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def error(self) -> str | None:
        """Wait; the last line of what went wrong, or None."""
        _, errors = self._process.communicate()
        lines = [line for line in errors.strip().splitlines() if line.strip()]
        return None if self._process.returncode == 0 else (lines or ["it was killed"])[-1]


def _loaded(name: str, drawing: _Drawing) -> Row:
    error = drawing.error()
    return Row(name, error is None, error or "")
