"""What a score is worth: images that need no model, measured by the same protocol.

A per-pixel Gaussian knows means and variances of a data set; a few training images repeated are
perfect one by one and have no diversity. (The third baseline, an untrained network, is any pipeline
built from a recipe before training.) A recipe must beat all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hfgen.data import Source
from hfgen.errors import HfgenError
from hfgen.evaluation.images import Images, image_generator
from hfgen.evaluation.protocol import ImagesProtocol


class PixelGaussian(Images):
    """Each pixel and channel drawn from a normal with the mean and deviation that it has over the
    data, clipped and rounded to 8 bits."""

    def __init__(self, source: Source, count: int, *, seed: int = 0, max_fit: int = 10_000):
        self.source, self.count, self.seed = source, count, seed
        pixels = source.uint8(range(min(len(source), max_fit))).float()
        self.mean, self.std = pixels.mean(0), pixels.std(0)

    @property
    def protocol(self) -> ImagesProtocol:
        return _protocol(self.source, "per-pixel Gaussian", self.count, self.seed)

    def uint8(self, indices: Sequence[int]) -> Tensor:
        noise = [
            torch.randn(self.mean.shape, generator=image_generator(self.seed, int(i)))
            for i in indices
        ]
        drawn = self.mean + self.std * torch.stack(noise)
        return drawn.round_().clamp_(0, 255).to(torch.uint8)


class RepeatedImages(Images):
    """``distinct`` training images, repeated up to ``count``."""

    def __init__(self, source: Source, count: int, *, distinct: int = 10, seed: int = 0):
        if not 1 <= distinct <= len(source):
            raise HfgenError(f"distinct: {distinct} of {len(source)} images of {source.spec.name}")
        self.source, self.count, self.seed, self.distinct = source, count, seed, distinct
        self.rows = np.random.default_rng(seed).permutation(len(source))[:distinct]

    @property
    def protocol(self) -> ImagesProtocol:
        what = f"{self.distinct} training images repeated"
        return _protocol(self.source, what, self.count, self.seed)

    def uint8(self, indices: Sequence[int]) -> Tensor:
        return self.source.uint8(self.rows[np.asarray(indices) % self.distinct])


def _protocol(source: Source, what: str, count: int, seed: int) -> ImagesProtocol:
    spec = source.spec
    return ImagesProtocol(
        name=f"{what} ({spec.name})",
        split=spec.split,
        fingerprint=f"{spec.fingerprint}",
        count=count,
        rows=what,
        seed=seed,
    )
