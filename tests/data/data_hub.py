"""A Hub on 127.0.0.1 that serves data sets: the routes that `datasets` reads from.

The clients are the real libraries in a subprocess, with `HF_ENDPOINT` set (it is read at import).
"""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

SHA = "0123456789abcdef0123456789abcdef01234567"


class DataHub:
    """Serves ``files`` (name -> bytes) as ``user/open``, and with ``token`` as ``user/gated``."""

    def __init__(self, files: dict[str, bytes], token: str):
        self.files = files
        self.token = token
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> DataHub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def entries(self) -> list[dict]:
        return [
            {"type": "file", "path": path, "size": len(data), "oid": etag(data)}
            for path, data in self.files.items()
        ]


def etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: DataHub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer()

    def _answer(self) -> None:
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        api = parts[0] == "api"
        parts = parts[1:] if api else parts
        repo, rest = "/".join(parts[1:3]), parts[3:]
        if parts[0] != "datasets" or repo not in ("user/open", "user/gated"):
            return self._refuse(404, "RepoNotFound", "Repository not found")
        allowed = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if (
            repo == "user/gated"
            and not allowed
            and (rest[:1] == ["resolve"] or rest[:1] == ["tree"])
        ):
            return self._refuse(401, "GatedRepo", "Access to dataset user/gated is restricted")
        if api:
            return self._api(repo, rest)
        return self._file("/".join(rest[2:]))

    def _api(self, repo: str, rest: list[str]) -> None:
        if rest[:1] in (["tree"], ["paths-info"]):
            return self._json(self.hub.entries())
        siblings = [{"rfilename": path} for path in self.hub.files]
        info = {"id": repo, "sha": SHA, "siblings": siblings, "private": False, "tags": []}
        return self._json(info | {"gated": "manual" if repo == "user/gated" else False})

    def _file(self, path: str) -> None:
        if path not in self.hub.files:
            return self._refuse(404, "EntryNotFound", f"no {path}")
        data = self.hub.files[path]
        start, stop = 0, len(data)
        wanted = self.headers.get("Range")
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last or len(data) - 1) + 1, len(data))
        self.send_response(206 if wanted else 200)
        self.send_header("X-Repo-Commit", SHA)
        self.send_header("ETag", f'"{etag(data)}"')
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self._body(data[start:stop])

    def _json(self, value: object) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self._body(json.dumps(value).encode())

    def _refuse(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self._body(b"")

    def _body(self, data: bytes) -> None:
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
