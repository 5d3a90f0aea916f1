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
    """A distribution of latents that is reparameterised: noise in, latent out, gradients
    through.
    """

    @property
    @abstractmethod
    def noise_shape(self) -> torch.Size:
        """Shape of the standard normal numbers that ``rsample`` takes; the batch comes first."""

    @abstractmethod
    def rsample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Noise [..., *noise_shape] -> latents [..., B, *latent] and ln q(z|x) [..., B] in nats.

        Leading dimensions are further samples of the same posteriors.
        """

    @abstractmethod
    def mode(self) -> Tensor:
        """The deterministic code [B, *latent], used to reconstruct."""

    @abstractmethod
    def kl_terms(self) -> Tensor | None:
        """KL to the standard prior in nats by latent dimension, [B, D]; None without a closed
        form.
        """

    def kl(self) -> Tensor:
        """KL(q(z|x) || p(z)) to the standard prior in nats, [B]; ValueError without a closed
        form.
        """
        terms = self.kl_terms()
        if terms is None:
            raise ValueError(f"{type(self).__name__} has no closed KL: average ln q(z|x) - ln p(z)")
        return terms.sum(1)

    def sample(self, generator: torch.Generator | list[torch.Generator] | None = None) -> Tensor:
        """One latent per image, [B, *latent]."""
        mode = self.mode()
        noise = randn_tensor(self.noise_shape, generator, device=mode.device, dtype=mode.dtype)
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

    @property
    def noise_shape(self) -> torch.Size:
        return self.mean.shape

    def rsample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean + self.std * noise, self._log_density(noise)

    def log_prob(self, z: Tensor) -> Tensor:
        """ln q(z|x) in nats of latents [..., B, *latent], [..., B]."""
        return self._log_density((z - self.mean) / self.std)

    def _log_density(self, scaled: Tensor) -> Tensor:
        nats = -0.5 * (scaled.square() + self.logvar + math.log(2 * math.pi))
        return nats.sum(tuple(range(1 - self.mean.dim(), 0)))

    def mode(self) -> Tensor:
        return self.mean

    def kl_terms(self) -> Tensor:
        # Kingma & Welling 2013, appendix B: -KL = 1/2 sum (1 + log s^2 - mu^2 - s^2)
        terms = 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar)
        return terms.flatten(1)

    def detach(self) -> DiagonalGaussian:
        """The same distribution, cut from the encoder."""
        return DiagonalGaussian(self.mean.detach(), self.logvar.detach())


class Deterministic(Posterior):
    """All mass on one latent, as an autoencoder or a quantiser has it; it has no density.

    Args:
        latents: [B, *latent].
    """

    def __init__(self, latents: Tensor):
        self.latents = latents

    @property
    def noise_shape(self) -> torch.Size:
        return self.latents.shape

    def rsample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        raise ValueError("a deterministic encoder has no density: an objective with a KL needs one")

    def mode(self) -> Tensor:
        return self.latents

    def kl_terms(self) -> None:
        return None

    def sample(self, generator: torch.Generator | list[torch.Generator] | None = None) -> Tensor:
        return self.latents


@dataclass
class VAEOutput(BaseOutput):
    """A VAE's ``forward``.

    Attributes:
        sample: decoder output [B, out_channels, H, W]: the parameters of the likelihood.
        latent_dist: the posterior.
    """

    sample: Tensor
    latent_dist: Posterior
