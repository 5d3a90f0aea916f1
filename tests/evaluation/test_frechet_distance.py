"""The Frechet distance against peers, closed forms and its own laws."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hfgen.errors import HfgenError
from hfgen.evaluation.metrics import (
    frechet_distance,
    frechet_distance_infinity,
    frechet_distance_with_error,
)
from hfgen.evaluation.moments import Moments
from tests.evaluation.peers import torch_fidelity


def correlated(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    mix = np.random.default_rng(7).normal(size=(d, d)) / np.sqrt(d)
    return np.maximum(draw.normal(size=(n, d)) @ mix + 0.3 + shift, 0)


def by_sqrtm(a: np.ndarray, b: np.ndarray) -> float:
    s1, s2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(s1 @ s2).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * root))


def test_agrees_with_torch_fidelity_and_sqrtm():
    peer = torch_fidelity("metric_fid")
    a, b = correlated(400, 96, 0), correlated(500, 96, 1, 0.1)
    statistics = [peer.fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    theirs = peer.fid_statistics_to_metric(*statistics, verbose=False)
    ours = frechet_distance(a, b)
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    assert ours == pytest.approx(by_sqrtm(a, b), rel=1e-6)


def test_of_known_gaussians():
    """Diagonal covariances: |m1 - m2|^2 + sum (s1 - s2)^2 (Dowson & Landau 1982)."""
    draw = np.random.default_rng(0)
    m1, m2 = draw.normal(size=(2, 20))
    s1, s2 = draw.uniform(0.1, 2, size=(2, 20))
    a = Moments(11, m1, np.diag(s1**2) * 10)
    b = Moments(21, m2, np.diag(s2**2) * 20)
    expected = ((m1 - m2) ** 2).sum() + ((s1 - s2) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [10, 40, 64, 65, 300], ids=lambda n: f"n={n},d=64")
def test_of_a_scaled_copy(n):
    """y = a x has F = (1 - a)^2 (|mu|^2 + tr S), for fewer samples than features as well."""
    x = correlated(n, 64, 3)
    expected = 0.3**2 * ((x.mean(0) ** 2).sum() + x.var(0, ddof=1).sum())
    assert frechet_distance(x, 0.7 * x) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(("n", "m"), [(30, 200), (200, 30), (30, 40), (200, 150)])
def test_features_and_moments_agree_for_any_counts(n, m):
    a, b = correlated(n, 64, 0), correlated(m, 64, 1)
    mixed = [frechet_distance(x, y) for x in (a, Moments.of(a)) for y in (b, Moments.of(b))]
    assert np.ptp(mixed) < 1e-6 * mixed[0]


@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, 40), d=st.integers(1, 30), seed=st.integers(0, 1000))
def test_zero_on_itself_symmetric_and_rotation_invariant(n, d, seed):
    draw = np.random.default_rng(seed)
    a, b = draw.normal(size=(n, d)), draw.normal(size=(n + 1, d))
    q = np.linalg.qr(draw.normal(size=(d, d)))[0]
    scale = np.trace(np.atleast_2d(np.cov(a, rowvar=False))) + 1
    assert abs(frechet_distance(a, a)) < 1e-6 * scale
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), abs=1e-6 * scale)
    rotated = frechet_distance(a @ q, b @ q)
    assert rotated == pytest.approx(frechet_distance(a, b), abs=1e-6 * scale)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("rank", [1, 9, 16], ids=lambda rank: f"rank {rank} of 16")
def test_of_singular_covariances(rank, order):
    """Neither the features nor the moments that are given change."""
    draw = np.random.default_rng(0)
    a, b = (draw.normal(size=(60, rank)) @ draw.normal(size=(rank, 16)) + 1 for _ in range(2))
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    roots = [scipy.linalg.sqrtm(c + 1e-14 * np.eye(16)).real for c in covariances]
    cross = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(sum(covariances)) - 2 * cross
    moments = [
        Moments(60, x.mean(0), np.array(59 * c, order=order))
        for x, c in zip((a, b), covariances, strict=True)
    ]
    kept = [x.copy() for x in (a, b, *(m.scatter for m in moments))]
    for pair in ((a, b), moments):
        assert frechet_distance(*pair) == pytest.approx(expected, rel=1e-5)
    for x, before in zip((a, b, *(m.scatter for m in moments)), kept, strict=True):
        assert np.array_equal(x, before)


def test_of_constant_features():
    a, b = np.ones((50, 8)), np.full((60, 8), 3.0)
    assert frechet_distance(a, b) == pytest.approx(8 * 4)


@pytest.mark.parametrize(("n", "d"), [(400, 6), (30, 40)])
def test_standard_error_is_that_of_repetition(n, d):
    """Against the spread over independent draws; nothing but repetition is assumed."""
    reference = correlated(3000, d, 100, 0.2)
    found = [frechet_distance_with_error(correlated(n, d, s), reference) for s in range(150)]
    spread = np.std([f.value for f in found], ddof=1)
    claimed = np.sqrt(np.mean([f.standard_error**2 for f in found]))
    assert claimed == pytest.approx(spread, rel=0.25)


def test_standard_error_leaves_a_fixed_reference_out():
    a, b = correlated(300, 10, 0), correlated(300, 10, 1, 0.1)
    both = frechet_distance_with_error(a, b)
    fixed = frechet_distance_with_error(a, b, fixed=True)
    assert fixed.value == both.value == frechet_distance(a, b)
    assert 0 < fixed.standard_error < both.standard_error


def test_infinity_removes_the_bias():
    """Two sets of one distribution: the true distance is 0."""
    a, b = correlated(4000, 64, 0), Moments.of(correlated(200_000, 64, 1))
    extrapolated = frechet_distance_infinity(a, b, smallest=400)
    assert abs(extrapolated.value) < 0.3 * frechet_distance(a, b)
    assert abs(extrapolated.value) < 4 * extrapolated.standard_error + 0.002


def test_moments_merge_to_those_of_the_whole():
    x = correlated(500, 24, 0) + 100
    whole = Moments.of(x)
    for size in (1, 7, 64):
        parts = [Moments.of(x[i : i + size]) for i in range(0, len(x), size)]
        merged = parts[0]
        for part in parts[1:]:
            merged = merged.merge(part)
        assert merged.count == 500
        assert np.abs(merged.mean - whole.mean).max() <= 1e-9
        assert np.abs(merged.covariance - whole.covariance).max() <= 1e-9
        assert np.allclose(merged.covariance, np.cov(x, rowvar=False), atol=1e-9)


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        (np.ones((1, 4)), np.ones((5, 4)), "1 samples, but at least 2"),
        (np.ones((5, 4)), np.ones((5, 3)), "4 features per sample, second set 3"),
        (np.full((5, 4), np.nan), np.ones((5, 4)), "NaN or infinity in 5 rows"),
        (np.ones(5), np.ones((5, 4)), r"expected features of shape \[N, D\]"),
        ([[1.0]], np.ones((5, 4)), "expected a numpy array or torch tensor, got list"),
    ],
)
def test_bad_input(a, b, says):
    with pytest.raises(HfgenError, match=says):
        frechet_distance(a, b)


def test_infinity_needs_room():
    x = np.random.default_rng(0).normal(size=(100, 4))
    with pytest.raises(HfgenError, match="smallest: 5000 is not between 2 and N - 1 = 99"):
        frechet_distance_infinity(x, x)
