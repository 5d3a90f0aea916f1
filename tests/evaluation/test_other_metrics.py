"""Inception score, Vendi, MIFID, C_T, PSNR, SSIM: closed forms, peers, directions, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hfgen.errors import HfgenError
from hfgen.evaluation.metrics import (
    c_t,
    frechet_distance,
    inception_score,
    memorisation_distance,
    mifid,
    psnr,
    ssim,
    vendi_score,
)
from hfgen.evaluation.metrics.lpips import LPIPS, load_lpips
from tests.evaluation.peers import torch_fidelity


def normal(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)) + shift


def test_inception_score_agrees_with_torch_fidelity():
    logits = normal(505, 30, 0) * 3
    theirs = torch_fidelity("metric_isc").isc_features_to_metric(torch.from_numpy(logits))
    ours = inception_score(logits)
    assert ours.value == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    spread = theirs["inception_score_std"] / math.sqrt(10)
    assert ours.standard_error == pytest.approx(spread, rel=1e-6)


def test_inception_score_of_perfect_and_of_constant_predictions():
    certain = 1000 * np.eye(10)[np.arange(1000) % 10]
    assert inception_score(certain, splits=1).value == pytest.approx(10)
    assert inception_score(np.ones((100, 10))).value == pytest.approx(1)
    with pytest.raises(HfgenError, match="5 samples, but at least 10"):
        inception_score(normal(5, 3, 0))


def test_vendi_counts_distinct_samples():
    assert vendi_score(np.ones((50, 8))) == pytest.approx(1)
    assert vendi_score(np.eye(12)) == pytest.approx(12)
    assert vendi_score(np.eye(12)[np.arange(120) % 5], order=1) == pytest.approx(5)
    assert vendi_score(np.eye(12)[np.arange(120) % 5], order=2) == pytest.approx(5)
    assert vendi_score(np.eye(4)[[0, 0, 1, 2]], order=math.inf) == pytest.approx(2)


def test_vendi_from_either_gram_matrix_is_the_same():
    """More features than samples and the reverse: the definition on K / N."""
    for n, d in ((20, 60), (60, 20)):
        x = normal(n, d, 0)
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        p = np.linalg.eigvalsh(unit @ unit.T / n).clip(1e-300)
        assert vendi_score(x) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-9)


def test_mifid_punishes_copies():
    train, fresh = normal(300, 16, 0), normal(300, 16, 1)
    copies = train + 1e-3 * normal(300, 16, 2)
    cosine = (train @ fresh.T) / np.outer(*(np.linalg.norm(v, axis=1) for v in (train, fresh)))
    expected = (1 - np.abs(cosine).max(0)).mean()
    assert memorisation_distance(fresh, train) == pytest.approx(expected)
    assert mifid(fresh, train) == pytest.approx(frechet_distance(fresh, train))
    assert mifid(copies, train) > 100 * frechet_distance(copies, train)


def test_c_t_of_fresh_copied_and_distant_samples():
    train, test = normal(500, 8, 0), normal(300, 8, 1)
    fresh = [c_t(train, test, normal(300, 8, s)).statistic for s in range(2, 12)]
    assert abs(np.mean(fresh)) < 3
    assert c_t(train, test, train[:300] + 0.05 * normal(300, 8, 3)).statistic < -3
    assert c_t(train, test, 2 * normal(300, 8, 3)).statistic > 3
    assert c_t(train, test, normal(300, 8, 3), cells=3).cells == 3
    with pytest.raises(HfgenError, match="tau: no cell holds 20"):
        c_t(train, test, normal(10, 8, 3))


def test_psnr_is_its_formula():
    x = torch.zeros(2, 1, 8, 8)
    y = torch.stack([torch.full((1, 8, 8), 0.2), torch.zeros(1, 8, 8)])
    values = psnr(x, y)
    assert values[0].item() == pytest.approx(10 * math.log10(4 / 0.04))
    assert values[1].item() == math.inf


def test_ssim_is_its_formula_window_by_window():
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(1, 2, 14, 13, generator=draw) * 2 - 1
    y = (x + 0.3 * torch.randn(x.shape, generator=draw)).clamp(-1, 1)
    g = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = np.outer(g, g) / np.outer(g, g).sum()
    values = []
    for c in range(2):
        # 8-bit-like scale: intensities from 0 to 2, so L = 2
        a, b = ((v[0, c].double().numpy() + 1) for v in (x, y))
        for i in range(4):
            for j in range(3):
                p, q = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                cov = (window * (p - mp) * (q - mq)).sum()
                k1, k2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
                numerator = (2 * mp * mq + k1) * (2 * cov + k2)
                values.append(numerator / ((mp**2 + mq**2 + k1) * (vp + vq + k2)))
    assert ssim(x, y).item() == pytest.approx(np.mean(values), rel=1e-9)
    assert ssim(x, x).item() == pytest.approx(1)


def test_lpips_on_given_weights(tmp_path):
    """Zero between equal images, symmetric, grows with the distortion; weights by file."""
    torch.manual_seed(0)
    network = LPIPS()
    for name, value in network.named_parameters():
        if name.startswith("lin"):
            torch.nn.init.uniform_(value, 0, 1)
    torch.save(network.state_dict(), tmp_path / "lpips.pth")
    loaded = load_lpips(tmp_path / "lpips.pth")
    x = torch.rand(3, 3, 64, 64) * 2 - 1
    noise = torch.randn(x.shape)
    near, far = (loaded(x, (x + s * noise).clamp(-1, 1)) for s in (0.05, 0.5))
    assert loaded(x, x).abs().max() == 0
    assert (near < far).all()
    assert torch.allclose(loaded(x, x + noise), loaded(x + noise, x))
    with pytest.raises(HfgenError, match="no weights at hand.*--weights lpips=PATH"):
        load_lpips(None)
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(HfgenError, match="lacks 14 tensors, first features.0.bias"):
        load_lpips(tmp_path / "other.pth")


def test_bad_input():
    x = torch.zeros(2, 1, 8, 8)
    with pytest.raises(HfgenError, match="does not match images"):
        psnr(x, x[:1])
    with pytest.raises(HfgenError, match="smaller than the window 11"):
        ssim(x, x)
    with pytest.raises(HfgenError, match="reconstructions: NaN"):
        psnr(x, x * math.nan)
    with pytest.raises(HfgenError, match="zero row"):
        vendi_score(np.zeros((3, 3)))
    with pytest.raises(HfgenError, match="order: 0"):
        vendi_score(np.ones((3, 3)), order=0)
