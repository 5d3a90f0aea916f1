"""KID against torch-fidelity, the plain formula and brute-force leave-one-out."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from hfgen.errors import HfgenError
from hfgen.evaluation.metrics import cmmd, kernel_distance, kernel_distance_subsets
from tests.evaluation.peers import torch_fidelity


def features(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.abs(np.random.default_rng(seed).normal(size=(n, 48))) + shift


def plain(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate as its definition reads."""
    n, m, d = len(x), len(y), x.shape[1]
    xx, yy, xy = ((a @ b.T / d + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return within - 2 * xy.mean()


def test_subsets_agree_with_torch_fidelity():
    peer = torch_fidelity("metric_kid")
    x, y = features(300, 0), features(260, 1, 0.05)
    theirs = peer.kid_features_to_metric(
        torch.from_numpy(x),
        torch.from_numpy(y),
        kid_subsets=20,
        kid_subset_size=100,
        rng_seed=2020,
        verbose=False,
    )
    ours = kernel_distance_subsets(x, y, subsets=20, subset_size=100)
    assert ours.value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)
    spread = theirs["kernel_inception_distance_std"] / np.sqrt(20)
    assert ours.standard_error == pytest.approx(spread, rel=1e-6)


@pytest.mark.parametrize("block", [16, 40, 100, 5000])
def test_all_pairs_is_the_definition_for_any_block(block, monkeypatch):
    module = sys.modules["hfgen.evaluation.metrics.kernel_distance"]
    monkeypatch.setattr(module, "BLOCK", block)
    x, y = features(150, 0), features(130, 1, 0.05)
    assert kernel_distance(x, y).value == pytest.approx(plain(x, y), rel=1e-9)


def test_jackknife_is_leave_one_out():
    x, y = features(30, 0), features(25, 1, 0.05)
    variance = 0.0
    for which, n in ((0, 30), (1, 25)):
        left = [
            plain(np.delete(x, i, 0), y) if which == 0 else plain(x, np.delete(y, i, 0))
            for i in range(n)
        ]
        variance += (n - 1) / n * np.square(left - np.mean(left)).sum()
    assert kernel_distance(x, y).standard_error == pytest.approx(np.sqrt(variance), rel=1e-6)


def test_float32_features_keep_small_differences():
    """Large means and a small difference: plain float32 kernels would lose it."""
    x, y = (features(400, s, 5.0).astype(np.float32) for s in (0, 1))
    exact = kernel_distance(x.astype(float), y.astype(float)).value
    kernel = float(((x[0].astype(float) @ y[0].astype(float)) / 48 + 1) ** 3)
    assert abs(kernel_distance(x, y).value - exact) < 1e-8 * kernel


def test_unbiased_on_equal_distributions():
    values = [kernel_distance(features(60, s), features(60, 1000 + s)) for s in range(100)]
    mean = np.mean([v.value for v in values])
    assert abs(mean) < 3 * np.std([v.value for v in values]) / 10


def test_cmmd_is_its_definition():
    x, y = features(70, 0) - 0.8, features(50, 1) - 0.7
    a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    gamma = 1 / 200

    def mean(p, q):
        return np.exp(-gamma * ((p[:, None] - q[None]) ** 2).sum(2)).mean()

    assert cmmd(x, y) == pytest.approx(1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b)), rel=1e-8)
    assert cmmd(x, x) == pytest.approx(0, abs=1e-9)


def test_bad_input():
    x = features(50, 0)
    with pytest.raises(HfgenError, match="subset_size: 1000 is not between 2 and .* 50"):
        kernel_distance_subsets(x, x)
    with pytest.raises(HfgenError, match="2 samples, but at least 3"):
        kernel_distance(x[:2], x)
    with pytest.raises(HfgenError, match="zero row"):
        cmmd(np.zeros((4, 3)), np.ones((4, 3)))
