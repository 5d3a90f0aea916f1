"""Codes of a frozen quantised autoencoder, encoded once and cached: a source like any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hfgen.data.encoded import EncodedSource, drawn_view, encoded_once, views
from hfgen.data.source import IndexedSource, Indices, Source
from hfgen.rng import Rng

CODES = "codes.npy"
CODE_VERSION = 1
"""Part of every key: raise it when what a cache holds changes."""

Encoder = Callable[[Tensor], Tensor]
"""Images [B, C, H, W] in [-1, 1] -> codes [B, height, width, levels]."""


class CodeSource(EncodedSource):
    """Codes [B, height, width, levels], int64, of an image or of its mirror image.

    Args:
        codes: [N, views, height, width, levels], views 2 where the mirrored images are there too.
    """

    def __init__(self, images: IndexedSource, codes: np.ndarray, name: str):
        height, width, levels = codes.shape[2:]
        super().__init__(images, name, (levels, height, width))
        self._codes = codes

    def pixels(self, indices: Indices) -> Tensor:
        """Codes [B, views, height, width, levels], as they are stored."""
        return torch.from_numpy(self._codes[np.asarray(indices, dtype=np.int64)].astype(np.int64))

    def encodings(self, indices: Indices) -> Tensor:
        """Codes [B, height, width, levels]."""
        return self.pixels(indices)[:, 0]

    def prepare(
        self, stored: Tensor, rng: Rng, flip: bool, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Codes of the image, or of its mirror image where a flip is drawn."""
        return drawn_view(stored, rng, flip).to(device)


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

    def write(indexed: IndexedSource, folder: Path) -> None:
        parts = [
            torch.stack([encoder(view).cpu() for view in batch], dim=1)
            for batch in views(indexed, flip, "codes")
        ]
        np.save(folder / CODES, torch.cat(parts).to(torch.int32).numpy())

    indexed, folder = encoded_once(
        "codes", CODE_VERSION, images, write, name=name, flip=flip, cache_dir=cache_dir
    )
    return CodeSource(indexed, np.load(folder / CODES, mmap_mode="r"), name)
