"""Accuracy of a k-nearest-neighbour classifier on features."""

from __future__ import annotations

import numpy as np

from hfgen.evaluation.arrays import Array, as_pair
from hfgen.evaluation.metrics.linear_probe import as_labels
from hfgen.evaluation.metrics.neighbours import nearest


def knn_accuracy(
    train: Array, train_labels: Array, test: Array, test_labels: Array, *, k: int = 10
) -> float:
    """Share of test samples that ``knn_classes`` gives to their class.

    Args:
        train, test: [N, D], [M, D]; Euclidean distance.
        train_labels, test_labels: integers [N], [M].
        k: neighbours that vote.
    """
    z = as_pair(train, test, ("train", "test"), at_least=1)[1]
    w = as_labels(test_labels, len(z))
    return float((knn_classes(train, train_labels, test, k=k) == w).mean())


def knn_classes(train: Array, train_labels: Array, test: Array, *, k: int = 10) -> np.ndarray:
    """The class [M] that is the most frequent one of the ``k`` nearest training samples.

    Ties go to the smaller label, as in scikit-learn's KNeighborsClassifier.

    Args:
        train, test: [N, D], [M, D]; Euclidean distance.
        train_labels: integers [N].
        k: neighbours that vote.
    """
    x, z = as_pair(train, test, ("train", "test"), at_least=1)
    classes, targets = np.unique(as_labels(train_labels, len(x)), return_inverse=True)
    votes = targets[nearest(z, x, k).indices.cpu().numpy()]
    counts = np.stack([(votes == c).sum(1) for c in range(len(classes))], axis=1)
    return classes[counts.argmax(1)]
