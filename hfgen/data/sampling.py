"""Seeded choices of rows: which are held out, which are kept."""

from __future__ import annotations

import numpy as np
import torch

from hfgen.rng import Rng

HELD_OUT = 10
"""One image of so many is held out where a set has no split to validate on."""


def held_out_count(size: int) -> int:
    """A tenth, at least one, but never all."""
    return min(max(size // HELD_OUT, 1), size - 1)


def permutation(size: int, *key: object) -> torch.Tensor:
    """A permutation of ``range(size)``, int64, that is a pure function of ``key``."""
    seed = int(Rng(*key).randint("order", 2**62, (1,)))
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


def sample(size: int, count: int, *key: object) -> np.ndarray:
    """``count`` different numbers below ``size``, int64, ascending; a pure function of ``key``."""
    return np.sort(permutation(size, *key)[:count].numpy())
