"""What a set of images is to the rest of hfgen: a spec, and batches by index."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hfgen.data.order import Draws, IndexedDraws
from hfgen.errors import HfgenError
from hfgen.rng import Rng

Indices = Sequence[int] | np.ndarray | Tensor


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What a model, a report or a card has to know of a set of images.

    Attributes:
        name: ``data.path`` as the user gave it.
        split: ``train`` or ``validation``.
        num_images: None where it is not known (a stream).
        channels, height, width: of every image, in pixels.
        class_names: name of label 0, 1, ...; None without labels.
        has_captions: whether ``Source.captions`` has any.
        fingerprint: hash of the content (pixels, labels, captions), not of the name.
        binarize: ``dynamic`` asks ``BatchStream`` to draw pixels; ``static`` says they have been
            drawn.
        credit: where the images come from, and their licence.
    """

    name: str
    split: str
    num_images: int | None
    channels: int
    height: int
    width: int
    class_names: tuple[str, ...] | None = None
    has_captions: bool = False
    fingerprint: str
    binarize: str = "none"
    credit: str | None = None

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None without labels."""
        return None if self.class_names is None else len(self.class_names)


def normalize(pixels: Tensor) -> Tensor:
    """uint8 0..255 -> float32 [-1, 1]; floats are there already and pass."""
    return pixels if pixels.is_floating_point() else pixels.float().div_(127.5).sub_(1)


def quantize(images: Tensor) -> Tensor:
    """Float [-1, 1] -> uint8 0..255, rounded: the inverse of ``normalize``."""
    return images.add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


class Source(ABC):
    """A set of images: ``BatchStream`` draws batches from it, evaluation takes them by index."""

    @property
    @abstractmethod
    def spec(self) -> DataSpec: ...

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def pixels(self, indices: Indices) -> Tensor:
        """Pixels [B, C, H, W] as they are stored: uint8 0..255, or float32 in [-1, 1]; a copy."""

    @abstractmethod
    def labels(self, indices: Indices) -> Tensor | None:
        """Labels [B] int64, or None where there are no classes."""

    @abstractmethod
    def captions(self, indices: Indices) -> list[str]:
        """One text for each image; HfgenError where there are none."""

    @abstractmethod
    def draws(self, total_batch_size: int, seed: int) -> Draws:
        """An endless stream of global batches, a pure function of (seed, draw)."""

    def prepare(
        self, stored: Tensor, rng: Rng, flip: bool, device: torch.device | str = "cpu"
    ) -> Tensor:
        """What is trained on, float32 [B, C, H, W], from ``stored``, which ``pixels`` gave.

        Args:
            rng: of the rows; flips are the draw named ``flip``.
            flip: mirror each row left to right with probability 1/2 (in place).
        """
        if flip:
            _flip(stored, rng.rand("flip", (len(stored),)) < 0.5)
        return normalize(stored.to(device))

    def extras(self, indices: Indices) -> dict[str, Tensor]:
        """What else a batch holds for these rows: nothing, by default."""
        return {}

    @property
    def words(self) -> tuple[str, ...]:
        """Words of the captions that a model is trained on; none without."""
        return ()

    @property
    def parts(self) -> dict[str, Any]:
        """Components of the model that were made for this source, by role; none by default."""
        return {}

    def batch(self, indices: Indices) -> dict[str, Tensor]:
        """``images`` float32 [B, C, H, W] in [-1, 1]; ``labels`` int64 [B] if there are classes."""
        labels = self.labels(indices)
        images = {"images": normalize(self.pixels(indices))}
        return images if labels is None else {**images, "labels": labels}

    def uint8(self, indices: Indices) -> Tensor:
        """Images [B, C, H, W] in 0..255 (floats are rounded), for metrics and grids."""
        pixels = self.pixels(indices)
        return quantize(pixels) if pixels.is_floating_point() else pixels


def _flip(pixels: Tensor, chosen: Tensor) -> None:
    """Mirror the chosen rows in place; on the stored bytes, in numpy: 7 times as fast as torch."""
    rows, which = pixels.numpy(), chosen.numpy()
    rows[which] = rows[which][..., ::-1]


class IndexedSource(Source):
    """A source with random access: its training batches are seeded permutations of it."""

    def draws(self, total_batch_size: int, seed: int) -> Draws:
        return IndexedDraws(self, total_batch_size, seed)


class TensorSource(IndexedSource):
    """Images that are tensors already.

    Args:
        images: [N, C, H, W], uint8 0..255 or floats in [-1, 1]. Points of a toy distribution are
            images of 1 x 1.
        labels: [N] class numbers from 0.
        name, split: how the set is called in reports.
        class_names: by default "0", "1", ... up to the highest label.
        captions: one text for each image.
        credit: where the images come from.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        name: str = "tensors",
        split: str = "train",
        class_names: Sequence[str] | None = None,
        captions: Sequence[str] | None = None,
        binarize: str = "none",
        credit: str | None = None,
    ):
        _check_tensors(name, images, labels, captions)
        self._images = images if images.dtype == torch.uint8 else images.float()
        self._labels = None if labels is None else labels.to(torch.int64)
        self._captions = None if captions is None else list(captions)
        if class_names is None and self._labels is not None:
            class_names = [str(label) for label in range(int(self._labels.max()) + 1)]
        self._spec = DataSpec(
            name=name,
            split=split,
            num_images=len(images),
            channels=images.shape[1],
            height=images.shape[2],
            width=images.shape[3],
            class_names=None if class_names is None else tuple(class_names),
            has_captions=captions is not None,
            fingerprint=content_hash(self._images, self._labels, self._captions),
            binarize=binarize,
            credit=credit,
        )

    @property
    def spec(self) -> DataSpec:
        return self._spec

    def __len__(self) -> int:
        return len(self._images)

    def pixels(self, indices: Indices) -> Tensor:
        return self._images[torch.as_tensor(indices, dtype=torch.int64)]

    def labels(self, indices: Indices) -> Tensor | None:
        if self._labels is None:
            return None
        return self._labels[torch.as_tensor(indices, dtype=torch.int64)]

    def captions(self, indices: Indices) -> list[str]:
        if self._captions is None:
            raise no_captions(self._spec)
        return [self._captions[int(i)] for i in indices]


def content_hash(images: Tensor, labels: Tensor | None, captions: Sequence[str] | None) -> str:
    """Hash of what is in a set of images, 16 hexadecimal digits."""
    digest = hashlib.blake2b(repr((tuple(images.shape), images.dtype)).encode(), digest_size=8)
    digest.update(images.contiguous().view(-1).numpy().data)
    if labels is not None:
        digest.update(labels.contiguous().view(-1).numpy().data)
    for caption in captions or ():
        digest.update(caption.encode() + b"\0")
    return digest.hexdigest()


def no_captions(spec: DataSpec) -> HfgenError:
    return HfgenError(
        f"data set {spec.name!r} has no captions; name a text column in data.caption_column"
    )


def _check_tensors(
    name: str, images: Tensor, labels: Tensor | None, captions: Sequence[str] | None
) -> None:
    if images.ndim != 4 or len(images) == 0:
        shape = list(images.shape)
        raise HfgenError(f"{name}: images must be [N, C, H, W] with N > 0, got shape {shape}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise HfgenError(f"{name}: images must be uint8 or floats in [-1, 1], got {images.dtype}")
    for what, given in (("labels", labels), ("captions", captions)):
        if given is not None and len(given) != len(images):
            raise HfgenError(f"{name}: {len(images)} images, but {len(given)} {what}")
    if labels is not None and int(labels.min()) < 0:
        raise HfgenError(f"{name}: labels count from 0, got {int(labels.min())}")
