"""Lightweight GAN (Liu et al. 2021, "Towards faster and stabilized GAN training for high-fidelity
few-shot image synthesis", arXiv 2101.04775; also known as FastGAN).

Its noise inputs are left out: one latent is one image.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from hfgen.models.layers.gan import (
    ClassHead,
    DiscriminatorOutput,
    GeneratorOutput,
    init_he,
    label_embedding,
    normalization,
    required,
    stage_widths,
    stages,
    with_label,
)
from hfgen.models.layers.resample import conv_upsampled


class UpBlock(nn.Module):
    """Nearest upsampling, 3x3 convolution, norm, gated linear unit (figure 3)."""

    def __init__(self, inputs: int, outputs: int, norm: str):
        super().__init__()
        self.conv = nn.Conv2d(inputs, 2 * outputs, 3, padding=1, bias=norm == "none")
        self.norm = normalization(norm, 2 * outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.glu(self.norm(conv_upsampled(x, self.conv.weight, self.conv.bias)), dim=1)


class SkipLayerExcitation(nn.Module):
    """y = gate(x_low) * x_high, one gate for each channel, from a map of much lower resolution
    (equation 1, figure 3).
    """

    def __init__(self, low: int, high: int):
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(4),
            nn.Conv2d(low, high, 4),
            nn.LeakyReLU(0.1),
            nn.Conv2d(high, high, 1),
            nn.Sigmoid(),
        )

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        return self.gate(low) * high


class LightweightGenerator(ModelMixin, ConfigMixin):
    """z -> base x base -> up blocks; each map of at least ``excitation`` times an earlier one's
    side is gated by it -> 3x3 convolution, tanh.

    Args:
        sample_size: side of the images, 4, 5, 6 or 7 times a power of two.
        out_channels: 1 grey, 3 colour.
        latent_dim: size of z (256 in the paper).
        channels: width, one for all resolutions or a list from the smallest to the largest.
        excitation: by how many doublings the gated map is finer than the gating one (4 in the
            paper: 8 -> 128, 16 -> 256; small images have fewer).
        norm: ``batch`` (the paper), ``group`` or ``none``.
        num_class_embeds: number of classes; an embedding of the label is concatenated to z.

    Raises:
        ValueError: a size that cannot be made, a missing argument.
    """

    # these layers are used by their weights, where the hooks of layerwise casting are not called
    _skip_layerwise_casting_patterns = ["conv"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        out_channels: int | None = None,
        latent_dim: int = 128,
        channels: int | list[int] = 64,
        excitation: int = 2,
        norm: str = "batch",
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        self.base, n = stages(sample_size)
        widths = stage_widths(channels, n + 1)
        required("excitation", excitation)
        self.class_embedding = label_embedding(num_class_embeds, latent_dim)
        inputs = latent_dim * (1 if num_class_embeds is None else 2)
        self.project = nn.Linear(inputs, 2 * widths[0] * self.base**2, bias=norm == "none")
        self.first_norm = normalization(norm, 2 * widths[0])
        self.blocks = nn.ModuleList(UpBlock(a, b, norm) for a, b in pairwise(widths))
        self.gates = nn.ModuleList(
            SkipLayerExcitation(low, high)
            for low, high in zip(widths, widths[excitation:], strict=False)
        )
        self.to_image = nn.Conv2d(widths[-1], required("out_channels", out_channels), 3, padding=1)
        init_he(self)

    @property
    def latent_weight(self) -> Tensor:
        """The matrix that latents meet first, [outputs, latent_dim]: what SeFa looks at."""
        return self.project.weight[:, : self.config["latent_dim"]]

    def forward(self, z: Tensor, class_labels: Tensor | None = None) -> GeneratorOutput:
        """Images [B, C, H, W] in [-1, 1] from z [B, latent_dim] ~ N(0, 1) and labels [B] int64."""
        z = with_label(z, self.class_embedding, class_labels)
        x = self.project(z).unflatten(1, (-1, self.base, self.base))
        maps = [F.glu(self.first_norm(x), dim=1)]
        finer = len(self.blocks) + 1 - len(self.gates)
        for i, block in enumerate(self.blocks, start=1):
            x = block(maps[-1])
            maps.append(x if i < finer else self.gates[i - finer](maps[i - finer], x))
        return GeneratorOutput(sample=torch.tanh(self.to_image(maps[-1])))


class DownBlock(nn.Module):
    """Mean of [4x4 convolution of stride 2, 3x3 convolution] and [average pooling, 1x1
    convolution] (figure 4).
    """

    def __init__(self, inputs: int, outputs: int, norm: str):
        super().__init__()
        self.main = nn.Sequential(
            *convolution(inputs, outputs, 4, norm, stride=2, padding=1),
            *convolution(outputs, outputs, 3, norm, padding=1),
        )
        self.direct = nn.Sequential(nn.AvgPool2d(2), *convolution(inputs, outputs, 1, norm))

    def forward(self, x: Tensor) -> Tensor:
        return (self.main(x) + self.direct(x)) / 2


def convolution(
    inputs: int, outputs: int, kernel: int, norm: str, stride: int = 1, padding: int = 0
) -> list[nn.Module]:
    """Convolution, norm, LeakyReLU 0.2."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=norm == "none")
    return [conv, normalization(norm, outputs), nn.LeakyReLU(0.2)]


class LightweightDiscriminator(ModelMixin, ConfigMixin):
    """Strided convolution, down blocks to the base, a logit; and a decoder from the map one
    doubling above the base, which ``reconstruct`` is: trained on real images it makes the features
    describe all of them (section 3.2; regulariser ``reconstruction``).

    Of the paper's two decoders this is the one for the whole image.

    Args:
        sample_size: side of the images, 4, 5, 6 or 7 times a power of two.
        in_channels: 1 grey, 3 colour.
        channels: width, one for all resolutions or a list from the smallest to the largest, one
            entry for each halving.
        norm: ``batch`` (the paper), ``group`` or ``none``; with the latter two, rows do not depend
            on one another.
        num_class_embeds: number of classes.
        conditioning: how labels enter, see ``ClassHead``.

    Raises:
        ValueError: a size that cannot be made, a missing argument.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int | None = None,
        channels: int | list[int] = 64,
        norm: str = "batch",
        num_class_embeds: int | None = None,
        conditioning: str = "projection",
    ):
        super().__init__()
        base, n = stages(sample_size)
        widths = stage_widths(channels, n)[::-1]
        colours = required("in_channels", in_channels)
        first = nn.Conv2d(colours, widths[0], 4, stride=2, padding=1)
        layers = [nn.Sequential(first, nn.LeakyReLU(0.2))]
        layers += [DownBlock(a, b, norm) for a, b in pairwise(widths)]
        decoded = max(n - 1, 1)
        self.blocks, self.last = nn.Sequential(*layers[:decoded]), nn.Sequential(*layers[decoded:])
        self.head = nn.Linear(widths[-1] * base**2, 1)
        self.classes = ClassHead(widths[-1], num_class_embeds, conditioning)
        ups = [UpBlock(a, b, norm) for a, b in pairwise(widths[:decoded][::-1])]
        self.decoder = nn.Sequential(*ups, nn.Conv2d(widths[0], colours, 3, padding=1), nn.Tanh())
        init_he(self)

    def forward(self, sample: Tensor, class_labels: Tensor | None = None) -> DiscriminatorOutput:
        """Logits [B] for images [B, C, H, W] in [-1, 1] and labels [B] int64."""
        maps = self.blocks(sample)
        hidden = self.last(maps)
        logits = self.head(hidden.flatten(1)).squeeze(1)
        output = self.classes(logits, hidden.mean((2, 3)), class_labels)
        output["maps"] = maps
        return output

    def reconstruct(self, maps: Tensor) -> Tensor:
        """The images [B, C, H / 2, W / 2] that ``maps`` of an output were made of."""
        return self.decoder(maps)
