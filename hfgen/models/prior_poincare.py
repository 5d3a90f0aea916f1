"""The wrapped normal distribution at the centre of the Poincare ball as prior."""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hfgen.models.layers.poincare import WrappedNormal, travel, way
from hfgen.models.layers.prior import Generators, Prior


class PoincarePrior(ModelMixin, ConfigMixin, Prior):
    """exp_0(v / 2) with v ~ N(0, std^2 I), for a ``poincare`` posterior (Mathieu et al. 2019).

    Args:
        latent_dim: D.
        std: of v, in units of hyperbolic distance.
    """

    anchor: Tensor

    @register_to_config
    def __init__(self, latent_dim: int = 2, std: float = 1.0):
        super().__init__()
        if latent_dim < 2 or std <= 0:
            raise ValueError(
                f"PoincarePrior: needs latent_dim >= 2 and std > 0, got {latent_dim} and {std}"
            )
        # a saved model needs a tensor, and this one says where to draw
        self.register_buffer("anchor", torch.zeros(latent_dim))

    def log_prob(self, z: Tensor) -> Tensor:
        centre = torch.zeros_like(z)
        logvar = torch.full_like(z, 2 * math.log(self.config["std"]))
        return WrappedNormal(centre, logvar).log_prob(z)

    @torch.no_grad()
    def sample(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        class_labels: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        shape = (batch_size, self.config["latent_dim"])
        noise = randn_tensor(shape, generator, self.anchor.device, self.anchor.dtype)
        return travel(torch.zeros_like(noise), temperature * self.config["std"] * noise)

    def geodesic(self, a: Tensor, b: Tensor, steps: int) -> Tensor:
        """Geodesics of the ball from a to b [B, D], [B, steps, D] (Ganea et al. 2018, eq. 11)."""
        share = torch.linspace(0, 1, steps, dtype=a.dtype, device=a.device)[:, None]
        start = a[:, None].expand(-1, steps, -1)
        return travel(start, share * way(a, b)[:, None])
