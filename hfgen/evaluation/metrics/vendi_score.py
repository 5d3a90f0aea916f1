"""Vendi score (Friedman & Dieng 2023): the effective number of distinct samples in a set."""

from __future__ import annotations

import math

import torch

from hfgen.errors import HfgenError
from hfgen.evaluation.arrays import Array, as_features


def vendi_score(x: Array, *, order: float = 1.0) -> float:
    """Exponential of the Renyi entropy of the eigenvalues of K / N, K the cosine similarities;
    between 1 and N.

    N equal samples give 1 and N orthogonal ones N. The nonzero eigenvalues are those of the
    smaller of the [N, N] and [D, D] Gram matrices. It grows with N, so compare sets of one size,
    or divide by N.

    Args:
        x: features [N, D]; rows are L2-normalised here.
        order: q of the Renyi entropy (1: Shannon, the paper's default; inf: the largest eigenvalue
            alone).
    Raises:
        HfgenError: a zero row, order <= 0.
    """
    features = as_features(x, "features", at_least=1).double()
    norms = features.norm(dim=1, keepdim=True)
    if bool((norms == 0).any()):
        raise HfgenError("features: a zero row has no direction, so no cosine similarity")
    if not order > 0:
        raise HfgenError(f"order: {order}; must be positive")
    rows = features / norms
    gram = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
    p = torch.linalg.eigvalsh(gram / len(rows)).clamp(min=0)
    p = p[p > 0] / p.sum()
    if order == 1:
        return math.exp(float(-(p * p.log()).sum()))
    if math.isinf(order):
        return float(1 / p.max())
    return float(p.pow(order).sum().pow(1 / (1 - order)))
