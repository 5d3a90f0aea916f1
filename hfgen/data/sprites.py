"""Sprites with known factors, drawn on demand (the idea of dSprites, Matthey et al. 2017)."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from torch import Tensor

from hfgen.data.config import DataConfig
from hfgen.data.sampling import held_out_count, sample
from hfgen.data.source import DataSpec, IndexedSource, Indices, no_captions

FACTOR_NAMES = ("shape", "scale", "orientation", "x", "y")
FACTOR_SIZES = (3, 6, 40, 32, 32)
SHAPES = ("square", "ellipse", "heart")
SIZE = math.prod(FACTOR_SIZES)
RADIUS = 0.32
"""Half the width of the largest sprite, in units of half the image."""
VERSION = 1


class SpritesSource(IndexedSource):
    """White sprites on black, every combination of five factors once: 737,280 binary images.

    Scale goes from 0.5 to 1 in 6 steps, orientation through the full turn in 40, x (to the right)
    and y (downwards) of the centre from -0.5 to 0.5 of half the image in 32. The label is the
    shape.

    Args:
        rows: numbers of the combinations to hold, each below ``SIZE``; the last factor, y, counts
            fastest.
        resolution: side in pixels.
        channels: 1, or 3 equal ones.
        split: for the spec.
    """

    factor_names = FACTOR_NAMES
    factor_sizes = FACTOR_SIZES

    def __init__(
        self, rows: np.ndarray, *, resolution: int = 64, channels: int = 1, split: str = "train"
    ):
        self._rows = rows
        key = repr((VERSION, resolution, channels)).encode() + rows.astype(np.int64).tobytes()
        self._spec = DataSpec(
            name="sprites",
            split=split,
            num_images=len(rows),
            channels=channels,
            height=resolution,
            width=resolution,
            class_names=SHAPES,
            fingerprint=hashlib.blake2b(key, digest_size=8).hexdigest(),
        )

    @property
    def spec(self) -> DataSpec:
        return self._spec

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def factors(self) -> Tensor:
        """Levels int64 [N, 5]: columns as in ``factor_names``, each below its ``factor_sizes``."""
        return self._levels(self._rows)

    def pixels(self, indices: Indices) -> Tensor:
        levels = self._levels(self._rows[np.asarray(indices, dtype=np.int64)])
        inside = draw(levels, self._spec.height)
        return (inside.to(torch.uint8) * 255)[:, None].repeat(1, self._spec.channels, 1, 1)

    def labels(self, indices: Indices) -> Tensor:
        return self._levels(self._rows[np.asarray(indices, dtype=np.int64)])[:, 0]

    def captions(self, indices: Indices) -> list[str]:
        raise no_captions(self._spec)

    @staticmethod
    def _levels(rows: np.ndarray) -> Tensor:
        return torch.from_numpy(np.stack(np.unravel_index(rows, FACTOR_SIZES), axis=1))


def draw(levels: Tensor, resolution: int) -> Tensor:
    """Which pixels lie inside the sprite: bool [B, resolution, resolution] for levels [B, 5]."""
    shape, scale, orientation, x, y = levels.unbind(1)
    radius = RADIUS * (0.5 + 0.5 * scale / (FACTOR_SIZES[1] - 1))
    angle = 2 * math.pi * orientation / FACTOR_SIZES[2]
    across, down = (level / (FACTOR_SIZES[3] - 1) - 0.5 for level in (x, y))
    centres = (torch.arange(resolution) + 0.5) * 2 / resolution - 1
    dx = (centres[None, None, :] - across[:, None, None]) / radius[:, None, None]
    dy = (centres[None, :, None] - down[:, None, None]) / radius[:, None, None]
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    inside = torch.empty(len(levels), resolution, resolution, dtype=torch.bool)
    for number, contains in enumerate((_square, _ellipse, _heart)):
        chosen = shape == number
        inside[chosen] = contains(u[chosen], v[chosen])
    return inside


def _square(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(u.abs(), v.abs()) <= 0.9


def _ellipse(u: Tensor, v: Tensor) -> Tensor:
    return u**2 + (2 * v) ** 2 <= 1


def _heart(u: Tensor, v: Tensor) -> Tensor:
    """(u^2 + w^2 - 1)^3 <= u^2 w^3, w upwards: the heart curve, shrunk to the unit disc."""
    u, w = 1.25 * u, -1.25 * v
    return (u**2 + w**2 - 1) ** 3 <= u**2 * w**3


def sprites(config: DataConfig, role: str) -> SpritesSource:
    """Nine tenths of all combinations to train on, the rest to validate on."""
    held_out = sample(SIZE, held_out_count(SIZE), config.seed, "held out")
    rows = held_out if role == "validation" else np.setdiff1d(np.arange(SIZE), held_out)
    if config.max_images is not None and config.max_images < len(rows):
        rows = rows[sample(len(rows), config.max_images, config.seed, "max_images")]
    return SpritesSource(
        rows, resolution=config.resolution or 64, channels=config.channels or 1, split=role
    )
