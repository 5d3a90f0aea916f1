"""Downloading from the Hub: every file is compared with the Hub's listing, and no pickle passes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.hf_api import RepoFile

from hfgen.errors import HfgenError
from hfgen.hub.checkpoint import newest_checkpoint, unpack_states
from hfgen.hub.client import Retry, check_repo_id, hub_errors, meant_id
from hfgen.hub.digests import differences
from hfgen.hub.folder import refuse_pickles


def fetch(repo_id: str, *, revision: str | None = None, token: str | bool | None = None) -> Path:
    """A verified local snapshot of a Hub repository: a folder that loads offline.

    Raises HfgenError: invalid id, no such repository or revision, no access, no network, a pickle
    in the repository (before anything is downloaded), a file that arrived other than the Hub lists
    it.
    """
    check_repo_id(repo_id)
    api, retry = HfApi(token=token), Retry()
    with hub_errors(repo_id, api):
        commit = str(retry(lambda: api.model_info(repo_id, revision=revision)).sha)
        listing = retry(lambda: list(api.list_repo_tree(repo_id, recursive=True, revision=commit)))
        names = [entry.path for entry in listing if isinstance(entry, RepoFile)]
        refuse_pickles(names, repo_id)
        folder = Path(retry(lambda: snapshot_download(repo_id, revision=commit, token=token)))
        wrong = differences({name: folder / name for name in names}, listing)
        if (
            wrong
        ):  # huggingface_hub compares sizes only, and would keep the broken file in its cache
            snapshot_download(repo_id, revision=commit, token=token, force_download=True)
            wrong = differences({name: folder / name for name in names}, listing)
    if wrong:
        raise HfgenError(f"{repo_id}: arrived broken twice: {'; '.join(wrong[:3])}")
    return folder


def locate(
    path_or_id: str | Path, *, revision: str | None = None, token: str | bool | None = None
) -> Path:
    """The folder itself, or a verified snapshot of the Hub repository. Raises HfgenError: as
    ``fetch``; a folder that is missing."""
    path = Path(path_or_id)
    if path.is_dir():
        return path
    return fetch(meant_id(path_or_id), revision=revision, token=token)


_OF_THE_RUN = ("recipe.yaml", "metrics.json", "metrics.jsonl", "environment.json", "README.md")


def fetch_run(
    repo_id: str, folder: Path, *, revision: str | None = None, token: str | None = None
) -> Path:
    """Make ``folder`` a run again from its repository, so that it goes on here: recipe, numbers,
    checkpoint, pipeline.

    Raises HfgenError, and then nothing was written: as ``fetch``; the folder is not empty; the
    repository holds no recipe or no training checkpoint.
    """
    if folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise HfgenError(
            f"output_dir: {folder} is not empty, so the run of {repo_id} cannot go there; give "
            f"--output_dir OTHER, or go on with what it holds: hfgen train {folder} --resume latest"
        )
    snapshot = fetch(repo_id, revision=revision, token=token)
    if not (snapshot / "recipe.yaml").is_file() or newest_checkpoint(snapshot) is None:
        raise HfgenError(
            f"{repo_id}: holds no training checkpoint, so there is nothing to resume; it is pushed "
            f"by hub.strategy: checkpoint or --checkpoint. From its weights: hfgen train {repo_id}"
        )
    aside = folder.with_name(f".fetching-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    for path in sorted(path for path in snapshot.rglob("*") if path.is_file()):
        name = path.relative_to(snapshot).as_posix()
        if name in _OF_THE_RUN or name.startswith(("checkpoints/", "samples/")):
            _copy(path, aside / name)
        elif not name.startswith("."):
            _copy(path, aside / "pipeline" / name)
    checkpoint = newest_checkpoint(aside)
    assert checkpoint is not None
    unpack_states(checkpoint)
    if folder.exists():
        folder.rmdir()
    os.replace(aside, folder)
    return folder


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())
