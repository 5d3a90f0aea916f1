"""How much the error at each noise level counts.

Every weighting multiplies the squared error of the network's own output. Those that the literature
states for another quantity are converted by ``Prediction.error_scale``, so one name means the same
loss under every prediction. SNR = alpha^2 / sigma^2 throughout.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hfgen.denoising import Prediction


class Weighting(ABC):
    """A factor on the squared error of the network's output; concrete: frozen dataclasses."""

    @abstractmethod
    def weight(self, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
        """Weights shaped as ``alpha`` and ``sigma``, finite and not negative for sigma > 0."""


@dataclass(frozen=True, kw_only=True)
class UniformWeight(Weighting):
    """1: the plain loss of DDPM, of flow matching and of EDM (whose output has lambda built in)."""

    def weight(self, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
        return torch.ones_like(sigma)


@dataclass(frozen=True, kw_only=True)
class SNRWeight(Weighting):
    """SNR on the image's error: the simple loss of DDPM, whatever the network predicts."""

    def weight(self, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
        return _on_image((alpha / sigma) ** 2, alpha, sigma, prediction)


@dataclass(frozen=True, kw_only=True)
class MinSNRWeight(Weighting):
    """min(SNR, gamma) on the image's error (Hang et al. 2023, section 3.4)."""

    gamma: float = 5.0

    def weight(self, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
        snr = (alpha / sigma) ** 2
        return _on_image(snr.clamp(max=self.gamma), alpha, sigma, prediction)


@dataclass(frozen=True, kw_only=True)
class SoftMinSNRWeight(Weighting):
    """SNR gamma / (SNR + gamma) on the image's error, the smooth min-SNR (Crowson et al. 2024,
    section 2.2).
    """

    gamma: float = 5.0

    def weight(self, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
        snr = (alpha / sigma) ** 2
        return _on_image(snr * self.gamma / (snr + self.gamma), alpha, sigma, prediction)


@dataclass(frozen=True, kw_only=True)
class P2Weight(Weighting):
    """1 / (k + SNR)^gamma on the noise's error (Choi et al. 2022, eq. 8)."""

    gamma: float = 1.0
    k: float = 1.0

    def weight(self, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
        snr = (alpha / sigma) ** 2
        return _on_image(snr / (self.k + snr) ** self.gamma, alpha, sigma, prediction)


@dataclass(frozen=True, kw_only=True)
class EDMWeight(Weighting):
    """lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 on the image's error, sigma := sigma
    / alpha (Karras 2022).
    """

    sigma_data: float = 0.5

    def weight(self, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
        weight = (sigma**2 + (alpha * self.sigma_data) ** 2) / (sigma * self.sigma_data) ** 2
        return _on_image(weight, alpha, sigma, prediction)


@dataclass(frozen=True, kw_only=True)
class VelocityWeight(Weighting):
    """1 / max(sigma, floor)^2 on the image's error: the velocity loss of an image prediction on the
    linear path.

    v - v' = (x - x') / t for v = (x_t - x) / t (JiT: Li & He 2025, eq. 6 and the clipping of its
    appendix A).
    """

    floor: float = 0.05

    def weight(self, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
        return _on_image(sigma.clamp(min=self.floor) ** -2, alpha, sigma, prediction)


@dataclass(frozen=True, kw_only=True)
class LearnedWeight(Weighting):
    """exp(-u) error + u with a learned u(sigma) (Kendall et al. 2018; Karras et al. 2024, eq. 14).

    At its best exp(u) is the mean error of that noise level, so that every level counts the same.
    u is the model ``log_variance`` beside the network, used in training only.
    """

    def weight(self, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
        return torch.ones_like(sigma)


class LogVariance(nn.Module):
    """u of ln(sigma / alpha): one linear layer on Fourier features, 0 at the start (EDM2, app. B).

    Args:
        features: how many; their frequencies are N(0, 1) and fixed.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, features: int = 128):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("frequencies", torch.randn(features, generator=generator))
        self.register_buffer("phases", torch.rand(features, generator=generator))
        self.out = nn.Linear(features, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """[B] -> [B]."""
        level = (sigma / alpha.clamp(min=1e-8)).log()[:, None] / 4
        angle = 2 * math.pi * (level * self.frequencies + self.phases)
        return self.out(2**0.5 * angle.cos())[:, 0].float()


def _on_image(weight: Tensor, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    """A weight on the image's error, as one on the network's output.

    Noise prediction at SNR 0 has ``error_scale`` 0 and a weight that vanishes as fast: kept from 0
    / 0.
    """
    scale = prediction.error_scale(alpha, sigma)
    return weight / scale.clamp(min=torch.finfo(scale.dtype).tiny)


WEIGHTINGS: dict[str, type[Weighting]] = {
    "uniform": UniformWeight,
    "snr": SNRWeight,
    "min_snr": MinSNRWeight,
    "soft_min_snr": SoftMinSNRWeight,
    "p2": P2Weight,
    "edm": EDMWeight,
    "velocity": VelocityWeight,
    "learned": LearnedWeight,
}
