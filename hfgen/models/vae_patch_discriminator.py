"""PatchGAN: a discriminator that judges overlapping patches."""

from __future__ import annotations

from dataclasses import dataclass

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from hfgen.models.layers.conv import group_norm


@dataclass
class PatchDiscriminatorOutput(BaseOutput):
    """Attributes:
    logits: [B, h, w], one per patch, positive where it looks real.
    """

    logits: Tensor


class PatchDiscriminator(ModelMixin, ConfigMixin):
    """4x4 convolutions of stride 2, then two of stride 1 (Isola et al. 2017, section 3.2.2).

    With group norm in place of the paper's batch norm, so that no image depends on the others.

    Args:
        in_channels: channels of the image.
        channels: width after the first convolution; it doubles with each further one, to 8 times.
        num_layers: convolutions of stride 2; with 3 a patch is 70 x 70 pixels, with 2 it is 34 x
            34.
    """

    @register_to_config
    def __init__(self, in_channels: int = 3, channels: int = 64, num_layers: int = 2):
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"PatchDiscriminator: num_layers must be at least 1, got {num_layers}")
        widths = [channels * min(2**i, 8) for i in range(num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(in_channels, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        for i in range(1, num_layers + 1):
            stride = 2 if i < num_layers else 1
            layers += [
                nn.Conv2d(widths[i - 1], widths[i], 4, stride, 1, bias=False),
                group_norm(widths[i]),
                nn.LeakyReLU(0.2),
            ]
        self.net = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        for module in self.net:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(
        self, sample: Tensor, return_dict: bool = True
    ) -> PatchDiscriminatorOutput | tuple[Tensor]:
        """Images [B, C, H, W] in [-1, 1] -> logits [B, h, w]."""
        logits = self.net(sample).squeeze(1)
        return PatchDiscriminatorOutput(logits=logits) if return_dict else (logits,)
