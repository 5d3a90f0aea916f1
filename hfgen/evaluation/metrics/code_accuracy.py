"""Whether a code that was learned without labels says the class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from hfgen.evaluation.arrays import Array
from hfgen.evaluation.metrics.linear_probe import as_labels


@dataclass(frozen=True)
class CodeAccuracy:
    """Shares in [0, 1].

    Attributes:
        accuracy: of samples whose class is the one matched with their code, each class with one
            code at most (Chen et al. 2016, InfoGAN, section 7.2; clustering accuracy).
        purity: of samples whose class is the most frequent one of their code.
    """

    accuracy: float
    purity: float


def code_accuracy(codes: Array, classes: Array) -> CodeAccuracy:
    """Agreement of codes and classes under the best matching of one to the other.

    A code for each class has 1 in both. K codes that say nothing have an accuracy of some 1/K, and
    the share of the most frequent class as purity: so a generator of one class alone has a purity
    of 1. A purity above the accuracy tells of several codes for one class.

    Args:
        codes, classes: integers [N] of each sample.
    Raises:
        HfgenError: other shapes or types, or none at all.
    """
    c = as_labels(codes, len(codes))
    y = as_labels(classes, len(c))
    (names, rows), (kinds, columns) = (np.unique(v, return_inverse=True) for v in (c, y))
    table = np.zeros((len(names), len(kinds)), dtype=np.int64)
    np.add.at(table, (rows, columns), 1)
    matched = table[linear_sum_assignment(table, maximize=True)].sum()
    return CodeAccuracy(float(matched / len(c)), float(table.max(1).sum() / len(c)))
