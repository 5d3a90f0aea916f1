"""A second VAE on the latents of the first."""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from hfgen.models.layers.posterior import DiagonalGaussian
from hfgen.models.layers.prior import Generators, Prior


class TwoStagePrior(ModelMixin, ConfigMixin, Prior):
    """Two-stage VAE (Dai & Wipf 2019, section 4): u ~ N(0, I), z ~ N(decoder(u), gamma^2 I).

    The second latent has the size of the first, and gamma is learned.

    Args:
        latent_shape: shape of one latent, flat inside.
        hidden_size: width of three hidden layers on each side.
        num_samples: importance samples of ``log_prob`` outside training.
    """

    mean: Tensor
    std: Tensor

    @register_to_config
    def __init__(
        self,
        latent_shape: tuple[int, ...] = (20,),
        hidden_size: int = 256,
        num_samples: int = 100,
    ):
        super().__init__()
        self.shape, self.dim = tuple(latent_shape), math.prod(latent_shape)
        self.encoder = _mlp(self.dim, hidden_size, 2 * self.dim)
        self.decoder = _mlp(self.dim, hidden_size, self.dim)
        self.log_gamma = nn.Parameter(torch.zeros(()))
        self.register_buffer("mean", torch.zeros(self.dim))
        self.register_buffer("std", torch.ones(self.dim))

    def log_prob(self, z: Tensor) -> Tensor:
        """A lower bound: one importance sample while training (the ELBO), ``num_samples`` else."""
        scaled = (z.flatten(1) - self.mean) / self.std
        samples = 1 if self.training else self.config["num_samples"]
        posterior = DiagonalGaussian(*self.encoder(scaled).chunk(2, dim=1))
        noise = torch.randn(samples, *scaled.shape, device=z.device).to(z.dtype)
        u, log_q = posterior.rsample(noise)
        log_normal = -0.5 * (u.square() + math.log(2 * math.pi)).sum(-1)
        error = (scaled - self.decoder(u)) / self.log_gamma.exp()
        log_p = -0.5 * (error.square() + math.log(2 * math.pi)).sum(-1) - self.dim * self.log_gamma
        bound = torch.logsumexp(log_p + log_normal - log_q, dim=0) - math.log(samples)
        return bound - self.std.log().sum()

    @torch.no_grad()
    def sample(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        class_labels: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        noise = randn_tensor((batch_size, 2, self.dim), generator, self.mean.device)
        u, eps = (temperature * noise).to(self.mean.dtype).unbind(1)
        scaled = self.decoder(u) + self.log_gamma.exp() * eps
        return (scaled * self.std + self.mean).unflatten(1, self.shape)


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inputs, hidden, hidden):
        layers += [nn.Linear(width, hidden), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, outputs))
