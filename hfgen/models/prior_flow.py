"""A normalising flow as prior."""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hfgen.models.layers.flows import MaskedAffineFlow
from hfgen.models.layers.prior import Generators, Prior


class FlowPrior(ModelMixin, ConfigMixin, Prior):
    """Masked affine steps between a latent and standard normal noise.

    Args:
        latent_shape: shape of one latent, flat inside.
        kind: "maf" (Papamakarios et al. 2017): a quick density, draws take D passes per step;
            "iaf" (Kingma et al. 2016): quick draws, a density takes D passes per step.
        num_layers: steps.
        hidden_size: width of each step's network.
    """

    mean: Tensor
    std: Tensor

    @register_to_config
    def __init__(
        self,
        latent_shape: tuple[int, ...] = (20,),
        kind: str = "maf",
        num_layers: int = 4,
        hidden_size: int = 128,
    ):
        super().__init__()
        if kind not in ("maf", "iaf"):
            raise ValueError(f"FlowPrior: kind must be 'maf' or 'iaf', got {kind!r}")
        if num_layers < 1 or hidden_size < 1:
            raise ValueError(
                "FlowPrior: num_layers and hidden_size must be >= 1, "
                f"got {num_layers} and {hidden_size}"
            )
        self.shape, self.dim = tuple(latent_shape), math.prod(latent_shape)
        self.flow = MaskedAffineFlow(self.dim, num_layers, hidden_size)
        self.register_buffer("mean", torch.zeros(self.dim))
        self.register_buffer("std", torch.ones(self.dim))

    def log_prob(self, z: Tensor) -> Tensor:
        scaled = (z.flatten(1) - self.mean) / self.std
        to_noise = self.flow if self.config["kind"] == "maf" else self.flow.inverse
        noise, log_det = to_noise(scaled)
        normal = -0.5 * (noise.square() + math.log(2 * math.pi)).sum(1)
        return normal + log_det - self.std.log().sum()

    @torch.no_grad()
    def sample(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        class_labels: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        noise = randn_tensor((batch_size, self.dim), generator, self.mean.device, self.mean.dtype)
        from_noise = self.flow.inverse if self.config["kind"] == "maf" else self.flow
        scaled, _ = from_noise(temperature * noise)
        return (scaled * self.std + self.mean).unflatten(1, self.shape)
