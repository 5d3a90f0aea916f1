"""Whether samples are of the class that they were asked for, in the eyes of a linear probe."""

from __future__ import annotations

import math

from hfgen.evaluation.arrays import Array, Estimate
from hfgen.evaluation.metrics.linear_probe import linear_probe


def class_accuracy(
    real: Array, real_labels: Array, fake: Array, fake_labels: Array, *, l2: float = 10.0
) -> Estimate:
    """Share of conditional samples that a linear probe of real features gives to their class.

    A classifier of real images judges generated ones; the classification accuracy score (Ravuri &
    Vinyals 2019) is the other way round.
    Chance is one over the number of classes. Its standard error is that of a binomial.

    Args:
        real, fake: features [N, D], [M, D].
        real_labels, fake_labels: classes, integers [N], [M].
        l2: penalty of ``linear_probe``.
    Raises:
        HfgenError: as ``linear_probe``.
    """
    share = linear_probe(real, real_labels, fake, fake_labels, l2=l2)
    return Estimate(share, math.sqrt(share * (1 - share) / len(fake)))
