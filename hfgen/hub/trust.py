"""Code that comes with a model: it runs only after a person was asked, with the files named."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hfgen.errors import HfgenError
from hfgen.hub.fetch import locate
from hfgen.hub.folder import check_pipeline, code_files, index_entries, visible_files
from hfgen.hub.load import load
from hfgen.pipelines._self_contained import export_name, installed_modules  # pyright: ignore
from hfgen.pipelines._standalone import meaning, standalone  # pyright: ignore


def ask(source: str, files: Mapping[str, str], *, trust_remote_code: bool = False) -> None:
    """Return when the code of ``source`` may run: there is none, it was allowed, or a person at
    the terminal says yes.

    Args:
        files: as ``foreign_code`` gives them.
    Raises HfgenError: the answer is no, or there is no terminal to ask at.
    """
    if not files or trust_remote_code:
        return
    named = listed(files)
    if not (sys.stdin and sys.stdin.isatty()):
        is_run = (Path(source) / "checkpoints").is_dir()
        anew = f", or write it with the installed code: hfgen export {source}" if is_run else ""
        raise HfgenError(
            f"{source}: brings code of its own ({named}); read it, then add --trust-remote-code"
            + anew
        )
    print(f"{source} brings code that would run on this machine:", file=sys.stderr)
    for name, beside in files.items():
        print(f"  {_with(name, beside)}", file=sys.stderr)
    print("Run it? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise HfgenError(f"{source}: its code ({', '.join(files)}) was not run, as you asked")


def listed(files: Mapping[str, str]) -> str:
    """Foreign code in one line."""
    return "; ".join(_with(name, beside) for name, beside in files.items())


def _with(name: str, beside: str) -> str:
    return f"{name}, {beside}" if beside else name


def foreign_code(folder: Path, origin: str | None = None) -> dict[str, str]:
    """The code files of a pipeline folder that run anything else than the installed classes do, and
    what is installed instead ("" for nothing).

    The whole code is compared, not the hash in its name; comments and docstrings do not count.

    Raises HfgenError, which names ``origin`` (default: the folder): no pipeline, or no Python.
    """
    origin = origin or str(folder)
    entries = index_entries(check_pipeline(folder, origin))
    foreign = {}
    for name in code_files(visible_files(folder)):
        stem = Path(name).stem
        room = "models" if "/" in name else "pipelines"
        classes = [cls for library, cls in entries if library == stem]
        modules = [module for cls in classes for module in installed_modules(room, stem, cls)]
        code = _meaning((folder / name).read_text(encoding="utf-8"), f"{origin}/{name}")
        own = {module: standalone(module) for module in modules}
        if code not in map(meaning, own.values()):
            foreign[name] = _beside(stem, [export_name(module, own[module]) for module in own])
    return foreign


def _beside(stem: str, installed: list[str]) -> str:
    if stem in installed:
        return "changed after it was exported"
    return f"installed is {' and '.join(installed)}.py" if installed else ""


def _meaning(source: str, origin: str) -> str:
    try:
        return meaning(source)
    except SyntaxError as error:
        raise HfgenError(f"{origin}: line {error.lineno} is not valid Python") from None


def load_asking(path_or_id: str | Path, *, trust_remote_code: bool = False, **kwargs: Any) -> Any:
    """A pipeline as ``hfgen.load`` gives it; where it needs code of its own, ``ask`` comes first.

    Raises HfgenError: as ``hfgen.load``, ``locate`` and ``ask``.
    """
    folder = locate(path_or_id)
    folder = folder / "pipeline" if (folder / "pipeline").is_dir() else folder
    is_pipeline = (folder / "model_index.json").is_file()
    foreign = foreign_code(folder, str(path_or_id)) if is_pipeline else {}
    ask(str(path_or_id), foreign, trust_remote_code=trust_remote_code)
    if not foreign:  # what is no pipeline is for ``load`` to name
        return load(path_or_id, **kwargs)
    try:
        return load(folder, trust_remote_code=True, **kwargs)
    except HfgenError as error:  # names the cache's folder
        raise HfgenError(str(error).replace(str(folder), str(path_or_id))) from error
