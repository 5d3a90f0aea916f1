"""Mutual information gap (Chen et al. 2018, eq. 6)."""

from __future__ import annotations

import numpy as np

from hfgen.errors import HfgenError
from hfgen.evaluation.arrays import Array
from hfgen.evaluation.metrics.factors import as_factors, discretise, entropy, mutual_information


def mig(latents: Array, factors: Array, *, bins: int = 20) -> float:
    """Mean over factors of (I(z_1; v) - I(z_2; v)) / H(v), z_1 and z_2 the two most informative
    latents; in [0, 1].

    Args:
        latents: posterior means [N, D], D >= 2, each put in ``bins`` intervals of equal width.
        factors: integer levels [N, K]; 10 000 samples are usual.
    """
    z, v = as_factors(latents, factors)
    if z.shape[1] < 2:
        raise HfgenError("latents: a gap needs at least 2 dimensions")
    codes = discretise(z, bins)
    gaps = []
    for factor in v.T:
        information = sorted(mutual_information(code, factor) for code in codes.T)
        gaps.append((information[-1] - information[-2]) / entropy(factor))
    return float(np.mean(gaps))
