"""What ``data.path`` is: a bundled set, something on this disk, or an id on the Hub."""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hfgen.data import bundled
from hfgen.errors import HfgenError

logger = logging.getLogger(__name__)

GENERATED = ("gaussian-grid", "sprites", "stacked-mnist")
IMAGE_SUFFIXES = frozenset(
    ".png .apng .jpg .jpeg .jpe .jfif .webp .gif .bmp .dib .tif .tiff .ppm .pgm .pbm .pnm .tga "
    ".jp2 .j2k .ico".split()
)
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Location:
    """Where a set of images is.

    Attributes:
        kind: bundled, imagefolder, parquet, webdataset, saved or hub.
        path: a folder or file, a bundled name, or a Hub id.
        identity: hash of the names, sizes and times of its files; None on the Hub, whose revision
            tells.
    """

    kind: str
    path: str
    identity: str | None


def locate(path: str) -> Location:
    """Find out what ``path`` is; HfgenError, with near names, where it is nothing."""
    if path in bundled.NAMES:
        if Path(path).exists():
            logger.warning(
                "data.path %r is the bundled data set; write './%s' for the folder", path, path
            )
        return Location("bundled", path, _identity(bundled.files(path).values()))
    local = Path(path).expanduser()
    if local.exists():
        files = [local] if local.is_file() else sorted(_files(local))
        return Location(_kind(path, local, files), str(local.resolve()), _identity(files))
    if not _HUB_ID.fullmatch(path) or path.startswith("."):
        raise HfgenError(f"data.path: there is no {path!r}{_near(path, local)}")
    return Location("hub", path, None)


def _files(folder: Path) -> Iterator[Path]:
    """All files below ``folder``, without hidden ones (as `datasets` sees it)."""
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        yield from (Path(root, name) for name in names if not name.startswith("."))


def _kind(path: str, local: Path, files: list[Path]) -> str:
    if not files:
        raise HfgenError(f"data.path: folder {path!r} is empty")
    suffixes = Counter(file.suffix.lower() for file in files)
    parquet = [
        file for file in files if file.suffix.lower() == ".parquet" and file.stem != "metadata"
    ]
    if local.is_dir() and any(
        (local / name).exists() for name in ("dataset_dict.json", "state.json")
    ):
        return "saved"
    if parquet:
        return "parquet"
    if suffixes[".tar"]:
        return "webdataset"
    if local.is_dir() and IMAGE_SUFFIXES & suffixes.keys():
        return "imagefolder"
    found = ", ".join(
        f"{count} {suffix or 'without suffix'}" for suffix, count in suffixes.most_common(5)
    )
    raise HfgenError(
        f"data.path: no images in {path!r} (found {found}); valid: a folder of "
        "images (.png, .jpg, .webp, ...), parquet or webdataset (.tar) files, or a saved data set"
    )


def _identity(files) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        stat = file.stat()
        digest.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def near_names(path: str) -> str:
    """`` (did you mean ...?)``: bundled names and files that are near; may be empty."""
    return _near(path, Path(path).expanduser())


def _near(path: str, local: Path) -> str:
    parent = local.parent
    there = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
    near = [str(parent / name) for name in difflib.get_close_matches(local.name, there, n=3)]
    if "/" not in path:
        near = difflib.get_close_matches(path, [*bundled.NAMES, *GENERATED], n=2) + near
    return f" (did you mean {' or '.join(repr(name) for name in near)}?)" if near else ""
