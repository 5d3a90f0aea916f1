"""DCGAN (Radford, Metz & Chintala 2015, https://arxiv.org/abs/1511.06434), from 8x8 upwards."""

from __future__ import annotations

from itertools import pairwise

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from hfgen.models.layers.gan import (
    ClassHead,
    DiscriminatorOutput,
    GeneratorOutput,
    code_latents,
    init_he,
    init_normal,
    label_embedding,
    normalization,
    required,
    stages,
    with_label,
)


def _widths(channels: int, n: int) -> list[int]:
    """Channels from full size inwards: doubling with every halving, to 8 times at most (figure
    1).
    """
    return [channels * min(2**i, 8) for i in range(n)]


def _initialize(model: nn.Module, norm: str) -> None:
    """The paper's N(0, 0.02^2) needs a norm that restores the scale; without one, He's."""
    if norm == "none":
        init_he(model)
    else:
        init_normal(model)


class DCGANGenerator(ModelMixin, ConfigMixin):
    """z -> linear to base x base -> [norm, ReLU, 4x4 transposed convolution of stride 2] ...

    and a tanh at the end.

    Args:
        sample_size: side of the images, 4, 5, 6 or 7 times a power of two: 8, 16, 28, 32, 64 ...
        out_channels: 1 grey, 3 colour.
        latent_dim: size of z (100 in the paper).
        channels: width before the last layer; it doubles with every halving of the size, to 8 times
            at most.
        norm: ``batch`` (the paper), ``group`` or ``none``; the latter two keep the rows of a batch
            independent.
        num_class_embeds: number of classes; a learned embedding of the label is concatenated to z
            (Mirza & Osindero 2014).
        categorical_codes: so many latents form a categorical code, see ``code_latents`` (InfoGAN).

    Raises:
        ValueError: a size that cannot be made, a missing or unknown argument.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        out_channels: int | None = None,
        latent_dim: int = 100,
        channels: int = 64,
        norm: str = "batch",
        num_class_embeds: int | None = None,
        categorical_codes: int = 0,
    ):
        super().__init__()
        out_channels = required("out_channels", out_channels)
        base, n = stages(sample_size)
        widths = _widths(required("channels", channels), n)[::-1]
        self.class_embedding = label_embedding(num_class_embeds, latent_dim)
        inputs = latent_dim * (1 if num_class_embeds is None else 2)
        self.project = nn.Sequential(
            nn.Linear(inputs, widths[0] * base**2, bias=norm == "none"),
            nn.Unflatten(1, (widths[0], base, base)),
        )
        blocks: list[nn.Module] = []
        for i, (width, narrower) in enumerate(pairwise([*widths, out_channels])):
            last = i == len(widths) - 1
            bias = last or norm == "none"  # a norm's shift makes a bias before it redundant
            upsample = nn.ConvTranspose2d(width, narrower, 4, 2, 1, bias=bias)
            blocks += [normalization(norm, width), nn.ReLU(inplace=True), upsample]
        self.blocks = nn.Sequential(*blocks)
        _initialize(self, norm)

    @property
    def latent_weight(self) -> Tensor:
        """The matrix that latents meet first, [outputs, latent_dim]: what SeFa looks at."""
        return self.project.get_parameter("0.weight")[:, : self.config["latent_dim"]]

    def forward(self, z: Tensor, class_labels: Tensor | None = None) -> GeneratorOutput:
        """Images [B, C, H, W] in [-1, 1] from z [B, latent_dim] ~ N(0, 1) and labels [B] int64."""
        z = code_latents(z, self.config["categorical_codes"])
        z = with_label(z, self.class_embedding, class_labels)
        return GeneratorOutput(sample=torch.tanh(self.blocks(self.project(z))))


class DCGANDiscriminator(ModelMixin, ConfigMixin):
    """[4x4 convolution of stride 2, norm, LeakyReLU 0.2] ... -> linear; no norm after the first
    convolution.

    Args:
        sample_size: side of the images, 4, 5, 6 or 7 times a power of two.
        in_channels: 1 grey, 3 colour.
        channels: width after the first layer; it doubles with every halving of the size, to 8 times
            at most.
        norm: ``batch`` (the paper), ``group`` or ``none``. A gradient penalty wants rows to be
            independent (Gulrajani et al. 2017, section 4): choose ``group`` or ``none`` with one.
        num_class_embeds: number of classes.
        conditioning: how labels enter, see ``ClassHead``.
        num_codes: latent codes to predict (InfoGAN).

    Raises:
        ValueError: a size that cannot be made, a missing or unknown argument.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int | None = None,
        channels: int = 64,
        norm: str = "batch",
        num_class_embeds: int | None = None,
        conditioning: str = "projection",
        num_codes: int = 0,
    ):
        super().__init__()
        in_channels = required("in_channels", in_channels)
        base, n = stages(sample_size)
        widths = _widths(required("channels", channels), n)
        blocks: list[nn.Module] = []
        for i, (narrow, width) in enumerate(pairwise([in_channels, *widths])):
            kind = "none" if i == 0 else norm
            downsample = nn.Conv2d(narrow, width, 4, 2, 1, bias=kind == "none")
            blocks += [downsample, normalization(kind, width), nn.LeakyReLU(0.2)]
        self.blocks = nn.Sequential(*blocks)
        flat = widths[-1] * base**2
        self.head = nn.Linear(flat, 1)
        self.classes = ClassHead(widths[-1], num_class_embeds, conditioning, num_codes, flat)
        _initialize(self, norm)

    def forward(self, sample: Tensor, class_labels: Tensor | None = None) -> DiscriminatorOutput:
        """Logits [B] for images [B, C, H, W] in [-1, 1] and labels [B] int64."""
        hidden = self.blocks(sample)
        flat = hidden.flatten(1)
        # codes by where things are, as InfoGAN's network reads them: pooled, they are no digits
        return self.classes(self.head(flat).squeeze(1), hidden.sum((2, 3)), class_labels, flat)
