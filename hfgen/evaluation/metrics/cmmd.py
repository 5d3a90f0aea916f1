"""CMMD (Jayasumana et al. 2024, section 4): squared Gaussian-kernel MMD of CLIP embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from hfgen.errors import HfgenError
from hfgen.evaluation.arrays import Array, as_pair

BLOCK = 1024


def cmmd(real: Array, fake: Array, *, sigma: float = 10.0, scale: float = 1000.0) -> float:
    """``scale`` times MMD^2 with k(x, y) = exp(-|x - y|^2 / (2 sigma^2)) on L2-normalised rows.

    The V-statistic of the paper's code (the diagonal is included), so that 0 is attained for equal
    sets. float64.

    Args:
        real, fake: CLIP image embeddings [N, D], [M, D]; normalised here.
    Raises:
        HfgenError: a zero row, which cannot be normalised.
    """
    x, y = (_normalised(v.double()) for v in as_pair(real, fake))
    gamma = 1 / (2 * sigma**2)
    within = _mean_kernel(x, x, gamma) + _mean_kernel(y, y, gamma)
    return scale * (within - 2 * _mean_kernel(x, y, gamma))


def _normalised(x: Tensor) -> Tensor:
    norms = x.norm(dim=1, keepdim=True)
    if bool((norms == 0).any()):
        raise HfgenError("embeddings: a zero row cannot be normalised to length 1")
    return x / norms


def _mean_kernel(x: Tensor, y: Tensor, gamma: float) -> float:
    total = 0.0
    for i in range(0, len(x), BLOCK):
        # |x - y|^2 = 2 - 2 x'y for unit vectors; expm1 keeps the digits of a kernel close to 1
        squared = 2 - 2 * (x[i : i + BLOCK] @ y.T)
        total += float(torch.expm1(-gamma * squared).sum())
    return total / (len(x) * len(y))
