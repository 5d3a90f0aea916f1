"""C_T (Meehan, Chaudhuri & Dasgupta 2020): a three-sample test of data copying."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.cluster.vq import kmeans2
from scipy.stats import rankdata

from hfgen.errors import HfgenError
from hfgen.evaluation.arrays import Array, as_double, as_pair
from hfgen.evaluation.metrics.neighbours import nearest


@dataclass(frozen=True)
class CopyTest:
    """Attributes:
    statistic: C_T; below about -3 the samples are nearer to the training set than fresh data is
        (copying), above 3 farther.
    cells: how many cells of the partition entered (those with enough generated samples).
    """

    statistic: float
    cells: int


def c_t(
    train: Array, test: Array, fake: Array, *, cells: int = 1, tau: float = 20, seed: int = 0
) -> CopyTest:
    """Mean over cells of the Mann-Whitney Z-score of distances to the training set (eqs. 1, 2).

    Args:
        train, test, fake: features [N, D], [M, D], [K, D]; ``test`` is held out from the same
            distribution as ``train``.
        cells: k-means cells of the training set (1: the global test).
        tau: fewest generated samples for a cell to count.
    Raises:
        HfgenError: no cell holds ``tau`` generated and one test sample.
    """
    x, t = as_pair(train, test, ("train", "test"), at_least=1)
    _, g = as_pair(train, fake, ("train", "fake"), at_least=1)
    centroids = _centroids(as_double(x, "train"), cells, seed)
    in_test, in_fake = (_assign(as_double(v, "set"), centroids) for v in (t, g))
    to_test, to_fake = (nearest(v, x).distances[:, 0].cpu().numpy() for v in (t, g))
    scores, weights = [], []
    for cell in range(len(centroids)):
        p, q = to_test[in_test == cell], to_fake[in_fake == cell]
        if len(q) >= tau and len(p) > 0:
            scores.append(_z_score(q, p))
            weights.append(len(p))
    if not scores:
        raise HfgenError(f"tau: no cell holds {tau} of {len(g)} generated samples and a test one")
    return CopyTest(float(np.average(scores, weights=weights)), len(scores))


def _z_score(q: np.ndarray, p: np.ndarray) -> float:
    """Mann-Whitney U of q over p, standardised, corrected for ties; negative where q is smaller."""
    n, m = len(q), len(p)
    both = np.concatenate([q, p])
    u = rankdata(both)[:n].sum() - n * (n + 1) / 2
    _, ties = np.unique(both, return_counts=True)
    total = n + m
    correction = (ties**3 - ties).sum() / (total * (total - 1)) if total > 1 else 0
    variance = n * m / 12 * (total + 1 - correction)
    return 0.0 if variance == 0 else float((u - n * m / 2) / math.sqrt(variance))


def _centroids(x: np.ndarray, cells: int, seed: int) -> np.ndarray:
    if not 1 <= cells <= len(x):
        raise HfgenError(f"cells: {cells} is not between 1 and the {len(x)} training samples")
    if cells == 1:
        return x.mean(0, keepdims=True)
    return kmeans2(x, cells, minit="++", rng=np.random.default_rng(seed))[0]


def _assign(x: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    squared = (centroids**2).sum(1) - 2 * x @ centroids.T
    return squared.argmin(1)
