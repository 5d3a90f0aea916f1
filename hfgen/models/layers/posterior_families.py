"""Posteriors beyond the diagonal Gaussian, and the heads that make one of an encoder's outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfgen.models.layers.flows import InverseFlow, MaskedAffineFlow, PlanarFlow, RadialFlow
from hfgen.models.layers.poincare import ball_normal, travel
from hfgen.models.layers.posterior import DiagonalGaussian, Posterior
from hfgen.models.layers.sphere import VonMisesFisher


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
    """A normal distribution on the Poincare ball: its mean is exp_0(location / 2).

    Args:
        normal: "wrapped" or "riemannian", whose spread is one number.
    """

    def __init__(self, dim: int, context: int, normal: str = "wrapped"):
        super().__init__()
        if dim < 2:
            raise ValueError(
                f"posterior: poincare needs a latent of at least 2 dimensions, got {dim}"
            )
        self.kind = ball_normal("posterior: poincare", normal)
        self.spread_size = 1 if self.kind.isotropic else dim

    def forward(self, location: Tensor, spread: Tensor, features: Tensor) -> Posterior:
        return self.kind(travel(torch.zeros_like(location), location), spread)


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
