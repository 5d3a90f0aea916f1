"""What the disentanglement scores share: latents and known factors, and binning."""

from __future__ import annotations

import numpy as np

from hfgen.errors import HfgenError
from hfgen.evaluation.arrays import Array, as_double


def as_factors(latents: Array, factors: Array) -> tuple[np.ndarray, np.ndarray]:
    """Latents [N, D] float64, and factor levels [N, K] int64 renumbered from 0 by column.

    Raises:
        HfgenError: different N, levels that are not integers, a factor with a single level.
    """
    z = as_double(latents, "latents")
    levels = np.asarray(factors)
    if levels.ndim != 2 or len(levels) != len(z):
        raise HfgenError(f"factors: expected [{len(z)}, K], got shape {levels.shape}")
    if not np.array_equal(levels, levels.astype(np.int64)):
        raise HfgenError("factors: levels must be integers; bin continuous ones first")
    columns = [np.unique(column, return_inverse=True)[1] for column in levels.T]
    constant = [k for k, column in enumerate(columns) if column.max() == 0]
    if constant:
        raise HfgenError(f"factors: column {constant[0]} has a single level")
    return z, np.stack(columns, axis=1)


def discretise(z: np.ndarray, bins: int) -> np.ndarray:
    """Each column in ``bins`` intervals of equal width over its range; int64."""
    low, high = z.min(0), z.max(0)
    width = np.where(high > low, high - low, 1) / bins
    return np.clip(((z - low) / width).astype(np.int64), 0, bins - 1)


def mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """Of two integer vectors from their joint histogram, in nats."""
    joint = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(joint, (a, b), 1 / len(a))
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    present = joint > 0
    return float((joint[present] * np.log(joint[present] / independent[present])).sum())


def entropy(a: np.ndarray) -> float:
    """Of an integer vector, in nats."""
    p = np.bincount(a) / len(a)
    return float(-(p[p > 0] * np.log(p[p > 0])).sum())
