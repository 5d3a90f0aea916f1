"""Pictures beside the numbers: a grid of samples, and samples with their nearest training
images.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hfgen.evaluation.images import Images
from hfgen.evaluation.metrics.neighbours import nearest
from hfgen.evaluation.store import FeatureStore

SHOWN = 64
GAP = 2


def save_samples(store: FeatureStore, path: Path) -> None:
    """The first 64 samples as a square grid."""
    images = np.array(store.output("images")[:SHOWN])
    columns = math.ceil(math.sqrt(len(images)))
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    _save(rows, path)


def save_neighbours(
    samples: FeatureStore, reference: FeatureStore, images: Images, path: Path, *, count: int = 10
) -> None:
    """Per row a sample and its 7 nearest reference images in feature space, nearest first."""
    fakes = np.array(samples.output("images")[:count])
    queries = torch.from_numpy(np.array(samples.output("features")[: len(fakes)]))
    target = torch.from_numpy(np.array(reference.output("features")))
    found = nearest(queries, target, min(7, len(target))).indices
    rows = []
    for fake, indices in zip(fakes, found, strict=True):
        near = [_like(real, fake) for real in images.uint8(indices.tolist()).numpy()]
        rows.append([fake, np.full((*fake.shape[:2], 4), 255, np.uint8), *near])
    _save(rows, path)


def _like(image: np.ndarray, other: np.ndarray) -> np.ndarray:
    """``image`` [C, H, W] with the channels and size of ``other``, for showing side by side."""
    if image.shape[0] != other.shape[0]:
        image = image[:1] if other.shape[0] == 1 else np.repeat(image[:1], 3, axis=0)
    if image.shape[1:] != other.shape[1:]:
        picture = _picture(image).resize(other.shape[:0:-1])
        array = np.atleast_3d(np.asarray(picture))
        image = array.transpose(2, 0, 1)
    return image


def _save(rows: list, path: Path) -> None:
    height = sum(row[0].shape[1] + GAP for row in rows) + GAP
    width = max(sum(image.shape[2] + GAP for image in row) for row in rows) + GAP
    sheet = np.full((rows[0][0].shape[0], height, width), 255, np.uint8)
    y = GAP
    for row in rows:
        x = GAP
        for image in row:
            sheet[:, y : y + image.shape[1], x : x + image.shape[2]] = image
            x += image.shape[2] + GAP
        y += row[0].shape[1] + GAP
    path.parent.mkdir(parents=True, exist_ok=True)
    _picture(sheet).save(path)


def _picture(image: np.ndarray) -> Image.Image:
    """[C, H, W] -> grey or RGB."""
    return Image.fromarray(image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0))
