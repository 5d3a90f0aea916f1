"""Posteriors beyond the diagonal Gaussian, and the heads that make one of an encoder's outputs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfgen.models.layers.flows import InverseFlow, MaskedAffineFlow, PlanarFlow, RadialFlow
from hfgen.models.layers.poincare import WrappedNormal, travel
from hfgen.models.layers.posterior import DiagonalGaussian, Posterior


class FlowPosterior(Posterior):
    """A diagonal Gaussian carried through a flow (Rezende & Mohamed 2015, eq. 7).

    Args:
        base: the Gaussian over [B, D].
        flow: (latents [..., D], context) -> latents and ln |det|.
        context: features [B, C] that the flow may see.
    """

    def __init__(self, base: DiagonalGaussian, flow: nn.Module, context: Tensor):
        self.base, self.flow, self.context = base, flow, context

    @property
    def noise_shape(self) -> torch.Size:
        return self.base.noise_shape

    def rsample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        z, log_q = self.base.rsample(noise)
        z, log_det = self.flow(z, self.context.expand(*noise.shape[:-1], -1))
        return z, log_q - log_det

    def mode(self) -> Tensor:
        """The Gaussian's mean carried through: the mode itself has no closed form."""
        return self.flow(self.base.mean, self.context)[0]

    def kl_terms(self) -> None:
        return None


class VonMisesFisher(Posterior):
    """exp(kappa mean^T z) / C on the unit sphere (Davidson et al. 2018).

    Along the mean, z is cos(theta) with a density proportional to
    exp(kappa cos theta) sin(theta)^(D-2). Its integrals are sums over a grid of angles: that gives
    the normaliser without Bessel functions, and draws by the inverse of the distribution function,
    whose gradient in kappa is exact where rejection sampling needs a correction.

    Args:
        mean: [B, D], of unit length.
        kappa: [B], concentration, positive.
    """

    GRID = 1024

    def __init__(self, mean: Tensor, kappa: Tensor):
        self.mean, self.kappa = mean, kappa
        dim, width = mean.shape[1], math.pi / self.GRID
        theta = (torch.arange(self.GRID, device=mean.device, dtype=mean.dtype) + 0.5) * width
        log_density = kappa[:, None] * (theta.cos() - 1) + (dim - 2) * theta.sin().log()
        log_total = torch.logsumexp(log_density, dim=1) + math.log(width)
        self._share = torch.exp(log_density - log_total[:, None]) * width  # [B, GRID]
        self._width = width
        # ln of the integral of exp(kappa mean^T z) over the sphere
        self._log_normaliser = log_total + kappa + log_sphere_area(dim - 1)
        self._mean_cosine = (self._share * theta.cos()).sum(1)

    @property
    def noise_shape(self) -> torch.Size:
        return self.mean.shape

    def rsample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        theta = self._angle(torch.special.ndtr(noise[..., 0])).unsqueeze(-1)
        around = F.normalize(noise[..., 1:], dim=-1)
        pole = torch.cat([theta.cos(), theta.sin() * around], dim=-1)
        # Householder reflection that takes the first axis to the mean
        axis = torch.zeros_like(self.mean)
        axis[..., 0] = 1
        mirror = F.normalize(axis - self.mean, dim=-1)
        z = pole - 2 * (pole * mirror).sum(-1, keepdim=True) * mirror
        return z, self.log_prob(z)

    def _angle(self, uniform: Tensor) -> Tensor:
        """The angle below which lies the share ``uniform`` [..., B] of the mass."""
        upper = self._share.cumsum(1)
        flat = uniform.reshape(-1, uniform.shape[-1]).T.contiguous()  # [B, samples]
        cell = torch.searchsorted(upper.detach(), flat).clamp(max=self.GRID - 1)
        share = self._share.gather(1, cell).clamp(min=1e-12)
        inside = (flat - upper.gather(1, cell)) / share + 1
        return ((cell + inside.clamp(0, 1)) * self._width).T.reshape(uniform.shape)

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


def log_sphere_area(dim: int) -> float:
    """ln of the area of the unit sphere in ``dim`` dimensions, 2 pi^(dim/2) / Gamma(dim/2)."""
    return math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)


class PosteriorHead(nn.Module, ABC):
    """Makes a posterior of what an encoder puts out.

    Attributes:
        spread_size: how many numbers beside the location it takes per image.
    """

    spread_size: int

    @abstractmethod
    def forward(self, location: Tensor, spread: Tensor, features: Tensor) -> Posterior:
        """location [B, D], spread [B, spread_size], features [B, C] -> q(z|x)."""


class GaussianHead(PosteriorHead):
    """N(location, diag exp(spread))."""

    def __init__(self, dim: int, context: int):
        super().__init__()
        self.spread_size = dim

    def forward(self, location: Tensor, spread: Tensor, features: Tensor) -> Posterior:
        return DiagonalGaussian(location, spread)


class FlowHead(PosteriorHead):
    """A Gaussian through planar, radial or inverse autoregressive steps that see the features.

    Args:
        kind: "planar", "radial", "iaf" or "maf" (whose draws take D passes per step).
        steps: how many.
        hidden_size: width of the network of an "iaf" or "maf" step.
    """

    def __init__(self, dim: int, context: int, kind: str, steps: int = 4, hidden_size: int = 128):
        super().__init__()
        if steps < 1:
            raise ValueError(f"posterior: steps must be >= 1, got {steps}")
        self.spread_size = dim
        if kind in ("iaf", "maf"):
            flow = MaskedAffineFlow(dim, steps, hidden_size, context)
            self.flow = flow if kind == "iaf" else InverseFlow(flow)
        else:
            self.flow = {"planar": PlanarFlow, "radial": RadialFlow}[kind](dim, steps, context)

    def forward(self, location: Tensor, spread: Tensor, features: Tensor) -> Posterior:
        return FlowPosterior(DiagonalGaussian(location, spread), self.flow, features)


class VonMisesFisherHead(PosteriorHead):
    """On the sphere: the location's direction, kappa = softplus(spread) + 1 as in the paper."""

    def __init__(self, dim: int, context: int):
        super().__init__()
        if dim < 2:
            raise ValueError(f"posterior: vmf needs a latent of at least 2 dimensions, got {dim}")
        self.spread_size = 1

    def forward(self, location: Tensor, spread: Tensor, features: Tensor) -> Posterior:
        return VonMisesFisher(F.normalize(location, dim=1), F.softplus(spread[:, 0]) + 1)


class PoincareHead(PosteriorHead):
    """A wrapped normal on the Poincare ball: its mean is exp_0(location / 2)."""

    def __init__(self, dim: int, context: int):
        super().__init__()
        if dim < 2:
            raise ValueError(
                f"posterior: poincare needs a latent of at least 2 dimensions, got {dim}"
            )
        self.spread_size = dim

    def forward(self, location: Tensor, spread: Tensor, features: Tensor) -> Posterior:
        return WrappedNormal(travel(torch.zeros_like(location), location), spread)


POSTERIORS = ("gaussian", "planar", "radial", "iaf", "maf", "vmf", "poincare")


def build_posterior(config: dict | None, dim: int, context: int) -> PosteriorHead:
    """``{"type": "iaf", "steps": 2}`` -> a head; None is the diagonal Gaussian.

    Raises:
        ValueError: an unknown type or option.
    """
    options: dict = dict(config or {"type": "gaussian"})
    kind = options.pop("type", None)
    if kind not in POSTERIORS:
        raise ValueError(f"posterior: unknown type {kind!r}; valid: {', '.join(POSTERIORS)}")
    try:
        if kind == "gaussian":
            return GaussianHead(dim, context, **options)
        if kind == "vmf":
            return VonMisesFisherHead(dim, context, **options)
        if kind == "poincare":
            return PoincareHead(dim, context, **options)
        return FlowHead(dim, context, kind=kind, **options)
    except TypeError as error:
        raise ValueError(f"posterior: {kind} does not take these options: {error}") from None
