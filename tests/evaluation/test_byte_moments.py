"""Moments by products of bytes: exact where numbers fit, else as close as float32 rounds."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hfgen.evaluation.metrics import frechet_distance
from hfgen.evaluation.metrics.byte_moments import (
    ROWS,
    _digits,
    _steps,
    byte_moments,
    byte_moments_pay,
)
from hfgen.evaluation.moments import Moments
from tests.evaluation.peers import torch_fidelity

BYTES = sys.modules["hfgen.evaluation.metrics.byte_moments"]
FRECHET = sys.modules["hfgen.evaluation.metrics.frechet_distance"]


def correlated(n: int, d: int, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    mix = np.random.default_rng(7).normal(size=(d, d)) / np.sqrt(d)
    return np.maximum(draw.normal(size=(n, d)) @ mix + 0.2 + 0.05 * seed, 0).astype(np.float32)


def spikes(x: np.ndarray) -> np.ndarray:
    """Constant but for one row each: the farthest that a deviation can be from its mean square."""
    found = np.full_like(x, 0.3)
    found[np.arange(x.shape[1]), np.arange(x.shape[1])] = x.max()
    return found


KINDS = {
    "rectified": lambda x: x,
    "scales": lambda x: x * np.logspace(-12, 12, x.shape[1], dtype=np.float32),
    "far from zero": lambda x: x + 1000,
    "heavy tails": lambda x: np.tan(np.clip(x * 1.2, -1.57, 1.57)) ** 3,
    "one sided": lambda x: np.exp(4 * x),
    "one outlier": lambda x: np.vstack([x[:-1], 1e6 * x[-1:]]),
    "spikes": spikes,
    "two neighbouring floats": lambda x: np.where(x > 0.5, np.nextafter(np.float32(3), 4), 3),
    "half precision": lambda x: x.astype(np.float16),
}


@pytest.mark.parametrize("kind", KINDS)
def test_as_close_as_float32_rounds(kind, monkeypatch):
    """In several blocks of rows and tiles, the last of them smaller, with two constant columns."""
    monkeypatch.setattr(BYTES, "ROWS", 128)
    monkeypatch.setattr(BYTES, "TILE", 24)
    x = KINDS[kind](correlated(300, 70, 0)).astype(np.float32)
    x[:, 5], x[:, 60] = 0.7, -2e30
    found, exact = byte_moments(torch.from_numpy(x)), Moments.of(x.astype(np.float64))
    scale = np.sqrt(np.diag(exact.scatter))
    scale = np.maximum(np.outer(scale, scale), 1e-300)
    error = np.abs(found.scatter - exact.scatter) / scale
    varies = np.ptp(x, axis=0) > 0
    assert error[np.ix_(varies, varies)].max() < 1e-6
    assert error[np.ix_(varies, varies)].mean() < 3e-8
    assert not found.scatter[~varies].any() and not found.scatter[:, ~varies].any()
    assert (np.abs(found.scatter - found.scatter.T) <= 1e-12 * scale).all()
    assert found.count == 300 and np.allclose(found.mean, exact.mean, rtol=1e-12)


def test_whole_numbers_are_exact():
    draw = np.random.default_rng(0)
    x = draw.integers(-5000, 5000, size=(500, 30)) * 2 + 1
    found = byte_moments(torch.from_numpy(x.astype(np.float32)))
    exact = x.T @ x - np.outer(x.sum(0), x.sum(0)) / 500
    assert np.allclose(found.scatter, exact, rtol=1e-13, atol=1e-13 * exact.max())


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=40),
    integers=st.lists(st.integers(-(126 << 16), 126 << 16), min_size=2, max_size=40),
)
def test_three_bytes_are_the_rounded_number(values, integers):
    """Also on the edges between bytes."""
    edges = [126 << 16, -(126 << 16), 32639, 32640, -32896, -32897, 127, 128, -128, -129]
    for column in (values, integers + edges):
        x = torch.tensor(column, dtype=torch.float32)[:, None]
        centre, step = _steps(x.numpy())
        high, middle, low = _digits(x, centre, step)[:, 0].double()
        again = centre + step * (65536 * high + 256 * middle + low)
        rounding = float(step) + 2**-23 * float((x - centre).abs().max())
        assert float((again - x[:, 0].double()).abs().max()) <= rounding


def test_sums_of_products_fit_in_32_bits():
    assert 3 * ROWS * 128**2 < 2**31


def by_sqrtm(a: np.ndarray, b: np.ndarray) -> float:
    s1, s2 = (np.cov(x.astype(np.float64), rowvar=False) for x in (a, b))
    shift = a.mean(0, dtype=np.float64) - b.mean(0, dtype=np.float64)
    return float(shift @ shift + np.trace(s1 + s2 - 2 * scipy.linalg.sqrtm(s1 @ s2).real))


def test_frechet_distance_agrees_with_peers(monkeypatch):
    """Also where the processor would not choose this way."""
    monkeypatch.setattr(FRECHET, "byte_moments_pay", lambda x: x.dtype == torch.float32)
    a, b = correlated(900, 300, 0), correlated(800, 300, 1)
    ours = frechet_distance(a, b)
    peer = torch_fidelity("metric_fid")
    statistics = [peer.fid_features_to_statistics(torch.from_numpy(x).double()) for x in (a, b)]
    theirs = peer.fid_statistics_to_metric(*statistics, verbose=False)
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-7)
    assert ours == pytest.approx(by_sqrtm(a, b), rel=1e-7)
    assert ours == pytest.approx(frechet_distance(a.astype(np.float64), b), rel=1e-7)
    assert ours == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert abs(frechet_distance(a, a)) < 1e-9 * np.square(a).sum(1).mean()
    with monkeypatch.context() as without:
        without.setattr(FRECHET, "byte_moments_pay", lambda x: False)
        assert ours == pytest.approx(frechet_distance(a, b), rel=1e-7)


def test_it_is_chosen_for_wide_float32_features_on_such_a_processor():
    has = torch.cpu.get_capabilities().get("amx_int8", False)
    assert byte_moments_pay(torch.zeros(2, 2048)) == has
    assert not byte_moments_pay(torch.zeros(2, 2048, dtype=torch.float64))
    assert not byte_moments_pay(torch.zeros(2, 64))
