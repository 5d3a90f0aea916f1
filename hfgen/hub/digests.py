"""Comparing files on disk with what the Hub lists: size and digest of each one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from huggingface_hub.hf_api import RepoFile, RepoFolder

_BLOCK = 1 << 20


def sha256(path: Path) -> str:
    """Hex digest of the content, as LFS objects are named."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def git_blob(path: Path) -> str:
    """Hex digest as git names a file: sha1 of "blob <size>\\0" and the content."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def differences(local: Mapping[str, Path], remote: Iterable[RepoFile | RepoFolder]) -> list[str]:
    """What of ``local`` (path in the repository -> file) the listing lacks or holds otherwise, one
    text per file.
    """
    listed = {entry.path: entry for entry in remote if isinstance(entry, RepoFile)}
    found = []
    for name, path in sorted(local.items()):
        entry = listed.get(name)
        if entry is None:
            found.append(f"{name} is missing")
        elif entry.size != path.stat().st_size:
            found.append(f"{name} has {entry.size} bytes instead of {path.stat().st_size}")
        elif (digest := _digest_like(entry, path)) != _listed_digest(entry):
            found.append(f"{name} has digest {_listed_digest(entry)[:12]} instead of {digest[:12]}")
    return found


def _listed_digest(entry: RepoFile) -> str:
    return entry.lfs.sha256 if entry.lfs else entry.blob_id


def _digest_like(entry: RepoFile, path: Path) -> str:
    return sha256(path) if entry.lfs else git_blob(path)
