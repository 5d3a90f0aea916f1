"""q(z | x): what a VAE's ``encode`` returns. A latent of any shape; the first dimension is the
batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


class Posterior(ABC):
    """A distribution of latents that is reparameterised: noise in, latent out, gradients through.

    Attributes:
        mean: [B, *latent], the Gaussian's mean (of the base Gaussian where a flow follows).
        std: [B, *latent], its standard deviation.
    """

    mean: Tensor
    std: Tensor

    @abstractmethod
    def rsample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Standard normal ``noise`` [B, *latent] -> latent [B, *latent] and its log-density [B] in
        nats.
        """

    @abstractmethod
    def mode(self) -> Tensor:
        """The deterministic code [B, *latent], used to reconstruct."""

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """ln q(z | x) in nats, [B]."""

    @abstractmethod
    def kl(self) -> Tensor:
        """KL(q(z | x) || p(z)) to the standard prior in nats, [B]."""

    def sample(self, generator: torch.Generator | list[torch.Generator] | None = None) -> Tensor:
        """One latent per image, [B, *latent]."""
        mean = self.mean
        noise = randn_tensor(mean.shape, generator, device=mean.device, dtype=mean.dtype)
        return self.rsample(noise)[0]


class DiagonalGaussian(Posterior):
    """N(mean, diag(exp(logvar))) (Kingma & Welling 2013, eq. 9).

    Args:
        mean: [B, *latent].
        logvar: [B, *latent], kept in [-30, 20] as in diffusers.
    """

    def __init__(self, mean: Tensor, logvar: Tensor):
        self.mean = mean
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.std = torch.exp(0.5 * self.logvar)

    def rsample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        log_density = -0.5 * (noise.square() + self.logvar + math.log(2 * math.pi))
        return self.mean + self.std * noise, log_density.flatten(1).sum(1)

    def mode(self) -> Tensor:
        return self.mean

    def log_prob(self, z: Tensor) -> Tensor:
        scaled = (z - self.mean) / self.std
        return (-0.5 * (scaled.square() + self.logvar + math.log(2 * math.pi))).flatten(1).sum(1)

    def kl(self) -> Tensor:
        # Kingma & Welling 2013, appendix B: -KL = 1/2 sum (1 + log s^2 - mu^2 - s^2)
        terms = self.mean.square() + self.logvar.exp() - 1 - self.logvar
        return 0.5 * terms.flatten(1).sum(1)


@dataclass
class VAEOutput(BaseOutput):
    """A VAE's ``forward``.

    Attributes:
        sample: decoder output [B, out_channels, H, W]: the parameters of the likelihood.
        latent_dist: the posterior.
    """

    sample: Tensor
    latent_dist: Posterior
