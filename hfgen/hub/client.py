"""Talking to the Hub: what may be tried again, and each refusal as one line."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from hfgen.errors import HfgenError

Result = TypeVar("Result")

PASSING_STATUS = (408, 429, 500, 502, 503, 504)
LOST_CONNECTION = (
    *(httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError),
    ConnectionError,  # hf_xet's, for a lost connection and for any status alike
)


class HubUnavailable(HfgenError):
    """The Hub could not be reached, or kept failing: the same call may succeed later."""


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Exponential back-off: `attempts` tries, `first_wait` seconds after the first, doubled up to
    `longest_wait`.
    """

    attempts: int = 5
    first_wait: float = 1.0
    longest_wait: float = 30.0

    def __call__(self, call: Callable[[], Result]) -> Result:
        """The result of `call`, tried again on lost connections and passing statuses (408, 429,
        5xx).
        """
        wait = self.first_wait
        for _ in range(self.attempts - 1):
            try:
                return call()
            except Exception as error:
                if not is_passing(error):
                    raise
                time.sleep(max(wait, _asked_wait(error)))
            wait = min(2 * wait, self.longest_wait)
        return call()


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in PASSING_STATUS
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # of an upload thread
        return is_passing(error.__cause__)
    return isinstance(error, LOST_CONNECTION) and "HTTP status client error" not in str(error)


def _asked_wait(error: BaseException) -> float:
    """Seconds of a Retry-After header; 0 without one."""
    text = (
        error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    )
    return float(text) if text.isdigit() else 0.0


def check_repo_id(repo_id: str) -> str:
    """`repo_id` itself, when it reads "user/name"; else HfgenError."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HfgenError(f"Hub id {repo_id!r} is not valid: {_one_line(error)}") from None
    if repo_id.count("/") != 1:
        raise HfgenError(f"Hub id {repo_id!r} is not valid: give 'user/name'")
    return repo_id


def check_account(repo_id: str, token: str | None = None, *, create_pr: bool = False) -> None:
    """HfgenError where the id is not valid, there is no token, the Hub refuses it, or the name is
    another account's (to whom a pull request may be proposed): asked before work is done that would
    be for nothing.
    """
    check_repo_id(repo_id)
    api = HfApi(token=token)
    with hub_errors(repo_id, api):
        user = Retry()(api.whoami)
    names = [user["name"], *(group["name"] for group in user.get("orgs", []))]
    if not create_pr and repo_id.split("/")[0] not in names:
        raise another_account(repo_id, user["name"])


def another_account(repo_id: str, user: str) -> HfgenError:
    """Of a name under which ``user`` may make no repository."""
    owner, name = repo_id.split("/")
    return HfgenError(
        f"{repo_id}: {owner!r} is another account (the token is {user!r}'s); push to "
        f"'{user}/{name}'"
    )


def meant_id(path_or_id: object) -> str:
    """The Hub id that is meant by something that is no folder here; HfgenError where it is a file,
    a path, or no id.
    """
    path = Path(str(path_or_id))
    if path.exists():
        raise HfgenError(f"{path}: a file; give the folder of a run or a pipeline, or a Hub id")
    local = path.is_absolute() or path.parent.is_dir() or len(path.parts) > 2
    if local or str(path_or_id).startswith((".", "runs/")):
        raise HfgenError(f"{path}: no such folder (and no Hub id, which would be 'user/name')")
    return check_repo_id(str(path_or_id))


@contextmanager
def hub_errors(what: str, api: HfApi | None = None) -> Iterator[None]:
    """Turn what `huggingface_hub` raises inside the block into one HfgenError that names `what` (a
    Hub id).
    """
    try:
        yield
    except HfgenError:
        raise
    except Exception as error:
        translated = explain(error, what, api.endpoint if api else constants.ENDPOINT)
        if translated is None:
            raise
        raise translated from error


def explain(error: BaseException, what: str, endpoint: str) -> HfgenError | None:
    """The one line for an error of `huggingface_hub`; None when it is not one."""
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        return explain(error.__cause__, what, endpoint)
    if isinstance(error, LocalTokenNotFoundError):
        return HfgenError("no Hugging Face token: run `hf auth login`, or set HF_TOKEN")
    if isinstance(error, HFValidationError):
        return HfgenError(f"Hub id {what!r} is not valid: {_one_line(error)}")
    if isinstance(error, OfflineModeIsEnabled):
        return HubUnavailable(
            f"{what}: HF_HUB_OFFLINE is set; unset it, or use a downloaded folder"
        )
    if isinstance(error, LocalEntryNotFoundError):
        cause = error.__cause__
        if cause is not None and (told := explain(cause, what, endpoint)) is not None:
            return told
        return HubUnavailable(f"{what}: cannot reach {endpoint}, and it is not in the local cache")
    if isinstance(error, LOST_CONNECTION):
        return HubUnavailable(f"{what}: no connection to {endpoint} ({_one_line(error)})")
    if isinstance(error, HfHubHTTPError):
        return _explain_status(error, what, endpoint)
    if isinstance(error, ValueError) and "Invalid metadata in README.md" in str(error):
        return HfgenError(f"{what}: the card is refused: {_one_line(error)}")
    return None


def _explain_status(error: HfHubHTTPError, what: str, endpoint: str) -> HfgenError:
    status = error.response.status_code
    said = error.server_message or f"HTTP {status}"
    if isinstance(error, GatedRepoError):
        return HfgenError(f"{what}: gated; ask for access at {endpoint}/{what}")
    if isinstance(error, RevisionNotFoundError):
        return HfgenError(f"{what}: no such revision; see {endpoint}/{what}/tree/main")
    if isinstance(error, RepositoryNotFoundError):
        return HfgenError(
            f"{what}: no such repository, or it is private and the token may not read it"
        )
    if isinstance(error, EntryNotFoundError):
        return HfgenError(f"{what}: no such file on the Hub ({_one_line(said)})")
    if status == 401:
        return HfgenError(
            f"{what}: the token is refused (401): run `hf auth login` with a valid one"
        )
    if status == 403:
        return HfgenError(
            f"{what}: the token may not write there (403), but may propose it with --create-pr: "
            f"{_one_line(said)}"
        )
    if status in (409, 412):
        return HfgenError(f"{what}: changed by somebody else meanwhile ({status}); push again")
    if status in PASSING_STATUS:
        return HubUnavailable(f"{what}: {endpoint} keeps answering {status} ({_one_line(said)})")
    return HfgenError(f"{what}: refused with status {status} ({_one_line(said)})")


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
