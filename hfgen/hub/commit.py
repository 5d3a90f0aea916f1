"""One commit on the Hub, and the certainty that it holds what was meant.

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
from hfgen.hub.client import Retry, another_account
from hfgen.hub.digests import differences
from hfgen.hub.folder import CARD_PICTURES, HASHED_CODE

_MARKS = (
    "config.json",
    "model_index.json",
    "scheduler_config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
)
"""A folder that holds one of these is a component, or a whole pipeline."""


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What a push did. ``url``: the commit, or the pull request; ``revision``: where it can be
    loaded from; ``changed``: False where the branch held these very files before, so that nothing
    was committed or proposed.
    """

    repo_id: str
    commit: str
    revision: str
    url: str
    files: tuple[str, ...]
    changed: bool = True


def prepare(
    api: HfApi,
    repo_id: str,
    *,
    private: bool,
    retry: Retry,
    branch: str | None = None,
    repo_type: str = "model",
) -> None:
    """Make the repository, and the branch, where they do not exist. Raises HfgenError: the name
    belongs to another account.
    """
    user = retry(api.whoami)["name"]
    sdk = "gradio" if repo_type == "space" else None

    def create() -> None:
        api.create_repo(
            repo_id, private=private or None, exist_ok=True, repo_type=repo_type, space_sdk=sdk
        )

    try:
        retry(create)
    except HfHubHTTPError as error:
        if error.response.status_code != 403:
            raise
        raise another_account(repo_id, user) from None
    if branch not in (None, "main"):
        retry(lambda: api.create_branch(repo_id, branch=str(branch), exist_ok=True))


@dataclass
class Commit:
    """One commit; called again after a lost answer it finds what it already did instead of doing it
    twice.
    """

    api: HfApi
    repo_id: str
    files: dict[str, Path]
    branch: str
    create_pr: bool
    message: str
    repo_type: str = "model"
    tried: bool = False

    def __call__(self) -> Pushed:
        again, self.tried = self.tried, True
        if again and self.create_pr and (done := self._open_pull_request()):
            return done
        head = self._head(self.branch)
        listing = self._listing(head)
        if not (stale(self.files, listing) or differences(self.files, listing)):
            page = f"{self._page}/commit/{head}"
            return self._pushed(head, page, self.branch, changed=again)
        info: CommitInfo = self.api.create_commit(
            self.repo_id,
            operations=self._operations(listing),
            commit_message=self.message,
            create_pr=self.create_pr,
            parent_commit=head,
            revision=self.branch,
            repo_type=self.repo_type,
        )
        landed = info.pr_revision if self.create_pr else self.branch
        return self._pushed(info.oid, str(info.pr_url or info.commit_url), str(landed))

    def _head(self, branch: str) -> str:
        info = self.api.repo_info(self.repo_id, revision=branch, repo_type=self.repo_type)
        return str(info.sha)

    @property
    def _page(self) -> str:
        prefix = "" if self.repo_type == "model" else f"{self.repo_type}s/"
        return f"{self.api.endpoint}/{prefix}{self.repo_id}"

    def _listing(self, revision: str) -> list[RepoFile | RepoFolder]:
        return list(
            self.api.list_repo_tree(
                self.repo_id, recursive=True, revision=revision, repo_type=self.repo_type
            )
        )

    def check(self, pushed: Pushed) -> None:
        """Compare what the Hub now holds with the files here; HfgenError names what differs."""
        wrong = differences(self.files, self._listing(pushed.commit))
        if wrong:
            raise HfgenError(
                f"{pushed.repo_id}: the Hub holds other content than was pushed at "
                f"{pushed.commit[:12]}: {'; '.join(wrong[:3])}"
            )

    def _operations(
        self, listing: list[RepoFile | RepoFolder]
    ) -> list[CommitOperationAdd | CommitOperationDelete]:
        added = [CommitOperationAdd(name, path) for name, path in sorted(self.files.items())]
        return [*added, *(CommitOperationDelete(name) for name in stale(self.files, listing))]

    def _open_pull_request(self) -> Pushed | None:
        """The pull request of ours that already holds these files."""
        author = self.api.whoami()["name"]
        found = self.api.get_repo_discussions(
            self.repo_id, author=author, discussion_type="pull_request", repo_type=self.repo_type
        )
        for request in found:
            ref = f"refs/pr/{request.num}"
            if request.status != "open" or differences(self.files, self._listing(ref)):
                continue
            return self._pushed(self._head(ref), request.url, ref)
        return None

    def _pushed(self, commit: str, url: str, revision: str, changed: bool = True) -> Pushed:
        return Pushed(
            repo_id=self.repo_id,
            commit=commit,
            revision=revision,
            url=url,
            files=tuple(sorted(self.files)),
            changed=changed,
        )


def stale(files: Iterable[str], listing: Iterable[RepoFile | RepoFolder]) -> list[str]:
    """Remote files that an earlier push left and this one replaces: components, hashed code, the
    card's pictures.

    Whatever else a repository holds (a licence, notes, other pictures) is left alone.
    """
    remote = [entry.path for entry in listing if isinstance(entry, RepoFile)]
    models = {
        path.split("/")[0] for path in remote if path.count("/") == 1 and path.endswith(_MARKS)
    }
    ours = models | {"checkpoints"}
    shown = {f"samples/{name}" for name in CARD_PICTURES}

    def replaced(path: str) -> bool:
        inside = "/" in path and path.split("/")[0] in ours
        return inside or bool(HASHED_CODE.match(path)) or path.rsplit(".", 1)[0] in shown

    return sorted(path for path in set(remote) - set(files) if replaced(path))
