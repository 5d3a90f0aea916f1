"""The Poincare ball of curvature -1, and the two normal distributions on it.

Mathieu et al. 2019 ("Continuous hierarchical representations with Poincare variational
auto-encoders"), sections 2 and 3.1, appendix B; Ganea et al. 2018 for the maps. Densities are with
respect to the ball's own volume, lambda^D dz.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from hfgen.models.layers.posterior import Posterior
from hfgen.models.layers.sphere import log_sphere_area
from hfgen.models.layers.tabulated import TabulatedDensity

RIM = 1e-5
"""Distance to the rim of the ball that points keep, where float32 ends."""


def mobius_add(x: Tensor, y: Tensor) -> Tensor:
    """x (+) y of points in the ball [..., D] (Ganea et al. 2018, eq. 4)."""
    xy = (x * y).sum(-1, keepdim=True)
    xx, yy = x.square().sum(-1, keepdim=True), y.square().sum(-1, keepdim=True)
    top = (1 + 2 * xy + yy) * x + (1 - xx) * y
    return into_ball(top / (1 + 2 * xy + xx * yy).clamp(min=1e-15))


def into_ball(x: Tensor) -> Tensor:
    """``x``, pulled in where rounding put it on the rim or beyond."""
    norm = x.norm(dim=-1, keepdim=True)
    return torch.where(norm > 1 - RIM, x / norm.clamp(min=1e-15) * (1 - RIM), x)


def travel(start: Tensor, v: Tensor) -> Tensor:
    """The point at distance |v| from ``start`` in the direction v: exp_start(v / lambda_start)."""
    r = v.norm(dim=-1, keepdim=True).clamp(min=1e-15)
    return mobius_add(start, torch.tanh(r / 2) * v / r)


def way(start: Tensor, end: Tensor) -> Tensor:
    """The v that ``travel`` takes from ``start`` to ``end``: lambda_start log_start(end)."""
    w = mobius_add(-start, end)
    r = w.norm(dim=-1, keepdim=True).clamp(min=1e-15)
    return 2 * torch.atanh(r.clamp(max=1 - RIM)) * w / r


def log_sinh(x: Tensor) -> Tensor:
    """ln sinh x of x > 0, where sinh itself would overflow too."""
    return x + torch.log(-torch.expm1(-2 * x)) - math.log(2)


class NormalOnBall(Posterior):
    """z = exp_mean(v / lambda_mean) for a random v, whose length is the distance of z to the mean.

    Args:
        mean: [B, D], in the ball.
        logvar: [B, D], or [B, 1] where the spread is the same in all directions.
    """

    isotropic: ClassVar[bool]
    """Whether the spread is one number."""

    def __init__(self, mean: Tensor, logvar: Tensor):
        self.mean, self.logvar = mean, logvar.clamp(-30.0, 20.0)
        self.std = torch.exp(0.5 * self.logvar)

    @property
    def noise_shape(self) -> torch.Size:
        return self.mean.shape

    def rsample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        v = self.step(noise)
        return travel(self.mean.expand_as(v), v), self._log_density(v)

    def log_prob(self, z: Tensor) -> Tensor:
        """ln q(z|x) in nats per unit of the ball's volume, [..., B]."""
        return self._log_density(way(self.mean.expand_as(z), z))

    @abstractmethod
    def step(self, noise: Tensor) -> Tensor:
        """v [..., B, D] of standard normal ``noise`` [..., B, D]."""

    @abstractmethod
    def _log_density(self, v: Tensor) -> Tensor:
        """ln q at the end of v [..., B, D], [..., B]."""

    def mode(self) -> Tensor:
        return self.mean

    def kl_terms(self) -> None:
        return None

    def detach(self) -> NormalOnBall:
        """The same distribution, cut from the encoder."""
        return type(self)(self.mean.detach(), self.logvar.detach())


class WrappedNormal(NormalOnBall):
    """v ~ N(0, diag exp(logvar)) (section 3.1; Nagano et al. 2019)."""

    isotropic = False

    def step(self, noise: Tensor) -> Tensor:
        return self.std * noise

    def _log_density(self, v: Tensor) -> Tensor:
        square = (v / self.std).square()
        flat = -0.5 * (square + self.logvar + math.log(2 * math.pi)).sum(-1)
        # the ball's volume outgrows flat space by (sinh r / r)^(D-1)
        r = v.norm(dim=-1).clamp(min=1e-4)
        return flat - (v.shape[-1] - 1) * (log_sinh(r) - r.log())


class RiemannianNormal(NormalOnBall):
    """exp(-d(mean, z)^2 / (2 std^2)) / Z, the maximum-entropy normal (section 3.1; Pennec 2006).

    The direction of v is uniform and its length r has a density proportional to
    sinh(r)^(D-1) exp(-r^2 / (2 std^2)) (appendix B), which is tabulated over t = r / std. That
    serves any dimension, where the closed form is an alternating sum that cancels: for D = 2, Z is
    2 pi sqrt(pi / 2) std exp(std^2 / 2) erf(std / sqrt(2)).
    """

    isotropic = True
    REACH = 7.0
    """Standard deviations that the table goes beyond where the density of t can peak: ln of it is
    more concave than that of a standard normal, and its peak lies in
    (D - 1) std + [0, sqrt(D - 1)]."""

    def __init__(self, mean: Tensor, logvar: Tensor):
        super().__init__(mean, logvar)
        dim = mean.shape[-1]
        peak = (dim - 1) * self.std.detach()
        self._length = TabulatedDensity(
            lambda t: (dim - 1) * log_sinh(self.std * t) - t.square() / 2,
            (peak - self.REACH).clamp(min=0),
            peak + math.sqrt(dim - 1) + self.REACH,
        )
        self._log_normaliser = (
            log_sphere_area(dim) + self._length.log_total + self.std.log().squeeze(-1)
        )

    def step(self, noise: Tensor) -> Tensor:
        length = noise.norm(dim=-1).clamp(min=1e-15)
        # length^2 is chi-squared: its share of the mass is uniform, and a small std leaves v
        # where the flat normal has it, at std * noise
        half = torch.full_like(length, noise.shape[-1] / 2)
        t = self._length.quantile(torch.special.gammainc(half, length.square() / 2))
        return self.std * (t / length).unsqueeze(-1) * noise

    def _log_density(self, v: Tensor) -> Tensor:
        return -0.5 * (v / self.std).square().sum(-1) - self._log_normaliser


NORMALS: dict[str, type[NormalOnBall]] = {"wrapped": WrappedNormal, "riemannian": RiemannianNormal}


def ball_normal(owner: str, name: str) -> type[NormalOnBall]:
    """A class of ``NORMALS``; ValueError of ``owner`` for a name that is none."""
    if name not in NORMALS:
        raise ValueError(f"{owner}: normal must be one of {', '.join(NORMALS)}, got {name!r}")
    return NORMALS[name]
