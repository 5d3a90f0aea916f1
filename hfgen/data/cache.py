"""Decode once: a folder of raw uint8 pixels, labels and captions, whole or absent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from hfgen.data.source import DataSpec, IndexedSource, Indices, no_captions
from hfgen.errors import HfgenError

META, IMAGES, LABELS = "meta.json", "images.u8", "labels.npy"
CAPTIONS, CAPTION_ENDS = "captions.utf8", "caption_ends.npy"


class CachedSource(IndexedSource):
    """A folder written by ``build``, memory-mapped: any batch is one gather of raw bytes.

    Args:
        folder: the finished cache.
        spec: made by ``load_source`` from the folder's ``meta``.
    """

    def __init__(self, folder: Path, spec: DataSpec):
        self._spec = spec
        shape = (-1, spec.channels, spec.height, spec.width)
        self._images = np.memmap(folder / IMAGES, np.uint8, "r").reshape(shape)
        has_labels = spec.class_names is not None
        self._labels = torch.from_numpy(np.load(folder / LABELS)) if has_labels else None
        self._captions = _Captions(folder) if spec.has_captions else None

    @property
    def spec(self) -> DataSpec:
        return self._spec

    def __len__(self) -> int:
        return len(self._images)

    def pixels(self, indices: Indices) -> Tensor:
        return torch.from_numpy(self._images[np.asarray(indices, dtype=np.int64)])

    def labels(self, indices: Indices) -> Tensor | None:
        if self._labels is None:
            return None
        return self._labels[torch.as_tensor(indices, dtype=torch.int64)]

    def captions(self, indices: Indices) -> list[str]:
        if self._captions is None:
            raise no_captions(self._spec)
        return [self._captions[int(i)] for i in indices]


class _Captions:
    """Texts, each with a line feed behind it, in one file; and where each ends."""

    def __init__(self, folder: Path):
        self._text = np.memmap(folder / CAPTIONS, np.uint8, "r")
        self._ends = np.load(folder / CAPTION_ENDS)

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return self._text[start : self._ends[index] - 1].tobytes().decode()


@dataclass(frozen=True)
class Meta:
    """What the finished folder says of itself."""

    num_images: int
    channels: int
    height: int
    width: int
    class_names: tuple[str, ...] | None
    has_captions: bool
    fingerprint: str
    corrupt: tuple[str, ...]
    credit: str | None


def write_meta(folder: Path, meta: Meta) -> None:
    (folder / META).write_text(json.dumps(asdict(meta), indent=1), encoding="utf-8")


def read_meta(folder: Path) -> Meta:
    fields = json.loads((folder / META).read_text(encoding="utf-8"))
    names = fields["class_names"]
    fields["class_names"] = None if names is None else tuple(names)
    return Meta(**fields | {"corrupt": tuple(fields["corrupt"])})


def cache_root(cache_dir: str | None) -> Path:
    """Where the caches are: ``cache_dir``, or ``hfgen`` in the Hugging Face home folder."""
    from huggingface_hub.constants import HF_HOME

    return Path(cache_dir).expanduser() if cache_dir is not None else Path(HF_HOME) / "hfgen"


def finished(root: Path, key: str, build: Callable[[Path], None]) -> Path:
    """The folder ``root/key``, made by ``build(folder)`` where it is not there yet.

    It is built aside and renamed, so that it is whole or absent; of several processes one builds
    and the others wait.
    """
    folder = root / key
    if folder.exists():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{key}.lock"):
            for left in root.glob(f"{key}.part"):  # of a build that was killed: we hold the lock
                shutil.rmtree(left)
            if not folder.exists():
                _build_aside(folder, build)
    except OSError as error:
        raise HfgenError(
            f"data.cache_dir: decoded images cannot be kept in {str(root)!r} ({error}); "
            "free some space or choose another folder"
        ) from error
    return folder


def _build_aside(folder: Path, build: Callable[[Path], None]) -> None:
    part = folder.with_name(f"{folder.name}.part")
    part.mkdir()
    try:
        build(part)
    except BaseException:
        shutil.rmtree(part)
        raise
    part.rename(folder)
