"""Small pictures that can be told by their pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (16, 16), channels: int = 3) -> Image.Image:
    """Noise with a seed, so that a picture can be told by its pixels; size is (width, height)."""
    shape = (size[1], size[0], channels) if channels > 1 else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(pixels)


def save_pictures(folder: Path, count: int, **options) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:04d}.png" for i in range(count)]
    for i, path in enumerate(paths):
        picture(i, **options).save(path)
    return paths
