"""A Gaussian mixture as prior."""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from hfgen.models.layers.prior import Generators, Prior, mixture_log_prob, sample_mixture


class GaussianMixturePrior(ModelMixin, ConfigMixin, Prior):
    """sum_k w_k N(mean_k, diag(var_k)), trained with the VAE or fitted to its latents afterwards.

    Args:
        latent_shape: shape of one latent.
        num_components: K.
    """

    @register_to_config
    def __init__(self, latent_shape: tuple[int, ...] = (20,), num_components: int = 10):
        super().__init__()
        if num_components < 1:
            raise ValueError(
                f"GaussianMixturePrior: num_components must be >= 1, got {num_components}"
            )
        dim = math.prod(latent_shape)
        self.shape = tuple(latent_shape)
        self.weights = nn.Parameter(torch.zeros(num_components))
        self.mean = nn.Parameter(torch.randn(num_components, dim))
        self.logvar = nn.Parameter(torch.zeros(num_components, dim))

    def log_prob(self, z: Tensor) -> Tensor:
        return mixture_log_prob(z.flatten(1), self.weights, self.mean, self.logvar)

    @torch.no_grad()
    def sample(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        class_labels: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        flat = sample_mixture(
            self.weights, self.mean, self.logvar, batch_size, generator, temperature
        )
        return flat.unflatten(1, self.shape)
