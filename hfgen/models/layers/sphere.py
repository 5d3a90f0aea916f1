"""The unit sphere: its area, and the von Mises-Fisher distribution on it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hfgen.models.layers.posterior import Posterior
from hfgen.models.layers.tabulated import TabulatedDensity


def log_sphere_area(dim: int) -> float:
    """ln of the area of the unit sphere in ``dim`` dimensions, 2 pi^(dim/2) / Gamma(dim/2)."""
    return math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)


class VonMisesFisher(Posterior):
    """exp(kappa mean^T z) / C on the unit sphere (Davidson et al. 2018).

    Along the mean, z is cos(theta) with a density proportional to
    exp(kappa cos theta) sin(theta)^(D-2), which is tabulated: that gives the normaliser without
    Bessel functions.

    Args:
        mean: [B, D], of unit length.
        kappa: [B], concentration, positive.
    """

    def __init__(self, mean: Tensor, kappa: Tensor):
        self.mean, self.kappa = mean, kappa
        dim = mean.shape[1]
        start = mean.new_zeros(1, 1)
        self._angle = TabulatedDensity(
            lambda theta: kappa[:, None] * (theta.cos() - 1) + (dim - 2) * theta.sin().log(),
            start,
            start + math.pi,
        )
        # ln of the integral of exp(kappa mean^T z) over the sphere
        self._log_normaliser = self._angle.log_total + kappa + log_sphere_area(dim - 1)
        self._mean_cosine = self._angle.mean(self._angle.points.cos())

    @property
    def noise_shape(self) -> torch.Size:
        return self.mean.shape

    def rsample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        theta = self._angle.quantile(torch.special.ndtr(noise[..., 0])).unsqueeze(-1)
        around = F.normalize(noise[..., 1:], dim=-1)
        pole = torch.cat([theta.cos(), theta.sin() * around], dim=-1)
        # Householder reflection that takes the first axis to the mean
        axis = torch.zeros_like(self.mean)
        axis[..., 0] = 1
        mirror = F.normalize(axis - self.mean, dim=-1)
        z = pole - 2 * (pole * mirror).sum(-1, keepdim=True) * mirror
        return z, self.log_prob(z)

    def log_prob(self, z: Tensor) -> Tensor:
        """ln q(z|x) in nats per unit of area, [..., B], of z [..., B, D] on the sphere."""
        return self.kappa * (self.mean * z).sum(-1) - self._log_normaliser

    def mode(self) -> Tensor:
        return self.mean

    def kl_terms(self) -> Tensor:
        """KL to the uniform distribution on the sphere, [B, 1]."""
        entropy = self._log_normaliser - self.kappa * self._mean_cosine
        return (log_sphere_area(self.mean.shape[1]) - entropy).unsqueeze(1)

    def detach(self) -> VonMisesFisher:
        """The same distribution, cut from the encoder."""
        return VonMisesFisher(self.mean.detach(), self.kappa.detach())
