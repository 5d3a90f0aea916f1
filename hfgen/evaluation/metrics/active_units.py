"""Active units (Burda et al. 2016, section 5.2): latent dimensions that depend on the image."""

from __future__ import annotations

from hfgen.evaluation.arrays import Array, as_double


def active_units(means: Array, *, threshold: float = 0.01) -> int:
    """How many dimensions u have Var_x(E_q(u|x)[u]) > ``threshold``.

    Args:
        means: posterior means [N, D] over images.
    """
    return int((as_double(means, "means").var(axis=0, ddof=1) > threshold).sum())
