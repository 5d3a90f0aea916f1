"""A normal distribution at the centre of the Poincare ball as prior."""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hfgen.models.layers.poincare import NormalOnBall, ball_normal, travel, way
from hfgen.models.layers.prior import Generators, Prior


class PoincarePrior(ModelMixin, ConfigMixin, Prior):
    """For a ``poincare`` posterior (Mathieu et al. 2019): "wrapped", exp_0(v / 2) with
    v ~ N(0, std^2 I), or "riemannian", proportional to exp(-d(0, z)^2 / (2 std^2)).

    Args:
        latent_dim: D.
        std: in units of hyperbolic distance.
        normal: which of the two.
    """

    anchor: Tensor

    @register_to_config
    def __init__(self, latent_dim: int = 2, std: float = 1.0, normal: str = "wrapped"):
        super().__init__()
        if latent_dim < 2 or std <= 0:
            raise ValueError(
                f"PoincarePrior: needs latent_dim >= 2 and std > 0, got {latent_dim} and {std}"
            )
        self.kind = ball_normal("PoincarePrior", normal)
        # a saved model needs a tensor, and this one says where to draw
        self.register_buffer("anchor", torch.zeros(latent_dim))

    def log_prob(self, z: Tensor) -> Tensor:
        return self._at_centre().log_prob(z)

    def _at_centre(self) -> NormalOnBall:
        """Of one row, which stands for any number."""
        spread = 1 if self.kind.isotropic else self.config["latent_dim"]
        logvar = self.anchor.new_full((1, spread), 2 * math.log(self.config["std"]))
        return self.kind(torch.zeros_like(self.anchor)[None], logvar)

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
        v = self._at_centre().step(noise.unsqueeze(1)).squeeze(1)
        return travel(torch.zeros_like(noise), temperature * v)

    def geodesic(self, a: Tensor, b: Tensor, steps: int) -> Tensor:
        """Geodesics of the ball from a to b [B, D], [B, steps, D] (Ganea et al. 2018, eq. 11)."""
        share = torch.linspace(0, 1, steps, dtype=a.dtype, device=a.device)[:, None]
        start = a[:, None].expand(-1, steps, -1)
        return travel(start, share * way(a, b)[:, None])
