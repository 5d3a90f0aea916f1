"""Separated attribute predictability (Kumar et al. 2018, section 3)."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from hfgen.errors import HfgenError
from hfgen.evaluation.arrays import Array
from hfgen.evaluation.metrics.factors import as_factors
from hfgen.evaluation.metrics.linear_probe import linear_probe


def sap(latents: Array, factors: Array, *, categorical: Collection[int] = ()) -> float:
    """Mean over factors of the gap between the two single latents that predict it best; in [0, 1].

    A latent predicts an ordered factor by the R^2 of linear regression, a categorical one by the
    accuracy of a linear classifier (fitted on half of the samples, measured on the other).

    Args:
        latents: posterior means [N, D], D >= 2.
        factors: integer levels [N, K].
        categorical: columns of ``factors`` whose levels have no order.
    """
    z, v = as_factors(latents, factors)
    if z.shape[1] < 2:
        raise HfgenError("latents: a gap needs at least 2 dimensions")
    gaps = []
    for k, factor in enumerate(v.T):
        scores = _accuracies(z, factor) if k in categorical else _determinations(z, factor)
        best = np.sort(scores)
        gaps.append(best[-1] - best[-2])
    return float(np.mean(gaps))


def _determinations(z: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """R^2 of the regression of the factor on each latent alone: the squared correlation."""
    z, y = z - z.mean(0), factor - factor.mean()
    variance = (z**2).sum(0)
    explained = np.square(y @ z) / np.where(variance > 0, variance, 1)
    return explained / (y @ y)


def _accuracies(z: np.ndarray, factor: np.ndarray) -> np.ndarray:
    half = len(z) // 2
    return np.array(
        [
            linear_probe(column[:half, None], factor[:half], column[half:, None], factor[half:])
            for column in z.T
        ]
    )
