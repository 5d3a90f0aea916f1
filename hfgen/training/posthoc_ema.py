"""Power-function averages of weights, and any width of them afterwards (Karras et al. 2024, EDM2).

The average at training time t with exponent gamma weighs the weights at time tau by

    p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1),    0 <= tau <= t

(eq. 8 there). A few such averages, stored now and then for two exponents, span nearly all others:
the weights of the best combination follow from a small least-squares problem (section 3.2). Time
may be counted in anything, here in images seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Profile:
    """A power-function average: ``images_seen`` when it was taken, and its exponent ``gamma``."""

    images_seen: float
    gamma: float

    def __post_init__(self) -> None:
        if self.images_seen <= 0:
            raise ValueError(f"images_seen of an average must be positive, got {self.images_seen}")
        if self.gamma <= -0.5:
            raise ValueError(f"gamma of an average must be above -1/2, got {self.gamma}")


def relative_std(gamma: float) -> float:
    """Width of the profile as a share of the training time (eq. 10 there)."""
    return (gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5)


def gamma_of(sigma_rel: float) -> float:
    """The exponent whose profile has the relative width ``sigma_rel``: the inverse (algorithm 2).

    Raises:
        ValueError: a width outside (0, 0.2886]: beyond, the profile falls with time.
    """
    if not 0 < sigma_rel <= 12**-0.5:
        raise ValueError(f"sigma_rel must be in (0, 0.2886], got {sigma_rel}")
    inverse = sigma_rel**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(max(roots.real[np.abs(roots.imag) < 1e-6]))


def decay(gamma: float, images_seen: float, batch: float) -> float:
    """Share of the old average after ``batch`` more images, ``images_seen`` in all (eq. 9)."""
    return (1 - min(batch / images_seen, 1.0)) ** (gamma + 1)


def inner_product(a: Profile, b: Profile) -> float:
    """Integral of the product of two profiles (appendix C.3)."""
    shorter, longer = sorted((a, b), key=lambda profile: profile.images_seen)
    ratio = shorter.images_seen / longer.images_seen
    scale = (a.gamma + 1) * (b.gamma + 1) / ((a.gamma + b.gamma + 1) * longer.images_seen)
    return scale * ratio**longer.gamma


def combination(stored: Sequence[Profile], target: Profile) -> np.ndarray:
    """Weights, float64 [len(stored)], with which stored averages best make up the ``target``.

    Raises:
        ValueError: no averages, or a target later than all of them.
    """
    if not stored:
        raise ValueError("no averages are stored")
    latest = max(profile.images_seen for profile in stored)
    if target.images_seen > latest:
        raise ValueError(f"the target at {target.images_seen} images is later than {latest}")
    gram = np.array([[inner_product(a, b) for b in stored] for a in stored])
    right = np.array([inner_product(a, target) for a in stored])
    scale = np.sqrt(np.diag(gram))  # equilibrated, since profiles of early times are tall
    solution = np.linalg.lstsq(gram / np.outer(scale, scale), right / scale, rcond=1e-12)[0]
    return solution / scale


def reconstruct(
    states: Sequence[Mapping[str, Tensor]], weights: Sequence[float] | np.ndarray
) -> dict[str, Tensor]:
    """The combination of state dicts in float64, in the dtypes of the last one.

    Tensors that are no floating-point numbers (counters) are those of the last state.
    """
    result: dict[str, Tensor] = {}
    for name, last in states[-1].items():
        if not last.is_floating_point():
            result[name] = last.clone()
            continue
        parts = [float(w) * state[name].double() for w, state in zip(weights, states, strict=True)]
        result[name] = torch.stack(parts).sum(0).to(last.dtype)
    return result
