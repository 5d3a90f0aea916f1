"""Latents of a frozen autoencoder, encoded once and cached: a source like any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hfgen.data.cache import META
from hfgen.data.encoded import EncodedSource, drawn_view, encoded_once, views
from hfgen.data.source import IndexedSource, Indices, Source
from hfgen.errors import HfgenError
from hfgen.rng import Rng

LATENTS = "latents.f16"
LATENT_VERSION = 1
"""Part of every key: raise it when what a cache holds changes."""

Encoder = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""Images [B, C, H, W] in [-1, 1] -> mean [B, c, h, w] of q(z|x), and its std, or None for a
deterministic encoder."""


@dataclass(frozen=True)
class LatentMeta:
    """What a cache of latents says of itself.

    Attributes:
        shape: [c, h, w] of a latent.
        views: 2 where the mirrored images are encoded too, else 1.
        parts: 2 where there is a standard deviation beside each mean, else 1.
        mean, std: of each channel over the data set, before any scaling.
    """

    num_images: int
    shape: tuple[int, int, int]
    views: int
    parts: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class LatentSource(EncodedSource):
    """(z - shift) * scale with z ~ q(z|x), drawn anew each time, of x or of its mirror image.

    Args:
        folder: the finished cache.
        shift, scale: [c] or numbers, of the autoencoder's config.
    """

    def __init__(
        self, images: IndexedSource, folder: Path, name: str, shift: Tensor, scale: Tensor
    ):
        self.meta = read_latent_meta(folder)
        super().__init__(images, name, self.meta.shape)
        rows = (-1, self.meta.views, self.meta.parts, *self.meta.shape)
        self._stored = np.memmap(folder / LATENTS, np.float16, "r").reshape(rows)
        self._shift, self._scale = shift.reshape(-1, 1, 1), scale.reshape(-1, 1, 1)

    def pixels(self, indices: Indices) -> Tensor:
        """Moments [B, views, parts, c, h, w], as they are stored."""
        return torch.from_numpy(self._stored[np.asarray(indices, dtype=np.int64)]).float()

    def encodings(self, indices: Indices) -> Tensor:
        """Scaled means [B, c, h, w]."""
        return self._scaled(self.pixels(indices)[:, 0, 0])

    def prepare(
        self, stored: Tensor, rng: Rng, flip: bool, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Draws from the posterior, of the mirrored image where a flip is drawn."""
        chosen = drawn_view(stored, rng, flip)
        latents = chosen[:, 0]
        if self.meta.parts == 2:
            latents = latents + chosen[:, 1] * rng.randn("posterior", latents.shape)
        return self._scaled(latents).to(device)

    @property
    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation of all scaled latents."""
        shift, scale = self._shift.flatten().double(), self._scale.flatten().double()
        mean = (torch.tensor(self.meta.mean, dtype=torch.float64) - shift) * scale
        second = mean.square() + (torch.tensor(self.meta.std, dtype=torch.float64) * scale) ** 2
        return float(mean.mean()), float((second.mean() - mean.mean() ** 2).sqrt())

    def _scaled(self, latents: Tensor) -> Tensor:
        return (latents - self._shift) * self._scale


def encode_source(
    images: Source,
    encoder: Encoder,
    *,
    name: str,
    flip: bool,
    shift: Tensor,
    scale: Tensor,
    cache_dir: str | None = None,
) -> LatentSource:
    """The latents of ``images``; encoded on the first call, mapped into memory afterwards.

    Args:
        encoder: called on [B, C, H, W] in [-1, 1].
        name: hash of the autoencoder; with the images' fingerprint it is the key of the cache.
        flip: encode the mirrored images too, for ``data.random_flip``.
    Raises:
        HfgenError: a stream, pixels that are drawn anew each time, latents that are no maps.
    """

    def write(indexed: IndexedSource, part: Path) -> None:
        _write(indexed, encoder, flip, part)

    indexed, folder = encoded_once(
        "latents", LATENT_VERSION, images, write, name=name, flip=flip, cache_dir=cache_dir
    )
    return LatentSource(indexed, folder, name, shift, scale)


def _write(images: IndexedSource, encoder: Encoder, flip: bool, folder: Path) -> None:
    """Encode everything into ``folder``; its meta last."""
    sums: list[tuple[Tensor, Tensor]] = []
    shape: list[int] = []
    with (folder / LATENTS).open("wb") as out:
        for batch in views(images, flip, "latents"):
            moments = torch.stack([_moments(encoder, view) for view in batch], dim=1)
            out.write(moments.half().numpy().tobytes())
            shape = list(moments.shape[1:])
            sums.append(_sums(moments.double()))
    total, squares = (torch.stack(part).sum(0) for part in zip(*sums, strict=True))
    num_views, parts, channels, height, width = shape
    mean = total / (len(images) * num_views * height * width)
    std = (squares / (len(images) * num_views * height * width) - mean**2).clamp(min=0).sqrt()
    meta = LatentMeta(
        num_images=len(images),
        shape=(channels, height, width),
        views=num_views,
        parts=parts,
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
    )
    (folder / META).write_text(json.dumps(asdict(meta), indent=1), encoding="utf-8")


def _sums(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of E z and of E z^2 over all but the channels, [c] each."""
    means = moments[:, :, 0]
    second = means**2 + (moments[:, :, 1] ** 2 if moments.shape[2] == 2 else 0.0)
    return means.sum((0, 1, 3, 4)), second.sum((0, 1, 3, 4))


def _moments(encoder: Encoder, images: Tensor) -> Tensor:
    """[B, 1 or 2, c, h, w] on the CPU."""
    mean, std = encoder(images)
    if mean.ndim != 4:
        raise HfgenError(
            f"model.vae: its latents are {list(mean.shape[1:])}, no maps [c, h, w]; valid: an "
            "autoencoder with spatial latents, such as AutoencoderKL, VQModel, VQVAE"
        )
    parts = [mean] if std is None else [mean, std]
    moments = torch.stack([part.float().cpu() for part in parts], dim=1)
    if not bool(moments.isfinite().all()):
        raise HfgenError("model.vae: it encodes images to NaN or infinity")
    return moments


def read_latent_meta(folder: Path) -> LatentMeta:
    """``meta.json`` of a finished cache."""
    fields: dict[str, Any] = json.loads((folder / META).read_text(encoding="utf-8"))
    for name in ("shape", "mean", "std"):
        fields[name] = tuple(fields[name])
    return LatentMeta(**fields)
