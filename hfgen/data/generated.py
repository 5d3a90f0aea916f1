"""Sets made in code, by name: toy problems whose modes or factors are known exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from hfgen.data.config import DataConfig
from hfgen.data.source import DataSpec, IndexedSource, Indices, Source, TensorSource, no_captions
from hfgen.data.sprites import sprites
from hfgen.errors import HfgenError
from hfgen.rng import Rng

GRID_SIZES = {"train": 50_000, "validation": 10_000}
GRID_STD = 0.05 / 4
GRID_MODES = torch.cartesian_prod(torch.linspace(-1, 1, 5), torch.linspace(-1, 1, 5))
"""Means [25, 2] of the modes; label k is mode k."""
STACKED_SIZES = {"train": 128_000, "validation": 26_000}


def generate(config: DataConfig, role: str) -> Source:
    """The generated set ``config.path``; HfgenError where a setting does not apply to it."""
    return _GENERATORS[config.path](config, role)


def gaussian_grid(config: DataConfig, role: str) -> TensorSource:
    """25 Gaussians on a 5 x 5 grid as images [2, 1, 1], their modes as labels (Lin et al. 2018,
    PacGAN, section 4.1).

    The paper has means in {-4, -2, 0, 2, 4}^2 and variance 0.0025; one unit here is four of the
    paper's, so that the modes span [-1, 1] and the standard deviation is 0.0125.
    """
    for field in ("resolution", "channels"):
        if getattr(config, field) is not None:
            raise _does_not_apply(config, field, "its points are images of 2 channels and 1 x 1")
    size = min(GRID_SIZES[role], config.max_images or GRID_SIZES[role])
    rng = Rng(config.seed, "gaussian-grid", role)
    labels = rng.randint("mode", len(GRID_MODES), (size,))
    points = GRID_MODES[labels] + GRID_STD * rng.randn("noise", (size, 2))
    return TensorSource(points[:, :, None, None], labels, name=config.path, split=role)


class StackedMnist(IndexedSource):
    """Three random digits as the colours of one image; label 100 r + 10 g + b of 1000 (Che et al.
    2016, MDGAN).

    Args:
        digits: grey images with labels 0 to 9.
        triples: [N, 3] indices into ``digits``.
        spec: of the stacked images.
    """

    def __init__(self, digits: Source, triples: Tensor, spec: DataSpec):
        self._digits = digits
        self._triples = triples
        self._spec = spec

    @property
    def spec(self) -> DataSpec:
        return self._spec

    def __len__(self) -> int:
        return len(self._triples)

    def pixels(self, indices: Indices) -> Tensor:
        chosen = self._triples[torch.as_tensor(indices, dtype=torch.int64)]
        grey = self._digits.pixels(chosen.flatten())
        return grey.view(len(chosen), 3, *grey.shape[2:])

    def labels(self, indices: Indices) -> Tensor:
        chosen = self._triples[torch.as_tensor(indices, dtype=torch.int64)]
        digits = self._digits.batch(chosen.flatten())["labels"].view(len(chosen), 3)
        return digits @ torch.tensor([100, 10, 1])

    def captions(self, indices: Indices) -> list[str]:
        raise no_captions(self._spec)


def stacked_mnist(config: DataConfig, role: str) -> StackedMnist:
    """Stacks of the bundled digits; validation stacks are of validation digits."""
    from hfgen.data.load import load_source

    if config.channels not in (None, 3):
        raise _does_not_apply(config, "channels", "its images have 3 channels")
    unnamed = {"label_column": None, "caption_column": None, "image_column": None}
    digits = load_source(
        replace(config, path="mnist", channels=1, max_images=None, streaming=False, **unnamed), role
    )
    size = min(STACKED_SIZES[role], config.max_images or STACKED_SIZES[role])
    triples = Rng(config.seed, "stacked-mnist", role).randint("digits", len(digits), (size, 3))
    spec = replace(
        digits.spec,
        name=config.path,
        num_images=size,
        channels=3,
        class_names=tuple(f"{number:03d}" for number in range(1000)),
        fingerprint=f"{digits.spec.fingerprint}-stacked-{config.seed}-{size}",
    )
    return StackedMnist(digits, triples, spec)


def _does_not_apply(config: DataConfig, field: str, why: str) -> HfgenError:
    value = getattr(config, field)
    return HfgenError(
        f"data.{field}: {value} does not apply to {config.path!r}: {why}; leave it out"
    )


_GENERATORS: dict[str, Callable[[DataConfig, str], Source]] = {
    "gaussian-grid": gaussian_grid,
    "sprites": sprites,
    "stacked-mnist": stacked_mnist,
}
