"""Count, mean and scatter of features: float64, mergeable, the same for any split into batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import get_blas_funcs

from hfgen.errors import HfgenError
from hfgen.evaluation.arrays import Array, as_features


@dataclass(frozen=True)
class Moments:
    """First and second moments of ``count`` feature vectors.

    Attributes:
        count: N.
        mean: [D] float64.
        scatter: sum of outer products of the centred vectors, [D, D] float64.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, features: Array) -> Moments:
        """Moments of features [N, D], N >= 1."""
        x = as_features(features, "features", at_least=1).cpu().numpy()
        mean = x.mean(axis=0, dtype=np.float64)
        return cls(len(x), mean, scatter(x, mean))

    def merge(self, other: Moments) -> Moments:
        """Moments of the union (Chan, Golub & LeVeque 1979, equations 2.1)."""
        if self.mean.shape != other.mean.shape:
            raise HfgenError(
                f"moments of {self.mean.size} and {other.mean.size} features cannot be merged"
            )
        count = self.count + other.count
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        between = np.outer(shift, shift) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance [D, D] (ddof 1); HfgenError for fewer than 2 samples."""
        if self.count < 2:
            raise HfgenError(f"covariance of {self.count} sample; at least 2 are needed")
        return self.scatter / (self.count - 1)


def scatter(x: np.ndarray, mean: np.ndarray, block: int = 1024) -> np.ndarray:
    """Sum of outer products of the rows [N, D] less ``mean``, [D, D] float64.

    A symmetric product of half the operations; rows are centred while they are in the cache.
    """
    (syrk,) = get_blas_funcs(("syrk",), dtype=np.float64)
    lower = np.zeros((mean.size, mean.size), order="F")
    for start in range(0, len(x), block):
        rows = x[start : start + block] - mean
        lower = syrk(1.0, rows.T, beta=1.0, c=lower, lower=1, overwrite_c=True)
    lower += np.tril(lower, -1).T
    return lower
