"""Inception score (Salimans et al. 2016, section 4): exp E_x KL(p(y|x) || p(y))."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from hfgen.errors import HfgenError
from hfgen.evaluation.arrays import Array, Estimate, as_features


def inception_score(
    logits: Array, *, splits: int = 10, shuffle: bool = True, seed: int = 2020
) -> Estimate:
    """Mean over splits, and the standard error of that mean (their std, ddof 0, over sqrt(splits)).

    Args:
        logits: class logits [N, C] of the generated images; the FID network's are taken without
            bias. float64 inside.
        shuffle: whether rows are permuted first by numpy's ``RandomState(seed)``, as
            torch-fidelity does.
    Raises:
        HfgenError: fewer samples than splits.
    """
    x = as_features(logits, "logits", at_least=max(splits, 1)).double()
    if splits < 1:
        raise HfgenError(f"splits: {splits}; must be at least 1")
    if shuffle:
        x = x[np.random.RandomState(seed).permutation(len(x))]
    log_p = x.log_softmax(dim=1)
    bounds = [i * len(x) // splits for i in range(splits + 1)]
    scores = []
    for start, stop in pairwise(bounds):
        part = log_p[start:stop]
        p = part.exp()
        divergence = (p * (part - p.mean(0, keepdim=True).log())).sum(1).mean()
        scores.append(math.exp(float(divergence)))
    return Estimate(float(np.mean(scores)), float(np.std(scores) / math.sqrt(splits)))
