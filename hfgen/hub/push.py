"""Pushing a run or a pipeline: everything is checked here first, then it is one commit."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi

from hfgen.hub.card import write_card
from hfgen.hub.checkpoint import packed_checkpoint
from hfgen.hub.client import Retry, check_repo_id, hub_errors
from hfgen.hub.commit import Commit, Pushed, prepare
from hfgen.hub.facts import tensor_shapes
from hfgen.hub.folder import card_metadata, check_code, code_files, collect


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    token: str | None = None,
    message: str | None = None,
    checkpoint: bool = False,
    retry: Retry = Retry(),  # noqa: B008 (frozen)
) -> Pushed:
    """Share a run folder or a saved pipeline as ``repo_id`` ("user/name").

    Args:
        folder: ``runs/NAME`` (pipeline, recipe, metrics and pictures go) or a folder of
            ``save_pretrained``.
        private: create the repository as private; an existing one keeps what it is.
        create_pr: open a pull request instead of committing to the branch.
        revision: branch to commit to, made from main when it does not exist; default main.
        token: default the one of ``hf auth login`` or ``HF_TOKEN``.
        checkpoint: the run's newest training checkpoint goes along.

    Raises HfgenError, and then the branch is what it was: not a pipeline, a pickle, code that
    cannot load alone, broken YAML, no or wrong token, somebody else's name, no network, a commit by
    somebody else meanwhile.
    """
    check_repo_id(repo_id)
    folder = Path(folder)
    write_card(folder, repo_id=repo_id)
    with packed_checkpoint(folder, checkpoint) as extra:
        files = checked_files(folder) | extra
        api = HfApi(token=token)
        with hub_errors(repo_id, api):
            branch = None if create_pr else revision
            prepare(api, repo_id, private=private, retry=retry, branch=branch)
            files["README.md"] = _card(api, folder, repo_id, revision, retry)
            job = Commit(
                api,
                repo_id,
                files,
                revision or "main",
                create_pr,
                message or f"Push {folder.name}",
            )
            pushed = retry(job)
            retry(lambda: job.check(pushed))
    return pushed


def checked_files(folder: str | Path) -> dict[str, Path]:
    """Path in the repository -> file of what would be pushed. Raises HfgenError: as ``push`` where
    the folder is what is wrong."""
    shared = collect(folder)
    check_code(shared.pipeline, code_files(shared.files))
    for name, path in shared.files.items():
        if name.endswith(".safetensors"):
            tensor_shapes(path)
    return dict(shared.files)


def _card(api: HfApi, folder: Path, repo_id: str, revision: str | None, retry: Retry) -> Path:
    """The card, refreshed, with what was written by hand on the Hub when nothing was written by
    hand here.
    """
    remote = None
    if retry(lambda: api.file_exists(repo_id, "README.md", revision=revision)):
        path = retry(lambda: api.hf_hub_download(repo_id, "README.md", revision=revision))
        remote = Path(path).read_text(encoding="utf-8")
        card_metadata(remote, f"{repo_id}: README.md on the Hub")
    return write_card(folder, repo_id=repo_id, remote=remote)
