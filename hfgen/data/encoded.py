"""Encodings of images by a frozen autoencoder, made once and cached: latents and codes."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from hfgen.data.cache import cache_root, finished
from hfgen.data.source import DataSpec, IndexedSource, Indices, Source
from hfgen.errors import HfgenError
from hfgen.rng import Rng

AT_ONCE = 64
"""Images that are encoded together."""


class EncodedSource(IndexedSource):
    """Encodings of images, and of their mirror images where flips may be drawn.

    ``pixels`` gives what is stored, [B, views, ...]; labels, captions and pixels for metrics are
    those of the images.

    Args:
        images: what was encoded.
        name: of the autoencoder's hash, for the fingerprint.
        shape: [channels, height, width] of what a model is trained on.
    """

    def __init__(self, images: IndexedSource, name: str, shape: tuple[int, int, int]):
        self._images = images
        channels, height, width = shape
        self._spec = replace(
            images.spec,
            num_images=len(images),
            channels=channels,
            height=height,
            width=width,
            fingerprint=f"{images.spec.fingerprint}-{name}",
        )

    @property
    def spec(self) -> DataSpec:
        return self._spec

    def __len__(self) -> int:
        return len(self._images)

    def labels(self, indices: Indices) -> Tensor | None:
        return self._images.labels(indices)

    def captions(self, indices: Indices) -> list[str]:
        return self._images.captions(indices)

    def uint8(self, indices: Indices) -> Tensor:
        """The images, since metrics and grids are about those."""
        return self._images.uint8(indices)

    @abstractmethod
    def encodings(self, indices: Indices) -> Tensor:
        """One encoding for each image, without chance and not mirrored."""

    def batch(self, indices: Indices) -> dict[str, Tensor]:
        """``images``: the encodings; ``labels`` if there are classes."""
        labels = self.labels(indices)
        images = {"images": self.encodings(indices)}
        return images if labels is None else {**images, "labels": labels}


def drawn_view(stored: Tensor, rng: Rng, flip: bool) -> Tensor:
    """Of each row of ``stored`` [B, views, ...] that of the image, or of its mirror image where a
    flip is drawn: [B, ...].
    """
    rows = torch.arange(len(stored))
    view = (rng.rand("flip", (len(stored),)) < 0.5).long() if flip else torch.zeros_like(rows)
    return stored[rows, view]


def encoded_once(
    kind: str,
    version: int,
    images: Source,
    write: Callable[[IndexedSource, Path], None],
    *,
    name: str,
    flip: bool,
    cache_dir: str | None,
) -> tuple[IndexedSource, Path]:
    """``images``, and the folder of their encodings: made by ``write`` where it is not there yet.

    Args:
        kind: "latents" or "codes": the folder of the cache, and the word in messages.
        version: part of the key.
        name: hash of the autoencoder; with the images' fingerprint it is the key of the cache.
        flip: whether the mirrored images are encoded too.
    Raises:
        HfgenError: a stream, or pixels that are drawn anew each time.
    """
    if not isinstance(images, IndexedSource):
        raise HfgenError(
            f"data.streaming: {kind} are cached once, a stream is not; set it to false"
        )
    if images.spec.binarize == "dynamic":
        raise HfgenError(
            f"data.binarize: 'dynamic' draws pixels anew, but {kind} are encoded once; "
            "valid: none, static"
        )
    indexed: IndexedSource = images
    text = json.dumps([version, indexed.spec.fingerprint, len(indexed), name, flip])
    key = hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
    return indexed, finished(cache_root(cache_dir) / kind, key, lambda part: write(indexed, part))


def views(images: IndexedSource, flip: bool, what: str) -> Iterator[list[Tensor]]:
    """Batches [B, C, H, W] in [-1, 1] in order; with ``flip``, each with its mirror image.

    Args:
        what: is encoded, for the progress bar.
    """
    from datasets.utils.tqdm import tqdm

    starts = range(0, len(images), AT_ONCE)
    for start in tqdm(starts, desc=f"Encoding {what}", unit="batch", disable=None):
        batch = images.batch(range(start, min(start + AT_ONCE, len(images))))["images"]
        yield [batch, batch.flip(-1)] if flip else [batch]
