"""Linear probe (Alain & Bengio 2017): how well classes can be read off features by a plane."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from hfgen.errors import HfgenError
from hfgen.evaluation.arrays import Array, as_double


def linear_probe(
    train: Array, train_labels: Array, test: Array, test_labels: Array, *, l2: float = 1.0
) -> float:
    """Test accuracy of multinomial logistic regression on standardised features.

    Minimises sum of cross-entropies + l2/2 |W|^2 (no penalty on the intercept) by L-BFGS, which is
    scikit-learn's LogisticRegression with C = 1 / l2.

    Args:
        train, test: [N, D], [M, D].
        train_labels, test_labels: integers [N], [M].
    """
    x, z = as_double(train, "train"), as_double(test, "test", at_least=1)
    y, w = as_labels(train_labels, len(x)), as_labels(test_labels, len(z))
    mean, std = x.mean(0), x.std(0)
    std[std == 0] = 1
    x, z = (x - mean) / std, (z - mean) / std
    classes, targets = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise HfgenError(f"train_labels: {len(classes)} class; a probe needs at least 2")
    weights = _fit(x, targets, len(classes), l2)
    predicted = classes[(z @ weights[:-1] + weights[-1]).argmax(1)]
    return float((predicted == w).mean())


def as_labels(labels: Array, count: int) -> np.ndarray:
    """Integer labels [count]; HfgenError otherwise."""
    y = np.asarray(labels)
    if y.shape != (count,) or not np.array_equal(y, y.astype(np.int64)):
        raise HfgenError(f"labels: expected {count} integers, got an array {y.shape} of {y.dtype}")
    return y.astype(np.int64)


def _fit(x: np.ndarray, targets: np.ndarray, classes: int, l2: float) -> np.ndarray:
    """Weights [D + 1, C], the intercept last."""
    shape = (x.shape[1] + 1, classes)
    rows = np.arange(len(x))

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(shape)
        logits = x @ weights[:-1] + weights[-1]
        log_p = logits - logsumexp(logits, axis=1, keepdims=True)
        error = np.exp(log_p)
        error[rows, targets] -= 1
        slope = np.vstack([x.T @ error + l2 * weights[:-1], error.sum(0)])
        value = -log_p[rows, targets].sum() + 0.5 * l2 * np.square(weights[:-1]).sum()
        return float(value), slope.ravel()

    found = minimize(
        loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 1000}
    )
    return found.x.reshape(shape)
