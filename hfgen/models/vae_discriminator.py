"""A discriminator of latents."""

from __future__ import annotations

import math
from dataclasses import dataclass

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn


@dataclass
class LatentDiscriminatorOutput(BaseOutput):
    """Attributes:
    logits: [B], positive where the latents look like those of the first distribution.
    """

    logits: Tensor


class LatentDiscriminator(ModelMixin, ConfigMixin):
    """A multilayer perceptron on latents (Kim & Mnih 2018, appendix A: 6 layers of 1000).

    Args:
        latent_shape: shape of one latent, flat inside.
        hidden_size, num_layers: width and number of the hidden layers.
    """

    @register_to_config
    def __init__(
        self, latent_shape: tuple[int, ...] = (10,), hidden_size: int = 256, num_layers: int = 4
    ):
        super().__init__()
        widths = [math.prod(latent_shape)] + [hidden_size] * num_layers
        layers: list[nn.Module] = [nn.Flatten()]
        for first, second in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(first, second), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(
        self, z: Tensor, return_dict: bool = True
    ) -> LatentDiscriminatorOutput | tuple[Tensor]:
        """Latents [B, *latent_shape] -> logits [B]."""
        logits = self.net(z).squeeze(1)
        return LatentDiscriminatorOutput(logits=logits) if return_dict else (logits,)
