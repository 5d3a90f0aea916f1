"""Training on a model that brings code of its own: once a person allowed it, the recipe may name
its classes like installed ones.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from hfgen.errors import HfgenError
from hfgen.hub.client import hub_errors
from hfgen.hub.fetch import fetch
from hfgen.hub.folder import check_pipeline, index_entries
from hfgen.hub.load import INDEX
from hfgen.hub.trust import ask, foreign_code
from hfgen.pipelines._self_contained import HASHED, export_name  # pyright: ignore
from hfgen.recipe import MODELS, PIPELINES, Recipe, is_hub_id, is_loaded


def admit_sources(recipe: Recipe, *, trust_remote_code: bool = False) -> list[str]:
    """``admit`` all that ``recipe.model`` is loaded from and, where the run is resumed, the classes
    of its own pipeline that are not installed.

    Returns:
        The code files that run.
    Raises:
        HfgenError: as ``admit``.
    """
    entries = [value for value in recipe.model.values() if is_loaded(value)]
    named = [value if isinstance(value, str) else str(value["pretrained"]) for value in entries]
    admitted = []
    for source in dict.fromkeys(named):
        admitted += admit(source, trust_remote_code=trust_remote_code)
    if recipe.training.resume_from_checkpoint is not None:
        own = str(recipe.folder)
        admitted += admit(own, trust_remote_code=trust_remote_code, only_unknown=True)
    return admitted


def admit(source: str, *, trust_remote_code: bool = False, only_unknown: bool = False) -> list[str]:
    """Ask for the foreign code of a run, a pipeline folder or a Hub id, then run it and enter its
    classes in the tables of models and pipelines. Of a pipeline whose name is installed, the
    installed class serves.

    Args:
        only_unknown: leave classes alone whose name is installed.
    Returns:
        The code files that run; none where all of it is installed.
    Raises:
        HfgenError: it may not run, is not what its name says, or fails.
    """
    folder = _pipeline_folder(source)
    if folder is None:
        return []
    entries = index_entries(check_pipeline(folder, source))
    foreign, admitted = foreign_code(folder, source), {}
    for name in foreign:
        stem, table = Path(name).stem, MODELS if "/" in name else PIPELINES
        classes = [cls for library, cls in entries if library == stem]
        if (only_unknown or table is PIPELINES) and all(cls in table for cls in classes):
            continue
        admitted[name] = (table, classes)
    ask(source, {name: foreign[name] for name in admitted}, trust_remote_code=trust_remote_code)
    for name, (table, classes) in admitted.items():
        module = _run(folder / name, f"{source}/{name}")
        table.update({cls: f"{module}:{cls}" for cls in classes})
    return list(admitted)


def _pipeline_folder(source: str) -> Path | None:
    """The folder of the pipeline in ``source``; None where it holds none, or no code."""
    folder = Path(source)
    if not folder.is_dir():
        if not is_hub_id(source) or not _has_code(source):
            return None
        folder = fetch(source)
    folder = folder / "pipeline" if (folder / "pipeline").is_dir() else folder
    return folder if (folder / INDEX).is_file() else None


def _has_code(repo_id: str) -> bool:
    """Whether a repository's index names exported code; asked first, since a repository of
    another kind is not to be downloaded whole."""
    with hub_errors(repo_id):
        try:
            index = Path(hf_hub_download(repo_id, INDEX)).parent
        except EntryNotFoundError:  # or offline: for the loading to name
            return False
    entries = index_entries(check_pipeline(index, repo_id))
    return any(HASHED.fullmatch(library) for library, _ in entries)


def _run(path: Path, origin: str) -> str:
    """Import a code file under a name of its own, which ends as the file that it was exported from
    was called; the name.
    """
    code = path.read_text(encoding="utf-8")
    exported = HASHED.fullmatch(path.stem)
    if exported is None or export_name(path.stem, code) != path.stem:
        raise HfgenError(f"{origin}: was changed after it was exported; export the pipeline again")
    name = f"trusted_{path.stem[-8:]}.{exported['stem']}"
    if name in sys.modules:
        return name
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise HfgenError(f"{origin}: its code fails: {' '.join(repr(error).split())}") from error
    return name
