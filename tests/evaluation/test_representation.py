"""Probes against scikit-learn; disentanglement scores on codes whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import hadamard
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from hfgen.errors import HfgenError
from hfgen.evaluation.metrics import (
    active_units,
    class_accuracy,
    dci,
    factor_vae_score,
    knn_accuracy,
    linear_probe,
    mig,
    sap,
)


def clusters(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(4, 6))
    labels = draw.integers(0, 4, n)
    return centres[labels] + 0.9 * draw.normal(size=(n, 6)), labels


def full_grid() -> np.ndarray:
    """Every combination of three factors, repeated: they are exactly independent."""
    levels = np.stack(np.meshgrid(*map(np.arange, (3, 4, 5)), indexing="ij"), axis=-1)
    return np.tile(levels.reshape(-1, 3), (20, 1))


def perfect() -> tuple[np.ndarray, np.ndarray]:
    """Each factor in a latent of its own, and a latent of noise, in another order."""
    factors = full_grid()
    draw = np.random.default_rng(0)
    noise = draw.permutation(np.tile(np.arange(60), 20))
    order = draw.permutation(len(factors))
    latents = np.stack([factors[:, 2], noise / 10, factors[:, 0], factors[:, 1]], axis=1)
    return latents[order].astype(float), factors[order]


def entangled() -> tuple[np.ndarray, np.ndarray]:
    """The same information, every latent an equal mix of all."""
    latents, factors = perfect()
    scaled = (latents - latents.mean(0)) / latents.std(0)
    return scaled @ hadamard(4) / 2, factors


SCORES = {
    "mig": mig,
    "sap": sap,
    "factor_vae": lambda z, v: factor_vae_score(z, v, train_votes=300, test_votes=200),
    "dci_disentanglement": lambda z, v: dci(z, v).disentanglement,
    "dci_completeness": lambda z, v: dci(z, v).completeness,
}


def test_linear_probe_is_logistic_regression():
    (x, y), (z, w) = clusters(300, 0), clusters(400, 1)
    scaler = StandardScaler().fit(x)
    peer = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000).fit(scaler.transform(x), y)
    expected = peer.score(scaler.transform(z), w)
    assert linear_probe(x, y, z, w) == pytest.approx(expected, abs=1 / 400)
    assert 0.5 < expected < 1
    share = class_accuracy(x, y, z, w, l2=1.0)
    assert share.value == linear_probe(x, y, z, w)
    assert share.standard_error == pytest.approx((share.value * (1 - share.value) / 400) ** 0.5)


@pytest.mark.parametrize("k", [1, 4, 10])
def test_knn_accuracy_is_the_classifier_of_scikit_learn(k):
    (x, y), (z, w) = clusters(200, 0), clusters(150, 1)
    expected = KNeighborsClassifier(k, algorithm="brute").fit(x, y).score(z, w)
    assert knn_accuracy(x, y, z, w, k=k) == expected


def test_active_units_counts_dimensions_that_move():
    draw = np.random.default_rng(0)
    assert active_units(draw.normal(size=(2000, 5)) * [1, 0.2, 0.05, 0.11, 0]) == 3


@pytest.mark.parametrize("score", SCORES)
def test_perfect_codes_score_one_and_entangled_ones_less(score):
    best = SCORES[score](*perfect())
    assert best >= 0.9
    assert SCORES[score](*entangled()) < 0.8 * best


def test_mig_and_the_vote_are_exact_on_perfect_codes():
    latents, factors = perfect()
    without_noise = latents[:, [0, 2, 3]]
    assert mig(without_noise, factors) == pytest.approx(1)
    assert SCORES["factor_vae"](without_noise, factors) == 1


def test_the_vote_normalises_variances_and_leaves_out_dead_dimensions():
    latents, factors = perfect()
    codes = latents[:, [0, 2, 3]] * [5.0, 1.0, 2.0] + [1.0, -7.0, 0.0]
    dead = 1e-4 * np.random.default_rng(0).normal(size=(len(codes), 2))
    padded = np.concatenate([dead, codes, np.zeros((len(codes), 1))], axis=1)
    assert SCORES["factor_vae"](padded, factors) == 1


def test_the_vote_names_one_factor_for_each_latent():
    """A code of two of three factors cannot exceed 2 / 3, however clean; see docs/vae.md."""
    latents, factors = perfect()
    assert SCORES["factor_vae"](latents[:, [0, 2]], factors) == pytest.approx(2 / 3, abs=0.08)


def test_the_vote_is_a_guess_on_codes_that_mix_everything_and_on_noise():
    guess = 1 / 3  # three factors
    assert SCORES["factor_vae"](*entangled()) == pytest.approx(guess, abs=0.15)
    latents, factors = perfect()
    noise = np.random.default_rng(0).permutation(latents)
    assert SCORES["factor_vae"](noise, factors) == pytest.approx(guess, abs=0.12)


def test_dci_informativeness_survives_entanglement_and_noise_does_not():
    latents, factors = perfect()
    assert dci(latents, factors).informativeness == 1
    shuffled = np.random.default_rng(0).permutation(latents)
    assert dci(shuffled, factors).informativeness < 0.5


def test_sap_of_categories_uses_a_classifier():
    """A latent that orders the levels of a category wrongly explains it, but not linearly."""
    draw = np.random.default_rng(0)
    category = draw.integers(0, 3, 600)
    other = draw.integers(0, 4, 600)
    wrong_order = np.array([0.0, 2.0, 1.0])[category] + 0.01 * draw.normal(size=600)
    latents = np.stack([wrong_order, other.astype(float)], axis=1)
    factors = np.stack([category, other], axis=1)
    assert sap(latents, factors, categorical=[0]) > sap(latents, factors) + 0.1


@pytest.mark.parametrize(
    ("latents", "factors", "says"),
    [
        (np.ones((10, 3)), np.ones((9, 2)), r"factors: expected \[10, K\]"),
        (np.ones((10, 3)), np.full((10, 2), 0.5), "levels must be integers"),
        (np.ones((10, 3)), np.zeros((10, 2)), "column 0 has a single level"),
        (np.ones((10, 1)), np.arange(20).reshape(10, 2), "needs at least 2 dimensions"),
    ],
)
def test_bad_input(latents, factors, says):
    with pytest.raises(HfgenError, match=says):
        mig(latents, factors)


def test_labels_must_fit():
    x = np.random.default_rng(0).normal(size=(10, 2))
    with pytest.raises(HfgenError, match="labels: expected 10 integers"):
        linear_probe(x, np.zeros(9), x, np.zeros(10))
    with pytest.raises(HfgenError, match="1 class; a probe needs at least 2"):
        linear_probe(x, np.zeros(10), x, np.zeros(10))
