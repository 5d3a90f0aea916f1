"""Disentanglement, completeness, informativeness (Eastwood & Williams 2018, section 2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hfgen.errors import HfgenError
from hfgen.evaluation.arrays import Array
from hfgen.evaluation.metrics.factors import as_factors


@dataclass(frozen=True)
class DCI:
    """Each in [0, 1]; informativeness is the mean test accuracy of the predictors."""

    disentanglement: float
    completeness: float
    informativeness: float


def dci(
    latents: Array, factors: Array, *, train_share: float = 2 / 3, trees: int = 20, seed: int = 0
) -> DCI:
    """Scores of the importances of latents for factors, by random forests as in the paper.

    Args:
        latents: posterior means [N, D]; 10 000 to fit and 5 000 to test are usual.
        factors: integer levels [N, K], K >= 2.
        train_share: of the samples, the first ones.
    Raises:
        HfgenError: scikit-learn is not installed.
    """
    z, v = as_factors(latents, factors)
    importance, accuracy = _importances(z, v, int(len(z) * train_share), trees, seed)
    by_latent, by_factor = importance.sum(1), importance.sum(0)
    total = importance.sum()
    separate = 1 - _entropies(importance, base=importance.shape[1])
    complete = 1 - _entropies(importance.T, base=importance.shape[0])
    return DCI(
        disentanglement=float(separate @ by_latent / total),
        completeness=float(complete @ by_factor / total),
        informativeness=accuracy,
    )


def _importances(
    z: np.ndarray, v: np.ndarray, split: int, trees: int, seed: int
) -> tuple[np.ndarray, float]:
    """Importance of each latent for each factor [D, K], and mean test accuracy."""
    try:
        from sklearn.ensemble import RandomForestClassifier
    except ImportError as error:
        raise HfgenError("dci: needs scikit-learn; pip install scikit-learn") from error
    columns, accuracies = [], []
    for factor in v.T:
        # every split may choose any latent: else a useless one gets importance by lack of choice
        forest = RandomForestClassifier(trees, max_features=1.0, random_state=seed)  # pyright: ignore[reportArgumentType]
        forest.fit(z[:split], factor[:split])
        columns.append(forest.feature_importances_)
        accuracies.append(forest.score(z[split:], factor[split:]))
    return np.stack(columns, axis=1), float(np.mean(accuracies))


def _entropies(weights: np.ndarray, base: int) -> np.ndarray:
    """Entropy of each normalised row, in units of ln ``base``; rows of zeros count as uniform."""
    if base < 2:
        raise HfgenError("dci: needs at least 2 latents and 2 factors")
    sums = weights.sum(1, keepdims=True)
    p = np.where(sums > 0, weights / np.where(sums > 0, sums, 1), 1 / weights.shape[1])
    logs = np.log(np.where(p > 0, p, 1))
    return -(p * logs).sum(1) / np.log(base)
