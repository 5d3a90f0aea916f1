"""AuthPct (Alaa et al. 2022, section 4; Stein et al. 2023): how many samples are not copies."""

from __future__ import annotations

from hfgen.evaluation.arrays import Array, as_pair
from hfgen.evaluation.metrics.neighbours import nearest, nearest_others


def authpct(train: Array, fake: Array) -> float:
    """Percentage of fakes that are authentic: 100 P[d(x*, NN_train(x*)) < d(g, x*)].

    x* is the training sample nearest to the fake g. A fake is a copy when it is nearer to x* than
    x*'s nearest other training sample is (or equally near).

    Args:
        train, fake: features [N, D] with N >= 2, and [M, D].
    """
    x, g = as_pair(train, fake, ("train", "fake"), at_least=1)
    to_train = nearest(g, x)
    between = nearest_others(x, 1).distances[:, 0]
    authentic = between[to_train.indices[:, 0]] < to_train.distances[:, 0]
    return float(100 * authentic.double().mean())
