"""The uniform distribution on a sphere as prior."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hfgen.models.layers.prior import Generators, Prior
from hfgen.models.layers.sphere import log_sphere_area


class SphereUniformPrior(ModelMixin, ConfigMixin, Prior):
    """Uniform on the unit sphere, the prior of the hyperspherical VAE (Davidson et al. 2018).

    Args:
        latent_dim: D, dimensions of the space around the sphere.
    """

    is_reference = True
    anchor: Tensor

    @register_to_config
    def __init__(self, latent_dim: int = 10):
        super().__init__()
        # a saved model needs a tensor, and this one says where to draw
        self.register_buffer("anchor", torch.zeros(latent_dim))

    def log_prob(self, z: Tensor) -> Tensor:
        return z.new_full((len(z),), -log_sphere_area(self.config["latent_dim"]))

    @torch.no_grad()
    def sample(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        class_labels: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Points [batch_size, D]; a uniform distribution has no ``temperature``."""
        shape = (batch_size, self.config["latent_dim"])
        return F.normalize(randn_tensor(shape, generator, self.anchor.device), dim=1)

    def geodesic(self, a: Tensor, b: Tensor, steps: int) -> Tensor:
        """Great circles from a to b [B, D], scaled to the sphere, [B, steps, D]."""
        a, b = F.normalize(a, dim=1)[:, None], F.normalize(b, dim=1)[:, None]
        angle = torch.acos((a * b).sum(2, keepdim=True).clamp(-1, 1))
        share = torch.linspace(0, 1, steps, dtype=a.dtype, device=a.device)[:, None]
        across = F.normalize(b - (a * b).sum(2, keepdim=True) * a, dim=2)
        return torch.cos(share * angle) * a + torch.sin(share * angle) * across
