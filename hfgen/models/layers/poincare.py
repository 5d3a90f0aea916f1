"""The Poincare ball of curvature -1, and the wrapped normal distribution on it.

Mathieu et al. 2019 ("Continuous hierarchical representations with Poincare variational
auto-encoders"), section 2 and eq. 3-4; Ganea et al. 2018 for the maps. Densities are with respect
to the ball's own volume, lambda^D dz.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hfgen.models.layers.posterior import Posterior

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


def log_stretch(v: Tensor) -> Tensor:
    """(D - 1) ln(sinh r / r) for r = |v|, [...]: how the ball's volume outgrows flat space."""
    r = v.norm(dim=-1).clamp(min=1e-4)
    log_sinh = r + torch.log1p(-torch.exp(-2 * r)) - math.log(2)
    return (v.shape[-1] - 1) * (log_sinh - r.log())


class WrappedNormal(Posterior):
    """z = exp_mean(v / lambda_mean) with v ~ N(0, diag exp(logvar)).

    Args:
        mean: [B, D], in the ball.
        logvar: [B, D], of v.
    """

    def __init__(self, mean: Tensor, logvar: Tensor):
        self.mean, self.logvar = mean, logvar.clamp(-30.0, 20.0)
        self.std = torch.exp(0.5 * self.logvar)

    @property
    def noise_shape(self) -> torch.Size:
        return self.mean.shape

    def rsample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        v = self.std * noise
        return travel(self.mean.expand_as(v), v), self._log_density(v)

    def log_prob(self, z: Tensor) -> Tensor:
        """ln q(z|x) in nats per unit of the ball's volume, [..., B]."""
        return self._log_density(way(self.mean.expand_as(z), z))

    def _log_density(self, v: Tensor) -> Tensor:
        square = (v / self.std).square()
        flat = -0.5 * (square + self.logvar + math.log(2 * math.pi)).sum(-1)
        return flat - log_stretch(v)

    def mode(self) -> Tensor:
        return self.mean

    def kl_terms(self) -> None:
        return None

    def detach(self) -> WrappedNormal:
        """The same distribution, cut from the encoder."""
        return WrappedNormal(self.mean.detach(), self.logvar.detach())
