"""R3GAN, configuration E (Huang et al. 2024, "The GAN is dead; long live the GAN!", arXiv
2501.05441).
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from hfgen.models.layers.gan import (
    DiscriminatorOutput,
    GeneratorOutput,
    check_labels,
    label_embedding,
    required,
    stage_widths,
    stages,
    with_label,
)
from hfgen.models.layers.resample import downsample, upsample


class BiasedActivation(nn.Module):
    """LeakyReLU(x + b) with slope 0.2: the only place of a bias."""

    gain = math.sqrt(2 / (1 + 0.2**2))

    def __init__(self, channels: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))
        self.act = nn.LeakyReLU(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.bias)


class Block(nn.Module):
    """x + Conv1x1(act(GroupedConv3x3(act(Conv1x1 x)))), without normalisation (section 3.3, figure
    4).

    Fix-up initialisation (Zhang et al. 2019): with m = 3 layers a branch, weights are scaled by
    depth^(-1 / (2 m - 2)), and the last layer is zero.

    Args:
        channels: width; the branch is twice as wide.
        group_width: channels of a group of the 3x3 convolution.
        depth: number of blocks in the network.
    """

    def __init__(self, channels: int, group_width: int, depth: int):
        super().__init__()
        wide = 2 * channels
        self.expand = nn.Conv2d(channels, wide, 1, bias=False)
        self.act1 = BiasedActivation(wide)
        self.spatial = nn.Conv2d(wide, wide, 3, padding=1, groups=wide // group_width, bias=False)
        self.act2 = BiasedActivation(wide)
        self.reduce = nn.Conv2d(wide, channels, 1, bias=False)
        gain = BiasedActivation.gain * depth ** (-1 / 4)
        scaled_normal_(self.expand.weight, gain)
        scaled_normal_(self.spatial.weight, gain)
        nn.init.zeros_(self.reduce.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.reduce(self.act2(self.spatial(self.act1(self.expand(x)))))


def scaled_normal_(weight: Tensor, gain: float = 1.0) -> None:
    """N(0, gain^2 / fan_in)."""
    nn.init.normal_(weight, 0.0, gain / math.sqrt(weight[0].numel()))


def _pointwise(inputs: int, outputs: int) -> nn.Module:
    """A 1x1 convolution where the width changes."""
    if inputs == outputs:
        return nn.Identity()
    layer = nn.Conv2d(inputs, outputs, 1, bias=False)
    scaled_normal_(layer.weight)
    return layer


def _widths(channels: int | list[int], n: int, group_width: int) -> list[int]:
    """One width for each of the ``n`` stages, from the smallest resolution to the largest."""
    widths = stage_widths(channels, n)
    for width in widths:
        if (2 * width) % group_width:
            raise ValueError(f"channels {width}: its double must be a multiple of {group_width}")
    return widths


class R3GANGenerator(ModelMixin, ConfigMixin):
    """z -> learned base x base maps scaled by linear(z) -> stages of residual blocks -> 1x1
    convolution.

    Images are not squashed: they are nominally in [-1, 1].

    Args:
        sample_size: side of the images, 4, 5, 6 or 7 times a power of two.
        out_channels: 1 grey, 3 colour.
        latent_dim: size of z (64 in the paper).
        channels: width, one for all stages or a list from the smallest resolution to the largest
            (the paper: 768 throughout at 32x32, [768, 768, 768, 768, 384] at 64x64).
        num_layers: residual blocks in each stage.
        group_width: channels of a group of the 3x3 convolutions.
        num_class_embeds: number of classes; an embedding of ``latent_dim`` is concatenated to z.

    Raises:
        ValueError: a size that cannot be made, a missing argument, widths that do not fit.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        out_channels: int | None = None,
        latent_dim: int = 64,
        channels: int | list[int] = 96,
        num_layers: int = 2,
        group_width: int = 16,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        base, n = stages(sample_size)
        widths = _widths(channels, n + 1, group_width)
        depth = num_layers * len(widths)
        self.class_embedding = label_embedding(num_class_embeds, latent_dim)
        if self.class_embedding is not None:
            nn.init.normal_(self.class_embedding.weight, 0.0, 1 / math.sqrt(num_class_embeds or 1))
        inputs = latent_dim * (1 if num_class_embeds is None else 2)
        self.basis = nn.Parameter(torch.randn(widths[0], base, base))
        self.project = nn.Linear(inputs, widths[0], bias=False)
        scaled_normal_(self.project.weight)
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(width, group_width, depth) for _ in range(num_layers)))
            for width in widths
        )
        self.transitions = nn.ModuleList(_pointwise(a, b) for a, b in pairwise(widths))
        self.to_image = nn.Conv2d(widths[-1], required("out_channels", out_channels), 1, bias=False)
        scaled_normal_(self.to_image.weight)

    @property
    def latent_weight(self) -> Tensor:
        """The matrix that latents meet first, [outputs, latent_dim]: what SeFa looks at."""
        return self.project.weight[:, : self.config["latent_dim"]]

    def forward(self, z: Tensor, class_labels: Tensor | None = None) -> GeneratorOutput:
        """Images [B, C, H, W], nominally in [-1, 1], from z [B, latent_dim] ~ N(0, 1) and labels
        [B].
        """
        z = with_label(z, self.class_embedding, class_labels)
        x = self.stages[0](self.basis * self.project(z)[:, :, None, None])
        for transition, stage in zip(self.transitions, self.stages[1:], strict=True):
            x = stage(upsample(transition(x)))
        return GeneratorOutput(sample=self.to_image(x))


class R3GANDiscriminator(ModelMixin, ConfigMixin):
    """The generator mirrored: 1x1 convolution -> stages of residual blocks -> depthwise base x base
    -> linear.

    With classes, the logit is the product of a linear map of the features with the label's
    embedding.

    Args:
        sample_size: side of the images, 4, 5, 6 or 7 times a power of two.
        in_channels: 1 grey, 3 colour.
        channels: width, one for all stages or a list from the smallest resolution to the largest.
        num_layers: residual blocks in each stage.
        group_width: channels of a group of the 3x3 convolutions.
        num_class_embeds: number of classes.

    Raises:
        ValueError: a size that cannot be made, a missing argument, widths that do not fit.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int | None = None,
        channels: int | list[int] = 96,
        num_layers: int = 2,
        group_width: int = 16,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        base, n = stages(sample_size)
        widths = _widths(channels, n + 1, group_width)[::-1]
        depth = num_layers * len(widths)
        self.from_image = nn.Conv2d(required("in_channels", in_channels), widths[0], 1, bias=False)
        scaled_normal_(self.from_image.weight)
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(width, group_width, depth) for _ in range(num_layers)))
            for width in widths
        )
        self.transitions = nn.ModuleList(_pointwise(a, b) for a, b in pairwise(widths))
        last = widths[-1]
        self.basis = nn.Conv2d(last, last, base, groups=last, bias=False)
        self.head = nn.Linear(last, 1 if num_class_embeds is None else last, bias=False)
        scaled_normal_(self.basis.weight)
        scaled_normal_(self.head.weight)
        self.class_embedding = None
        if num_class_embeds is not None:
            self.class_embedding = nn.Embedding(num_class_embeds, last)
            nn.init.normal_(
                self.class_embedding.weight, 0.0, 1 / math.sqrt(num_class_embeds * last)
            )

    def forward(self, sample: Tensor, class_labels: Tensor | None = None) -> DiscriminatorOutput:
        """Logits [B] for images [B, C, H, W] in [-1, 1] and labels [B] int64."""
        check_labels(class_labels, self.config["num_class_embeds"])
        x = self.stages[0](self.from_image(sample))
        for transition, stage in zip(self.transitions, self.stages[1:], strict=True):
            x = stage(transition(downsample(x)))
        features = self.basis(x).flatten(1)
        logits = self.head(features)
        if self.class_embedding is not None:
            logits = (logits * self.class_embedding(class_labels)).sum(1, keepdim=True)
        return DiscriminatorOutput(logits=logits.squeeze(1), features=features)
