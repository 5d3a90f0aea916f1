"""Penalties on the latents of a batch, added to a VAE's or an autoencoder's loss.

All but ``RAE`` compare the latents of different images, so they depend on how a
batch is split: they see the rows at hand.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from hfgen.errors import HfgenError, one_of
from hfgen.objectives.vae_ssim import ms_ssim
from hfgen.rng import Rng


@runtime_checkable
class GaussianLike(Protocol):
    """A Gaussian posterior, ours or diffusers'."""

    mean: Tensor
    logvar: Tensor


@dataclass(frozen=True)
class Code:
    """What a penalty may look at.

    Attributes:
        images: [B, C, H, W] in [-1, 1].
        posterior: q(z|x) with ``mean`` and ``logvar`` [B, *latent].
        z: the latents that were decoded, [B, *latent].
        params: the decoder's output for them.
        decode: latents -> decoder output.
        mean: decoder output -> expected image, [-1, 1].
    """

    images: Tensor
    posterior: Any
    z: Tensor
    params: Tensor
    decode: Callable[[Tensor], Tensor]
    mean: Callable[[Tensor], Tensor]

    def gaussian(self) -> tuple[Tensor, Tensor]:
        """Mean and log-variance [B, D] of the posterior; HfgenError if it is no Gaussian."""
        if not isinstance(self.posterior, GaussianLike):
            raise HfgenError(
                "objective.penalty: needs a Gaussian posterior, "
                f"got {type(self.posterior).__name__}"
            )
        return self.posterior.mean.flatten(1), self.posterior.logvar.flatten(1)


class Penalty(ABC):
    """A term of the loss. Concrete ones are frozen keyword-only dataclasses."""

    @abstractmethod
    def __call__(self, code: Code, rng: Rng) -> Tensor:
        """The weighted term, a scalar."""


def total_correlation(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """TC(z) = KL(q(z) || prod_j q(z_j)) in nats, with q(z) the mixture of the batch's posteriors.

    Minibatch-weighted sampling (Chen et al. 2018, eq. S5) up to its constant, which depends on the
    size of the data set and has no gradient: here both densities are those of the batch.

    Args:
        z, mean, logvar: [B, D].
    """
    distance = (z[:, None] - mean[None]) ** 2 * torch.exp(-logvar)[None]
    log_density = -0.5 * (distance + logvar[None] + math.log(2 * math.pi))  # [B, B, D]
    rows = math.log(len(z))
    joint = torch.logsumexp(log_density.sum(2), dim=1) - rows
    marginals = (torch.logsumexp(log_density, dim=1) - rows).sum(1)
    return (joint - marginals).mean()


@dataclass(frozen=True, kw_only=True)
class TotalCorrelation(Penalty):
    """weight * TC(z). beta-TCVAE (Chen et al. 2018, eq. 4) is the ELBO plus (beta - 1) TC."""

    weight: float = 5.0

    def __post_init__(self) -> None:
        _non_negative(weight=self.weight)

    def __call__(self, code: Code, rng: Rng) -> Tensor:
        mean, logvar = code.gaussian()
        return self.weight * total_correlation(code.z.flatten(1), mean, logvar)


@dataclass(frozen=True, kw_only=True)
class DIP(Penalty):
    """Disentangled inferred prior (Kumar et al. 2018, eq. 5 and 7).

    ``off_diagonal`` sum_{i != j} C_ij^2 + ``diagonal`` sum_i (C_ii - 1)^2, where C is the
    covariance of the posterior means (version 1), plus the mean posterior variance on the diagonal
    (version 2).
    """

    version: int = 1
    off_diagonal: float = 10.0
    diagonal: float = 10.0

    def __post_init__(self) -> None:
        _non_negative(off_diagonal=self.off_diagonal, diagonal=self.diagonal)
        if self.version not in (1, 2):
            raise HfgenError(f"penalty.version: must be 1 or 2, got {self.version}")

    def __call__(self, code: Code, rng: Rng) -> Tensor:
        mean, logvar = code.gaussian()
        centred = mean - mean.mean(0)
        covariance = centred.T @ centred / len(mean)
        if self.version == 2:
            covariance = covariance + torch.diag(logvar.exp().mean(0))
        variance = covariance.diagonal()
        off = covariance.square().sum() - variance.square().sum()
        return self.off_diagonal * off + self.diagonal * (variance - 1).square().sum()


def _rbf(squared_distance: Tensor, scale: float) -> Tensor:
    return torch.exp(-squared_distance / scale)


def _imq(squared_distance: Tensor, scale: float) -> Tensor:
    return scale / (scale + squared_distance)


KERNELS = {"imq": _imq, "rbf": _rbf}
SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def mmd(x: Tensor, y: Tensor, kernel: str = "imq") -> Tensor:
    """Unbiased squared maximum mean discrepancy of two samples [N, D] (Gretton et al. 2012, eq. 3).

    The kernel is summed over scales 2 D s for s in ``SCALES``, as in WAE (Tolstikhin et al. 2018,
    section 4): 2 D is the mean squared distance of two standard normal latents.
    """
    total = torch.zeros((), dtype=x.dtype, device=x.device)
    points = torch.cat([x, y])
    norms = points.square().sum(1)
    distance = (norms[:, None] + norms[None] - 2 * points @ points.T).clamp(min=0)
    n, m = len(x), len(y)
    for scale in SCALES:
        k = KERNELS[kernel](distance, 2 * x.shape[1] * scale)
        k = k - torch.diag(k.diagonal())
        within = k[:n, :n].sum() / (n * (n - 1)) + k[n:, n:].sum() / (m * (m - 1))
        total = total + within - 2 * k[:n, n:].mean()
    return total


@dataclass(frozen=True, kw_only=True)
class MMD(Penalty):
    """weight * MMD^2(q(z), N(0, I)).

    WAE-MMD (Tolstikhin et al. 2018) on an ``Autoencoder``; InfoVAE (Zhao et al. 2019, eq. 6) on an
    ``ELBO`` with beta = 1 - alpha and weight = alpha + lambda - 1.
    """

    weight: float = 100.0
    kernel: str = "imq"

    def __post_init__(self) -> None:
        _non_negative(weight=self.weight)
        if self.kernel not in KERNELS:
            raise one_of("penalty.kernel", self.kernel, list(KERNELS))

    def __call__(self, code: Code, rng: Rng) -> Tensor:
        z = code.z.flatten(1)
        if len(z) < 2:
            raise HfgenError("penalty mmd compares latents: it needs at least 2 images at a time")
        return self.weight * mmd(z, rng.randn("prior", z.shape), self.kernel)


@dataclass(frozen=True, kw_only=True)
class RAE(Penalty):
    """Regularised autoencoder (Ghosh et al. 2020, eq. 11-13).

    ``latent`` ||z||^2 / 2 + ``gradient`` ||d decoder / d z||_F^2; the Jacobian's norm by one random
    projection, E_v ||J^T v||^2 = ||J||_F^2 for v ~ N(0, I).
    """

    latent: float = 1e-2
    gradient: float = 0.0

    def __post_init__(self) -> None:
        _non_negative(latent=self.latent, gradient=self.gradient)

    def __call__(self, code: Code, rng: Rng) -> Tensor:
        penalty = self.latent * 0.5 * code.z.flatten(1).square().sum(1).mean()
        if not self.gradient:
            return penalty
        probe = rng.randn("probe", code.params.shape)
        (row,) = torch.autograd.grad((code.params * probe).sum(), code.z, create_graph=True)
        return penalty + self.gradient * row.flatten(1).square().sum(1).mean()


@dataclass(frozen=True, kw_only=True)
class MSSSIM(Penalty):
    """weight * (1 - MS-SSIM(x, expected image)) (Snell et al. 2017; Wang et al. 2003).

    With a likelihood beside it; in nats per image, so that a weight of some hundreds counts.
    """

    weight: float = 100.0

    def __post_init__(self) -> None:
        _non_negative(weight=self.weight)

    def __call__(self, code: Code, rng: Rng) -> Tensor:
        try:
            similarity = ms_ssim(code.images, code.mean(code.params).to(code.images.dtype))
        except ValueError as error:
            raise HfgenError(f"objective.penalty: {error}") from None
        return self.weight * (1 - similarity.mean())


def _non_negative(**values: float) -> None:
    for name, value in values.items():
        if value < 0:
            raise HfgenError(f"penalty.{name}: must be at least 0, got {value}")


PENALTIES: dict[str, type[Penalty]] = {
    "total-correlation": TotalCorrelation,
    "dip": DIP,
    "mmd": MMD,
    "rae": RAE,
    "ms-ssim": MSSSIM,
}
"""Names for recipes."""
