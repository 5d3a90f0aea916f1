"""A Hub on 127.0.0.1: the routes that `huggingface_hub` calls, over a store in memory.

The client is the real library, unmodified, in a subprocess with `HF_ENDPOINT` set (it is read at
import) and `HF_HUB_DISABLE_XET=1`. Commits are atomic, as on the Hub: a commit either names only
blobs that were uploaded whole, or it is refused and the branch stays where it was.
`LoopbackHub.fail` injects what goes wrong on a network.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
import traceback
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import yaml

LFS_SUFFIXES = (".safetensors", ".png", ".bin", ".pt", ".ckpt", ".pkl")


class Refused(Exception):
    """An answer other than success: status, the Hub's error code and a message."""

    def __init__(self, status: int, code: str | None, message: str):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Cut(Exception):
    """The connection is closed without an answer."""


@dataclass
class Commit:
    files: dict[str, bytes]
    parent: str | None
    title: str
    author: str

    @property
    def oid(self) -> str:
        names = [f"{path}:{hashlib.sha256(data).hexdigest()}" for path, data in self.files.items()]
        text = json.dumps([sorted(names), self.parent, self.title])
        return hashlib.sha1(text.encode()).hexdigest()


@dataclass
class Repo:
    owner: str
    private: bool
    kind: str
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)

    def add(self, ref: str, commit: Commit) -> str:
        self.commits[commit.oid] = commit
        self.refs[ref] = commit.oid
        return commit.oid

    def resolve(self, revision: str) -> str:
        oid = self.refs.get(revision, revision)
        if oid not in self.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid

    def pull_requests(self) -> list[int]:
        return sorted(int(ref.split("/")[2]) for ref in self.refs if ref.startswith("refs/pr/"))


@dataclass
class Fault:
    """What happens to the next `times` requests whose "METHOD /path" matches `pattern`.

    action: "status" (answer with `status`), "cut" (read part of the request, close), "cut_after"
    (do the work, close
    before answering), "half" (send half of the answer, close), "corrupt" (same size, other bytes),
    "sha" (a file listing with wrong digests), "wait" (sleep `seconds`, then go on).
    """

    pattern: str
    action: str
    times: int = 1
    status: int = 500
    seconds: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_lfs(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


class LoopbackHub:
    """`with LoopbackHub({"token": "user"}) as hub:` serves at `hub.url` until the block ends."""

    def __init__(self, tokens: dict[str, str]):
        self.tokens = tokens
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.log: list[str] = []
        self.errors: list[
            str
        ] = []  # tracebacks of this server: a test that ends with one has failed
        self.lock = threading.RLock()

    def __enter__(self) -> LoopbackHub:
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = _Server(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    # what a test asks and arranges

    def fail(self, pattern: str, action: str, **how: Any) -> None:
        self.faults.append(Fault(pattern, action, **how))

    def forget(self) -> None:
        """Drop the pending faults and the request log."""
        self.faults.clear()
        self.log.clear()

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, line)) for line in self.log)

    def files(self, repo_id: str, ref: str = "main", kind: str = "model") -> dict[str, bytes]:
        repo = self.repos[f"{kind}s/{repo_id}"]
        return repo.commits[repo.resolve(ref)].files

    def history(self, repo_id: str, ref: str = "main") -> list[str]:
        """Commit titles of a branch, newest first."""
        repo = self.repos[f"models/{repo_id}"]
        oid: str | None = repo.resolve(ref)
        titles = []
        while oid is not None:
            titles.append(repo.commits[oid].title)
            oid = repo.commits[oid].parent
        return titles

    def put(self, repo_id: str, files: dict[str, bytes], private: bool = False) -> str:
        """A repo as a stranger may have written it, without going through the client. Returns the
        commit.
        """
        with self.lock:
            key = f"models/{repo_id}"
            repo = self.repos.setdefault(key, Repo(repo_id.split("/")[0], private, "model"))
            return repo.add("main", Commit(dict(files), repo.refs.get("main"), "put", repo.owner))

    # routes: (method, path pattern) -> a function of the match, the query and the request

    def take_fault(self, line: str) -> Fault | None:
        with self.lock:
            self.log.append(line)
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, line):
                    fault.times -= 1
                    return fault
        return None

    def find(self, kind: str, repo_id: str, user: str | None, write: bool = False) -> Repo:
        repo = self.repos.get(f"{kind}/{repo_id}")
        if repo is None or (repo.private and user != repo.owner):
            raise Refused(401 if user is None else 404, "RepoNotFound", "Repository not found")
        if write and user is None:
            raise Refused(401, None, "Invalid username or password.")
        if write and user != repo.owner:
            raise Refused(403, None, "You don't have the rights to write to this repo")
        return repo


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # many clients at once


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer waits 40 ms for an acknowledgement

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self) -> None:
        url = urlparse(self.path)
        self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
        path, line = unquote(url.path), f"{self.command} {self.path}"
        self.fault = self.hub.take_fault(line)
        try:
            self.body = self.read_body()
            if self.fault and self.fault.action == "wait":
                time.sleep(self.fault.seconds)
            if self.fault and self.fault.action == "status":
                raise Refused(self.fault.status, None, "injected")
            self.route(path)
            if self.fault and self.fault.action == "cut_after":
                raise Cut
            self.flush_reply()
        except Refused as refusal:
            self.refuse(refusal)
        except (Cut, BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        except Exception:
            self.hub.errors.append(traceback.format_exc())
            raise

    def read_body(self) -> bytes:
        length = int(self.headers.get("Content-Length") or 0)
        if self.fault and self.fault.action == "cut":
            self.rfile.read(length // 2)
            raise Cut
        if self.headers.get("Transfer-Encoding") == "chunked":
            return self.read_chunks()
        return self.rfile.read(length)

    def read_chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    @property
    def user(self) -> str | None:
        header = self.headers.get("Authorization", "")
        if not header:
            return None
        user = self.hub.tokens.get(header.removeprefix("Bearer "))
        if user is None:
            raise Refused(401, None, "Invalid credentials in Authorization header")
        return user

    def route(self, path: str) -> None:
        for method, pattern, function in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                with self.hub.lock:
                    function(self, **{k: v for k, v in match.groupdict().items() if v is not None})
                return
        raise Refused(404, None, f"no such route: {self.command} {path}")

    # replies

    def reply(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.pending = (status, data, headers or {"Content-Type": "application/json"})

    def flush_reply(self) -> None:
        status, data, headers = self.pending
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name, text)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault and self.fault.action == "half":
            self.wfile.write(data[: len(data) // 2])
            raise Cut
        self.wfile.write(data)

    def refuse(self, refusal: Refused) -> None:
        extra = self.fault.headers if self.fault else {}
        data = json.dumps({"error": refusal.message, "url": self.hub.url + "/user/x"}).encode()
        self.send_response(refusal.status)
        if refusal.code:
            self.send_header("X-Error-Code", refusal.code)
        for name, text in {"X-Error-Message": refusal.message, **extra}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def whoami(request: _Handler) -> None:
    if request.user is None:
        raise Refused(401, None, "Invalid username or password.")
    request.reply({"type": "user", "name": request.user, "orgs": []})


def create_repo(request: _Handler) -> None:
    asked, user = json.loads(request.body), request.user
    if user is None:
        raise Refused(401, None, "Invalid username or password.")
    owner, kind = asked.get("organization") or user, asked.get("type") or "model"
    if owner != user:
        raise Refused(403, None, f"You don't have the rights to create a model under {owner!r}")
    repo_id = f"{owner}/{asked['name']}"
    url = f"{request.hub.url}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
    if f"{kind}s/{repo_id}" in request.hub.repos:
        request.reply({"url": url, "error": "You already created this repo"}, status=409)
        return
    repo = Repo(owner, asked.get("visibility") == "private" or bool(asked.get("private")), kind)
    repo.add("main", Commit({".gitattributes": b"*.safetensors lfs\n"}, None, "initial", owner))
    request.hub.repos[f"{kind}s/{repo_id}"] = repo
    request.reply({"url": url, "name": repo_id})


def validate_yaml(request: _Handler) -> None:
    text = json.loads(request.body)["content"]
    match = re.match(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", text, re.DOTALL)
    try:
        metadata = yaml.safe_load(match.group(1)) if match else {}
    except yaml.YAMLError as error:
        request.reply({"errors": [{"message": str(error)}]}, status=400)
        return
    known = metadata.get("license") is None or isinstance(metadata["license"], str)
    errors = [] if known else [{"message": '"license" must be a string'}]
    request.reply({"errors": errors, "warnings": []}, status=400 if errors else 200)


def preupload(request: _Handler, kind: str, repo: str, revision: str) -> None:
    pull_request = request.query.get("create_pr") == "1"
    found = request.hub.find(kind, repo, request.user, write=not pull_request)
    files = found.commits[found.resolve(revision)].files
    answer = []
    for asked in json.loads(request.body)["files"]:
        path = asked["path"]
        oid = _remote_oid(path, files[path]) if path in files else None
        mode = "lfs" if is_lfs(path) else "regular"
        answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    request.reply({"files": answer})


def _remote_oid(path: str, data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if is_lfs(path) else git_blob(data)


def lfs_batch(request: _Handler, repo: str, kind: str = "models") -> None:
    found = request.hub.find(kind, repo, request.user)
    prefix = "" if kind == "models" else f"{kind}/"
    objects = []
    for asked in json.loads(request.body)["objects"]:
        entry = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] not in found.blobs:
            href = f"{request.hub.url}/lfs/{prefix}{repo}/{asked['oid']}"
            entry["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
        objects.append(entry)
    request.reply({"transfer": "basic", "objects": objects})


def lfs_put(request: _Handler, repo: str, oid: str, kind: str = "models") -> None:
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise Refused(400, None, "the content does not match its sha256")
    request.hub.repos[f"{kind}/{repo}"].blobs[oid] = request.body
    request.reply({})


def lfs_verify(request: _Handler, repo: str, oid: str, kind: str = "models") -> None:
    asked = json.loads(request.body)
    blob = request.hub.find(kind, repo, request.user).blobs.get(oid)
    if blob is None or len(blob) != asked["size"]:
        raise Refused(404, None, "no such object")
    request.reply({})


def commit(request: _Handler, kind: str, repo: str, revision: str) -> None:
    pull_request = request.query.get("create_pr") == "1"
    user = request.user
    found = request.hub.find(kind, repo, user, write=not pull_request)
    if user is None:
        raise Refused(401, None, "Invalid username or password.")
    parent = found.resolve(revision)
    lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    header = lines[0]["value"]
    if header.get("parentCommit") not in (None, parent):
        raise Refused(412, None, "A commit has happened since. Please refresh and try again.")
    files = _apply(dict(found.commits[parent].files), lines[1:], found)
    number = max(found.pull_requests(), default=0) + 1
    ref = f"refs/pr/{number}" if pull_request else revision
    oid = found.add(ref, Commit(files, parent, header["summary"], user))
    page = f"{request.hub.url}/{'' if kind == 'models' else kind + '/'}{repo}"
    answer: dict[str, Any] = {"commitUrl": f"{page}/commit/{oid}"}
    answer |= {"commitOid": oid, "success": True}
    if pull_request:
        answer["pullRequestUrl"] = f"{page}/discussions/{number}"
    request.reply(answer)


def _apply(files: dict[str, bytes], lines: list[dict], repo: Repo) -> dict[str, bytes]:
    for line in lines:
        value = line["value"]
        path = value["path"]
        if line["key"] == "file":
            files[path] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            if value["oid"] not in repo.blobs:
                raise Refused(400, None, f"the object of {path} was never uploaded")
            files[path] = repo.blobs[value["oid"]]
        elif line["key"] == "deletedFile":
            if files.pop(path, None) is None:
                raise Refused(404, "EntryNotFound", "A file with this name doesn't exist")
        elif line["key"] == "deletedFolder":
            files = {name: data for name, data in files.items() if not name.startswith(path)}
    return files


def create_branch(request: _Handler, kind: str, repo: str, branch: str) -> None:
    found = request.hub.find(kind, repo, request.user, write=True)
    if branch in found.refs:
        raise Refused(409, None, "Reference already exists")
    start = json.loads(request.body or b"{}").get("startingPoint", "main")
    found.refs[branch] = found.resolve(start)
    request.reply({})


def discussions(request: _Handler, kind: str, repo: str) -> None:
    found = request.hub.find(kind, repo, request.user)
    listed = []
    for number in found.pull_requests():
        head = found.commits[found.refs[f"refs/pr/{number}"]]
        listed.append(
            {
                "num": number,
                "repo": {"name": repo, "type": kind.removesuffix("s")},
                "title": head.title,
                "status": "open",
                "isPullRequest": True,
                "author": {"name": head.author},
                "createdAt": "2026-01-01T00:00:00.000Z",
            }
        )
    wanted = request.query.get("author")
    listed = [entry for entry in listed if wanted in (None, entry["author"]["name"])]
    request.reply({"discussions": listed, "start": 0, "count": len(listed)})


def info(request: _Handler, kind: str, repo: str, revision: str = "main") -> None:
    found = request.hub.find(kind, repo, request.user)
    oid = found.resolve(revision)
    siblings = [{"rfilename": path} for path in sorted(found.commits[oid].files)]
    named = {"_id": "0", "id": repo, "modelId": repo, "author": found.owner, "sha": oid}
    counts = {"private": found.private, "downloads": 0, "likes": 0, "tags": []}
    request.reply(named | counts | {"siblings": siblings})


def tree(request: _Handler, kind: str, repo: str, revision: str, folder: str = "") -> None:
    found = request.hub.find(kind, repo, request.user)
    files = found.commits[found.resolve(revision)].files
    wrong = bool(request.fault and request.fault.action == "sha")
    entries = []
    for path, data in sorted(files.items()):
        if not path.startswith(folder):
            continue
        seen = b"something else" if wrong else data
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data)}
        entry["oid"] = git_blob(seen)
        if is_lfs(path):
            oid = hashlib.sha256(seen).hexdigest()
            entry["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 134}
        entries.append(entry)
    request.reply(entries)


def resolve(request: _Handler, repo: str, revision: str, path: str, kind: str = "models") -> None:
    found = request.hub.find(kind, repo, request.user)
    oid = found.resolve(revision)
    data = found.commits[oid].files.get(path)
    if data is None:
        raise Refused(404, "EntryNotFound", "Entry not found")
    etag = _remote_oid(path, data)
    headers = {"X-Repo-Commit": oid, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
    if is_lfs(path):
        headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
    if request.fault and request.fault.action == "corrupt":
        data = bytes(byte ^ 1 for byte in data)
    span = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if span and request.command == "GET":
        start = int(span.group(1))
        end = int(span.group(2) or len(data) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        request.reply(data[start : end + 1], status=206, headers=headers)
        return
    headers["Content-Length"] = str(len(data))
    request.reply(data, headers=headers)


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_API = rf"/api/(?P<kind>models|spaces|datasets)/{_REPO}"
_KIND = r"(?:(?P<kind>spaces|datasets)/)?"
ROUTES = [
    ("GET", r"/api/whoami-v2", whoami),
    ("POST", r"/api/repos/create", create_repo),
    ("POST", r"/api/validate-yaml", validate_yaml),
    ("POST", rf"{_API}/preupload/(?P<revision>.+)", preupload),
    ("POST", rf"/{_KIND}{_REPO}\.git/info/lfs/objects/batch", lfs_batch),
    ("PUT", rf"/lfs/{_KIND}{_REPO}/(?P<oid>\w{{64}})", lfs_put),
    ("POST", rf"/lfs/{_KIND}{_REPO}/(?P<oid>\w{{64}})/verify", lfs_verify),
    ("POST", rf"{_API}/commit/(?P<revision>.+)", commit),
    ("POST", rf"{_API}/branch/(?P<branch>.+)", create_branch),
    ("GET", rf"{_API}/discussions", discussions),
    ("GET", rf"{_API}/revision/(?P<revision>.+)", info),
    ("GET", rf"{_API}/tree/(?P<revision>refs/pr/\d+|[^/]+)(?:/(?P<folder>.+))?", tree),
    ("GET", _API, info),
    ("GET HEAD", rf"/{_REPO}/resolve/(?P<revision>refs/pr/\d+|[^/]+)/(?P<path>.+)", resolve),
]
