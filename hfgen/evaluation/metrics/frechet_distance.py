"""Frechet distance between Gaussians fitted to two sets of features (Heusel et al. 2017, eq. 6).

    F = |mu_1 - mu_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2)

With any factors S_1 = A'A and S_2 = B'B the last trace is the nuclear norm of A B': nothing larger
than the smaller of (N, D) is decomposed, and no square root of a non-symmetric matrix is taken.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.linalg import get_lapack_funcs

from hfgen.errors import HfgenError
from hfgen.evaluation.arrays import Array, Estimate, as_double, as_features
from hfgen.evaluation.metrics.byte_moments import byte_moments, byte_moments_pay
from hfgen.evaluation.moments import Moments


def frechet_distance(a: Array | Moments, b: Array | Moments) -> float:
    """Frechet distance of two sets of features, or of their moments; covariances with ddof 1.

    Args:
        a, b: features [N, D] and [M, D], or ``Moments``. With features and N <= D the distance
            costs O(N^2 D) and is exact.
    Raises:
        HfgenError: fewer than 2 samples, different D, NaN.
    """
    x, y = _Gaussian.of(a, "first set"), _Gaussian.of(b, "second set")
    _check_width(x, y)
    shift = x.mean - y.mean
    return float(shift @ shift + x.trace + y.trace - 2 * _trace_sqrt(x, y))


def frechet_distance_with_error(a: Array, b: Array, *, fixed: bool = False) -> Estimate:
    """Frechet distance and its standard error by the influence function (delta method).

    The influence of a sample x of the first set, with T the optimal transport map between the
    fitted Gaussians, is 2 (mu_1 - mu_2)'(x - mu_1) + (x - mu_1)'(I - T)(x - mu_1) up to a
    constant, since the derivative of tr (S_1 S_2)^(1/2) by S_1 is T / 2; for the second set T
    becomes its inverse. No resampling: a percentile bootstrap of this distance is biased, as
    resampling shrinks covariances.

    Args:
        a, b: features [N, D] and [M, D].
        fixed: whether ``b`` is the reference itself rather than a sample (its share of the
            variance is left out).
    """
    value = frechet_distance(a, b)
    x, y = as_double(a, "first set"), as_double(b, "second set")
    shift = x.mean(0) - y.mean(0)
    x, y = x - x.mean(0), y - y.mean(0)
    forward, backward = _transport_energies(x, y)
    variance = np.var(2 * x @ shift + np.square(x).sum(1) - forward, ddof=1) / len(x)
    if not fixed:
        variance += np.var(-2 * y @ shift + np.square(y).sum(1) - backward, ddof=1) / len(y)
    return Estimate(value, math.sqrt(variance))


class _Gaussian:
    """Mean, trace of the covariance, and a factor F with F'F = covariance, made when needed."""

    def __init__(self, mean: np.ndarray, *, rows: np.ndarray | None, covariance: np.ndarray | None):
        self.mean, self.rows, self._covariance = mean, rows, covariance
        if covariance is not None:
            self.trace = float(np.trace(covariance))
        else:
            assert rows is not None
            self.trace = float(np.vdot(rows, rows))

    @classmethod
    def of(cls, source: Array | Moments, name: str) -> _Gaussian:
        if isinstance(source, Moments):
            return cls(source.mean, rows=None, covariance=source.covariance)
        features = as_features(source, name)
        if len(features) > features.shape[1]:
            fast = byte_moments_pay(features)
            moments = byte_moments(features) if fast else Moments.of(features)
            covariance = moments.scatter
            covariance /= moments.count - 1  # in place: new memory costs more than this
            return cls(moments.mean, rows=None, covariance=covariance)
        x = as_double(features, name)
        mean = x.mean(0)
        return cls(mean, rows=(x - mean) / math.sqrt(len(x) - 1), covariance=None)

    @property
    def covariance(self) -> np.ndarray:
        if self._covariance is None:
            assert self.rows is not None
            self._covariance = self.rows.T @ self.rows
        return self._covariance


def _check_width(x: _Gaussian, y: _Gaussian) -> None:
    if x.mean.shape != y.mean.shape:
        raise HfgenError(
            f"first set has {x.mean.size} features per sample, second set {y.mean.size}"
        )


def _trace_sqrt(x: _Gaussian, y: _Gaussian) -> float:
    """tr (S_1 S_2)^(1/2)."""
    if x.rows is not None and y.rows is not None:
        return float(torch.linalg.svdvals(torch.from_numpy(x.rows @ y.rows.T)).sum())
    if y.rows is not None:
        x, y = y, x
    if x.rows is not None:
        product = x.rows @ y.covariance @ x.rows.T
    else:
        product = _congruence(x.covariance, y.covariance)
    values = torch.linalg.eigvalsh(torch.from_numpy(product))
    return float(values.clamp(min=0).sqrt().sum())


def _congruence(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """F b F' with F'F = a, its lower triangle; F by Cholesky's method, or from eigenvectors where
    ``a`` is singular. Neither ``a`` nor ``b`` is kept.
    """
    potrf, sygst = get_lapack_funcs(("potrf", "sygst"), dtype=np.float64)
    diagonal = a.diagonal().copy()
    factor, failed = potrf(a, lower=1, clean=0, overwrite_a=1)
    if not failed:
        return sygst(b, factor, itype=2, lower=1, overwrite_a=1)[0]
    a = np.triu(a, 1)  # which is as it was
    a += a.T
    np.fill_diagonal(a, diagonal)
    values, vectors = torch.linalg.eigh(torch.from_numpy(a))
    root = (values.clamp(min=0).sqrt()[:, None] * vectors.T).numpy()
    return root @ b @ root.T


def _transport_energies(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x'Tx and y'T^{-1}y for each centred row, T the transport map from the Gaussian of x to that
    of y.

    With x / sqrt(n - 1) = Q A, A'A = S_1, and C = A y' / sqrt(m - 1) = U S V', the map is T = A^+
    U S U' A^+'; hence x'Tx / (n - 1) are the squares of Q U weighted by S, and y'T^{-1}y / (m - 1)
    those of C'U divided by S.
    """
    coordinates, factor = _coordinates(x)
    cross = factor @ y.T / math.sqrt(len(y) - 1)
    squared, u = np.linalg.eigh(cross @ cross.T)
    keep = squared > squared[-1] * 1e-13
    singular, u = np.sqrt(squared[keep]), u[:, keep]
    forward = (len(x) - 1) * np.square(coordinates @ u) @ singular
    backward = (len(y) - 1) * np.square(cross.T @ u) @ (1 / singular)
    return forward, backward


def _coordinates(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Q [N, R] and A [R, D] with x / sqrt(N - 1) = Q A and A'A the covariance."""
    rows = x / math.sqrt(len(x) - 1)
    if len(x) <= x.shape[1]:
        return np.eye(len(x)), rows
    values, vectors = np.linalg.eigh(rows.T @ rows)
    keep = values > values[-1] * 1e-13
    deviations, vectors = np.sqrt(values[keep]), vectors[:, keep]
    return rows @ (vectors / deviations), deviations[:, None] * vectors.T
