"""Precision, recall, density and coverage of a set of samples, from k-nearest-neighbour balls."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hfgen.evaluation.arrays import Array, as_pair
from hfgen.evaluation.metrics.neighbours import Points, memberships, radii


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares in [0, 1]."""

    precision: float
    recall: float


@dataclass(frozen=True)
class DensityCoverage:
    """Density >= 0 (about 1 for equal distributions) and coverage in [0, 1]."""

    density: float
    coverage: float


@dataclass(frozen=True)
class PRDC:
    """All four from one pass over the distances."""

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(
    real: Array, fake: Array, k: int = 3, *, closed: bool = True
) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019, eqs. 1-3).

    Precision is the share of fakes that lie in the ball of some real sample, whose radius is the
    distance to its k-th nearest other real sample; recall the share of reals in the ball of some
    fake.

    Args:
        real, fake: features [N, D], [M, D], each of more than k samples.
        closed: whether the surface belongs to the ball (``<=``, the paper and torch-fidelity) or
            not (``<``, prdc).
    """
    x, y = Points.pair(*as_pair(real, fake))
    balls, covered = memberships(x, y, radii(x, k), radii(y, k), closed=closed)
    return PrecisionRecall(_share(balls.per_point), _share(covered.per_point))


def density_coverage(
    real: Array, fake: Array, k: int = 5, *, closed: bool = False
) -> DensityCoverage:
    """Density and coverage (Naeem et al. 2020, eqs. 3-4), with the strict ``<`` of the paper
    unless ``closed``.

    Density is the mean number of real balls around a fake, over k; coverage the share of real
    balls that hold a fake.

    Args:
        real, fake: features [N, D] with N > k, and [M, D].
    """
    x, y = Points.pair(*as_pair(real, fake))
    balls, _ = memberships(x, y, radii(x, k), None, closed=closed)
    return DensityCoverage(float(balls.per_point.double().mean() / k), _share(balls.per_ball))


def prdc(real: Array, fake: Array, k: int = 5, *, closed: bool = False) -> PRDC:
    """Precision, recall, density and coverage with one k and one comparison, as the package
    ``prdc`` defines them.
    """
    x, y = Points.pair(*as_pair(real, fake))
    balls, covered = memberships(x, y, radii(x, k), radii(y, k), closed=closed)
    return PRDC(
        precision=_share(balls.per_point),
        recall=_share(covered.per_point),
        density=float(balls.per_point.double().mean() / k),
        coverage=_share(balls.per_ball),
    )


def _share(counts: Tensor) -> float:
    return float((counts > 0).double().mean())
