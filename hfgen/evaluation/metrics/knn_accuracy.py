"""Accuracy of a k-nearest-neighbour classifier on features."""

from __future__ import annotations

import numpy as np

from hfgen.evaluation.arrays import Array, as_pair
from hfgen.evaluation.metrics.linear_probe import as_labels
from hfgen.evaluation.metrics.neighbours import nearest


def knn_accuracy(
    train: Array, train_labels: Array, test: Array, test_labels: Array, *, k: int = 10
) -> float:
    """Share of test samples whose class is the most frequent one of their ``k`` nearest neighbours.

    Ties go to the smaller label, as in scikit-learn's KNeighborsClassifier.

    Args:
        train, test: [N, D], [M, D]; Euclidean distance.
        train_labels, test_labels: integers [N], [M].
    """
    x, z = as_pair(train, test, ("train", "test"), at_least=1)
    y, w = as_labels(train_labels, len(x)), as_labels(test_labels, len(z))
    classes, targets = np.unique(y, return_inverse=True)
    votes = targets[nearest(z, x, k).indices.cpu().numpy()]
    counts = np.stack([(votes == c).sum(1) for c in range(len(classes))], axis=1)
    return float((classes[counts.argmax(1)] == w).mean())
