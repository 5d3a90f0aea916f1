"""Memorisation-informed Frechet distance (Bai et al. 2021, section 3)."""

from __future__ import annotations

import torch

from hfgen.errors import HfgenError
from hfgen.evaluation.arrays import Array, as_pair
from hfgen.evaluation.metrics.frechet_distance import frechet_distance

BLOCK = 2048


def memorisation_distance(fake: Array, train: Array) -> float:
    """Mean over fakes of the smallest cosine distance 1 - |cos| to a training sample; in [0, 1]."""
    x, y = (v.double() for v in as_pair(fake, train, ("fake", "train"), at_least=1))
    if bool((x.norm(dim=1) == 0).any() or (y.norm(dim=1) == 0).any()):
        raise HfgenError("features: a zero row has no direction, so no cosine distance")
    x, y = x / x.norm(dim=1, keepdim=True), y / y.norm(dim=1, keepdim=True)
    closest = [
        (x[i : i + BLOCK] @ y.T).abs().amax(dim=1).clamp(max=1) for i in range(0, len(x), BLOCK)
    ]
    return float((1 - torch.cat(closest)).mean())


def mifid(fake: Array, train: Array, *, threshold: float = 0.1, epsilon: float = 1e-15) -> float:
    """Frechet distance, divided by the memorisation distance where that is below ``threshold``.

    Args:
        fake, train: features [N, D], [M, D] of one backbone.
        threshold: tau of the paper; 0.1 for its inception features, another backbone needs its own.
    """
    distance = memorisation_distance(fake, train)
    penalty = 1 / (distance + epsilon) if distance < threshold else 1.0
    return frechet_distance(fake, train) * penalty
