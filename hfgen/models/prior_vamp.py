"""The variational mixture of posteriors."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from hfgen.models.layers.prior import Generators, Prior, mixture_log_prob, sample_mixture


class VampPrior(ModelMixin, ConfigMixin, Prior):
    """1/K sum_k q(z | u_k) with learned pseudo-inputs u_k (Tomczak & Welling 2018, eq. 10).

    ``tie`` runs the pseudo-inputs through the encoder of the training step; the next ``log_prob``
    uses the result, so that encoder and pseudo-inputs both learn from ln p(z). The components of
    the last step are kept as buffers: a saved prior stands alone.

    Args:
        latent_dim: length of the VAE's flat latent.
        num_components: K.
        sample_size, in_channels: of the VAE's images.
    """

    mean: Tensor
    logvar: Tensor

    @register_to_config
    def __init__(
        self,
        latent_dim: int = 40,
        num_components: int = 500,
        sample_size: int = 28,
        in_channels: int = 1,
    ):
        super().__init__()
        if num_components < 1:
            raise ValueError(f"VampPrior: num_components must be >= 1, got {num_components}")
        shape = (num_components, in_channels, sample_size, sample_size)
        # tanh of it is an image, dark with some grey, as in the published code's start
        self.pseudo_inputs = nn.Parameter(torch.randn(shape) * 0.5 - 1.0)
        self.register_buffer("mean", torch.zeros(num_components, latent_dim))
        self.register_buffer("logvar", torch.zeros(num_components, latent_dim))
        self.register_buffer("weights", torch.zeros(num_components), persistent=False)
        self._live: tuple[Tensor, Tensor] | None = None

    def tie(self, vae: nn.Module) -> None:
        model: Any = vae
        if model.config.get("num_class_embeds") is not None:
            raise ValueError(
                "VampPrior: a conditional VAE is not supported; unset class_conditional"
            )
        posterior = model.encode(torch.tanh(self.pseudo_inputs)).latent_dist
        if posterior.mean.shape != self.mean.shape:
            raise ValueError(
                f"VampPrior: latent_dim is {self.mean.shape[1]}, but the VAE's latents are "
                f"{tuple(posterior.mean.shape[1:])}: set model.prior.latent_dim to match"
            )
        self._live = (posterior.mean, posterior.logvar)
        self.mean.copy_(posterior.mean.detach())
        self.logvar.copy_(posterior.logvar.detach())

    def log_prob(self, z: Tensor) -> Tensor:
        mean, logvar = self._live or (self.mean, self.logvar)
        self._live = None  # used once: a graph that stays would be copied with the module
        return mixture_log_prob(z, self.weights, mean, logvar)  # type: ignore[arg-type]

    @torch.no_grad()
    def sample(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        class_labels: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        return sample_mixture(
            self.weights,  # type: ignore[arg-type]
            self.mean,
            self.logvar,
            batch_size,
            generator,
            temperature,
        )
