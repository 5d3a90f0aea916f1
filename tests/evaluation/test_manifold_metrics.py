"""Neighbours and balls: exactly what the peers compute, ties included, for any block size."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from prdc import compute_prdc
from scipy.spatial.distance import cdist

from hfgen.errors import HfgenError
from hfgen.evaluation.metrics import (
    authpct,
    density_coverage,
    nearest,
    nearest_others,
    prdc,
    precision_recall,
)
from tests.evaluation.peers import torch_fidelity

NEIGHBOURS = sys.modules["hfgen.evaluation.metrics.neighbours"]


def continuous(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 32)) + shift


def lattice(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Integer points: distances tie exactly, so that < and <= differ."""
    return np.random.default_rng(seed).integers(0, 3, size=(n, 7)).astype(float)


def repeated(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return continuous(6, seed)[np.arange(n) % 6]


KINDS = [continuous, lattice, repeated]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 5])
def test_strict_balls_equal_prdc(kind, k, capsys):
    real, fake = kind(300, 0), kind(250, 1, 0.2)
    theirs = compute_prdc(real, fake, k)
    ours = prdc(real, fake, k)
    assert {name: getattr(ours, name) for name in theirs} == pytest.approx(theirs, rel=1e-12)
    strict = precision_recall(real, fake, k, closed=False)
    assert (strict.precision, strict.recall) == (theirs["precision"], theirs["recall"])
    balls = density_coverage(real, fake, k)
    assert (balls.density, balls.coverage) == (ours.density, ours.coverage)


@pytest.mark.parametrize("kind", [continuous, lattice])
def test_closed_balls_equal_torch_fidelity(kind):
    peer = torch_fidelity("metric_prc")
    real, fake = kind(300, 0), kind(250, 1, 0.2)
    theirs = peer.prc_features_to_metric(
        torch.from_numpy(fake),
        torch.from_numpy(real),
        prc_neighborhood=3,
        prc_batch_size=10_000,
        save_cpu_ram=False,
        verbose=False,
    )
    ours = precision_recall(real, fake)
    assert ours.precision == pytest.approx(theirs["precision"], abs=1e-7)  # theirs is float32
    assert ours.recall == pytest.approx(theirs["recall"], abs=1e-7)


def test_the_comparison_matters_on_ties():
    real, fake = lattice(300, 0), lattice(250, 1)
    closed, strict = (precision_recall(real, fake, closed=c) for c in (True, False))
    assert closed.precision > strict.precision


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_neighbours_are_exact(kind, dtype):
    x, y = kind(300, 0).astype(dtype), kind(200, 1).astype(dtype)
    expected = np.sort(cdist(y.astype(float), x.astype(float)), axis=1)[:, :4]
    found = nearest(torch.from_numpy(y), torch.from_numpy(x), 4)
    assert np.allclose(found.distances, expected, rtol=1e-12, atol=1e-12)
    between = cdist(x.astype(float), x.astype(float))
    np.fill_diagonal(between, np.inf)
    others = nearest_others(torch.from_numpy(x), 4)
    assert np.allclose(others.distances, np.sort(between, 1)[:, :4], rtol=1e-12, atol=1e-12)
    chosen = np.take_along_axis(between, others.indices.numpy(), axis=1)
    assert np.allclose(chosen, others.distances)


def test_exact_where_float32_products_cannot_tell():
    """Hundreds of points at nearly one distance, far from the origin of an outlier."""
    draw = np.random.default_rng(0)
    points = draw.normal(size=(400, 16))
    points = points / np.linalg.norm(points, axis=1, keepdims=True)
    points *= 1 + 1e-9 * draw.normal(size=(400, 1))
    points = np.concatenate([np.zeros((1, 16)), points, np.full((1, 16), 1e4)])
    expected = np.sort(np.linalg.norm(points[1:], axis=1))[:5]
    found = nearest_others(torch.from_numpy(points), 5).distances[0]
    assert np.allclose(found, expected, rtol=1e-13)


@pytest.mark.parametrize("block", [32, 100, 4096])
def test_any_block_size_gives_the_same(block, monkeypatch):
    real, fake = continuous(260, 0), continuous(210, 1, 0.1)
    expected = prdc(real, fake)
    monkeypatch.setattr(NEIGHBOURS, "BLOCK", block)
    assert prdc(real, fake) == expected


def test_authpct_is_its_definition():
    train, fake = continuous(200, 0), np.concatenate([continuous(50, 1), continuous(200, 0)[:50]])
    to_train = cdist(fake, train)
    between = cdist(train, train)
    np.fill_diagonal(between, np.inf)
    nearest_train = to_train.argmin(1)
    expected = 100 * (between.min(1)[nearest_train] < to_train.min(1)).mean()
    assert authpct(train, fake) == expected
    assert authpct(train, train[:20]) == 0


def test_collapse_and_noise_are_told_apart():
    real = continuous(400, 0)
    collapsed = real[np.arange(400) % 4] + 1e-3 * continuous(400, 2)
    noisy = continuous(400, 1) * 3
    assert precision_recall(real, collapsed).precision > 0.99
    assert precision_recall(real, collapsed).recall < 0.1
    assert precision_recall(real, noisy).precision < 0.1


@pytest.mark.parametrize(
    ("real", "fake", "k", "says"),
    [
        (3, 20, 3, "k: 3 neighbours asked, but there are 2 other samples"),
        (20, 3, 3, "k: 3 neighbours asked, but there are 2 other samples"),
        (20, 20, 0, "k: 0 neighbours"),
        (20, 1, 3, "fake: 1 samples, but at least 2"),
    ],
)
def test_bad_input(real, fake, k, says):
    with pytest.raises(HfgenError, match=says):
        precision_recall(continuous(real, 0), continuous(fake, 1), k)


def test_constant_features_have_balls_of_radius_zero():
    """All distances are 0: in the closed ball, outside of the open one."""
    real = fake = np.ones((20, 4))
    assert precision_recall(real, fake).precision == 1
    assert density_coverage(real, fake).coverage == 0
