"""Codes of a frozen quantised autoencoder, encoded once and cached: a source like any other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hfgen.data.cache import cache_root, finished
from hfgen.data.source import DataSpec, IndexedSource, Indices, Source
from hfgen.errors import HfgenError
from hfgen.rng import Rng

CODES = "codes.npy"
CODE_VERSION = 1
"""Part of every key: raise it when what a cache holds changes."""
AT_ONCE = 64

Encoder = Callable[[Tensor], Tensor]
"""Images [B, C, H, W] in [-1, 1] -> codes [B, height, width, levels]."""


class CodeSource(IndexedSource):
    """Codes [B, height, width, levels], int64, of an image or of its mirror image.

    Args:
        images: where they come from; labels and captions are its.
        codes: [N, views, height, width, levels], views 2 where the mirrored images are there too.
        name: of the autoencoder's hash, for the fingerprint.
    """

    def __init__(self, images: IndexedSource, codes: np.ndarray, name: str):
        self._images, self._codes = images, codes
        height, width, levels = codes.shape[2:]
        self._spec = replace(
            images.spec,
            channels=levels,
            height=height,
            width=width,
            fingerprint=f"{images.spec.fingerprint}-{name}",
        )

    @property
    def spec(self) -> DataSpec:
        return self._spec

    def __len__(self) -> int:
        return len(self._codes)

    def pixels(self, indices: Indices) -> Tensor:
        """Codes [B, views, height, width, levels], as they are stored."""
        return torch.from_numpy(self._codes[np.asarray(indices, dtype=np.int64)].astype(np.int64))

    def labels(self, indices: Indices) -> Tensor | None:
        return self._images.labels(indices)

    def captions(self, indices: Indices) -> list[str]:
        return self._images.captions(indices)

    def uint8(self, indices: Indices) -> Tensor:
        """The images, since metrics and grids are about those."""
        return self._images.uint8(indices)

    def batch(self, indices: Indices) -> dict[str, Tensor]:
        """``images``: the codes; ``labels`` if there are classes."""
        labels = self.labels(indices)
        codes = {"images": self.pixels(indices)[:, 0]}
        return codes if labels is None else {**codes, "labels": labels}

    def prepare(
        self, stored: Tensor, rng: Rng, flip: bool, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Codes of the image, or of its mirror image where a flip is drawn."""
        rows = torch.arange(len(stored))
        view = (rng.rand("flip", (len(stored),)) < 0.5).long() if flip else torch.zeros_like(rows)
        return stored[rows, view].to(device)


def encode_codes(
    images: Source, encoder: Encoder, *, name: str, flip: bool, cache_dir: str | None = None
) -> CodeSource:
    """The codes of ``images``; encoded on the first call, mapped into memory afterwards.

    Args:
        encoder: called on [B, C, H, W] in [-1, 1].
        name: hash of the autoencoder; with the images' fingerprint it is the key of the cache.
        flip: encode the mirrored images too, for ``data.random_flip``.
    Raises:
        HfgenError: a stream, or pixels that are drawn anew each time.
    """
    if not isinstance(images, IndexedSource):
        raise HfgenError("data.streaming: codes are cached once, a stream is not; set it to false")
    if images.spec.binarize == "dynamic":
        raise HfgenError(
            "data.binarize: 'dynamic' draws pixels anew, but codes are made once; "
            "valid: none, static"
        )
    text = json.dumps([CODE_VERSION, images.spec.fingerprint, len(images), name, flip])
    key = hashlib.blake2b(text.encode(), digest_size=12).hexdigest()

    def write(folder: Path) -> None:
        parts = []
        for start in range(0, len(images), AT_ONCE):
            batch = images.batch(range(start, min(start + AT_ONCE, len(images))))["images"]
            views = [batch, batch.flip(-1)] if flip else [batch]
            parts.append(torch.stack([encoder(view).cpu() for view in views], dim=1))
        np.save(folder / CODES, torch.cat(parts).to(torch.int32).numpy())

    folder = finished(cache_root(cache_dir) / "codes", key, write)
    return CodeSource(images, np.load(folder / CODES, mmap_mode="r"), name)
