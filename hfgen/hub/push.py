"""Pushing a run or a pipeline: everything is checked here first, then one commit, then the remote
is compared.

Weights are uploaded before the commit that names them, and the Hub takes a commit whole or not at
all, so a push that is killed or cut leaves the branch where it was; the next one uploads only what
is missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile, RepoFolder

from hfgen.errors import HfgenError
from hfgen.hub.card import write_card
from hfgen.hub.checkpoint import packed_checkpoint
from hfgen.hub.client import Retry, check_repo_id, hub_errors
from hfgen.hub.digests import differences
from hfgen.hub.facts import tensor_shapes
from hfgen.hub.folder import CARD_PICTURES, HASHED_CODE, check_code, code_files, collect

_CONFIGS = (
    "config.json",
    "scheduler_config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
)


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What a push did. ``url``: the commit, or the pull request; ``revision``: where it can be
    loaded from.
    """

    repo_id: str
    commit: str
    revision: str
    url: str
    files: tuple[str, ...]


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
    cannot load alone, broken
    YAML, no or wrong token, somebody else's name, no network, a commit by somebody else meanwhile.
    """
    check_repo_id(repo_id)
    with packed_checkpoint(Path(folder), checkpoint) as extra:
        files = _checked_files(Path(folder)) | extra
        write_card(folder, repo_id=repo_id)
        api = HfApi(token=token)
        with hub_errors(repo_id, api):
            _prepare(api, repo_id, private, None if create_pr else revision, retry)
            files["README.md"] = _card(api, Path(folder), repo_id, revision, retry)
            job = _Commit(
                api,
                repo_id,
                files,
                revision or "main",
                create_pr,
                message or f"Push {Path(folder).name}",
            )
            pushed = retry(job)
            _verify(api, pushed, files, retry)
    return pushed


def _checked_files(folder: Path) -> dict[str, Path]:
    shared = collect(folder)
    check_code(shared.pipeline, code_files(shared.files))
    for name, path in shared.files.items():
        if name.endswith(".safetensors"):
            tensor_shapes(path)
    return dict(shared.files)


def _prepare(api: HfApi, repo_id: str, private: bool, branch: str | None, retry: Retry) -> None:
    user = retry(api.whoami)["name"]
    owner = repo_id.split("/")[0]
    try:
        retry(lambda: api.create_repo(repo_id, private=private or None, exist_ok=True))
    except HfHubHTTPError as error:
        if error.response.status_code != 403:
            raise
        raise HfgenError(
            f"{repo_id}: {owner!r} is another account (the token is {user!r}'s); push to "
            f"'{user}/{repo_id.split('/')[1]}'"
        ) from None
    if branch not in (None, "main"):
        retry(lambda: api.create_branch(repo_id, branch=str(branch), exist_ok=True))


def _card(api: HfApi, folder: Path, repo_id: str, revision: str | None, retry: Retry) -> Path:
    """The card, refreshed, with what was written by hand on the Hub when nothing was written by
    hand here.
    """
    remote = None
    if retry(lambda: api.file_exists(repo_id, "README.md", revision=revision)):
        path = retry(lambda: api.hf_hub_download(repo_id, "README.md", revision=revision))
        remote = Path(path).read_text(encoding="utf-8")
    return write_card(folder, repo_id=repo_id, remote=remote)


@dataclass
class _Commit:
    """One commit; called again after a lost answer it finds what it already did instead of doing it
    twice.
    """

    api: HfApi
    repo_id: str
    files: dict[str, Path]
    branch: str
    create_pr: bool
    message: str
    tried: bool = False

    def __call__(self) -> Pushed:
        if self.tried and self.create_pr and (done := self._open_pull_request()):
            return done
        self.tried = True
        head = self.api.model_info(self.repo_id, revision=self.branch).sha
        listing = list(self.api.list_repo_tree(self.repo_id, recursive=True, revision=head))
        if (
            not self.create_pr
            and not stale(self.files, listing)
            and not differences(self.files, listing)
        ):
            return self._pushed(
                str(head), f"{self.api.endpoint}/{self.repo_id}/commit/{head}", self.branch
            )
        info: CommitInfo = self.api.create_commit(
            self.repo_id,
            operations=self._operations(listing),
            commit_message=self.message,
            revision=self.branch,
            create_pr=self.create_pr,
            parent_commit=head,
        )
        where = info.pr_revision if self.create_pr else self.branch
        return self._pushed(info.oid, str(info.pr_url or info.commit_url), str(where))

    def _operations(
        self, listing: list[RepoFile | RepoFolder]
    ) -> list[CommitOperationAdd | CommitOperationDelete]:
        added = [CommitOperationAdd(name, path) for name, path in sorted(self.files.items())]
        return [*added, *(CommitOperationDelete(name) for name in stale(self.files, listing))]

    def _open_pull_request(self) -> Pushed | None:
        author = self.api.whoami()["name"]
        for found in self.api.get_repo_discussions(
            self.repo_id, author=author, discussion_type="pull_request"
        ):
            if found.title != self.message or found.status != "open":
                continue
            ref = f"refs/pr/{found.num}"
            listing = self.api.list_repo_tree(self.repo_id, recursive=True, revision=ref)
            if not differences(self.files, listing):
                return self._pushed(
                    str(self.api.model_info(self.repo_id, revision=ref).sha), found.url, ref
                )
        return None

    def _pushed(self, commit: str, url: str, revision: str) -> Pushed:
        return Pushed(
            repo_id=self.repo_id,
            commit=commit,
            revision=revision,
            url=url,
            files=tuple(sorted(self.files)),
        )


def stale(files: Iterable[str], listing: Iterable[RepoFile | RepoFolder]) -> list[str]:
    """Remote files that an earlier push left and this one replaces: components, hashed code, the
    card's pictures.

    Whatever else a repository holds (a licence, notes, other pictures) is left alone.
    """
    remote = [entry.path for entry in listing if isinstance(entry, RepoFile)]
    models = {
        path.split("/")[0] for path in remote if path.count("/") == 1 and path.endswith(_CONFIGS)
    }
    ours = models | {"checkpoints"}
    shown = {f"samples/{name}" for name in CARD_PICTURES}

    def replaced(path: str) -> bool:
        inside = "/" in path and path.split("/")[0] in ours
        return inside or bool(HASHED_CODE.match(path)) or path.rsplit(".", 1)[0] in shown

    return sorted(path for path in set(remote) - set(files) if replaced(path))


def _verify(api: HfApi, pushed: Pushed, files: dict[str, Path], retry: Retry) -> None:
    """Compare what the Hub now holds with the files here; HfgenError names what differs."""
    listing = retry(
        lambda: list(api.list_repo_tree(pushed.repo_id, recursive=True, revision=pushed.commit))
    )
    wrong = differences(files, listing)
    if wrong:
        raise HfgenError(
            f"{pushed.repo_id}: the Hub holds other content than was pushed at "
            f"{pushed.commit[:12]}: {'; '.join(wrong[:3])}"
        )
