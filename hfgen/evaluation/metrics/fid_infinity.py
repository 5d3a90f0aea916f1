"""Frechet distance extrapolated to infinitely many samples (Chong & Forsyth 2020, section 4)."""

from __future__ import annotations

import numpy as np

from hfgen.errors import HfgenError
from hfgen.evaluation.arrays import Array, Estimate, as_features
from hfgen.evaluation.metrics.frechet_distance import frechet_distance
from hfgen.evaluation.moments import Moments


def frechet_distance_infinity(
    fake: Array,
    reference: Array | Moments,
    *,
    points: int = 15,
    smallest: int = 5000,
    seed: int = 0,
) -> Estimate:
    """Intercept of the line of Frechet distances over 1 / n, with its standard error of the fit.

    Args:
        fake: features [N, D]; subsets of ``points`` sizes from ``smallest`` to N are drawn without
            replacement.
        reference: features or moments, used whole each time.
        smallest: 5000 in the paper; keep it above D, where the distance is close to linear
            in 1 / n.
    Raises:
        HfgenError: fewer than 3 points, or ``smallest`` not between 2 and N - 1.
    """
    x = as_features(fake, "fake")
    if points < 3:
        raise HfgenError(f"points: {points}; a line with an error bar needs at least 3")
    if not 2 <= smallest < len(x):
        raise HfgenError(f"smallest: {smallest} is not between 2 and N - 1 = {len(x) - 1}")
    target = reference if isinstance(reference, Moments) else Moments.of(reference)
    sizes = np.linspace(smallest, len(x), points).astype(int)
    draw = np.random.default_rng(seed)
    distances = [
        frechet_distance(x[draw.choice(len(x), size, replace=False)], target) for size in sizes
    ]
    design = np.stack([1 / sizes, np.ones(points)], axis=1)
    solution, *_ = np.linalg.lstsq(design, np.array(distances), rcond=None)
    residual = np.array(distances) - design @ solution
    covariance = np.linalg.inv(design.T @ design) * (residual @ residual / (points - 2))
    return Estimate(float(solution[1]), float(np.sqrt(covariance[1, 1])))
