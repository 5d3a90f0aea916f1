"""StyleGAN2 (Karras et al. 2020, arXiv 1912.04958) in plain PyTorch: no custom operator.

The noise inputs are left out, as StyleGAN3 does: one latent is one image, however a batch is split.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from hfgen.models.layers.equalized import (
    EqualConv2d,
    EqualLinear,
    ModulatedConv2d,
    activate,
    minibatch_stddev,
)
from hfgen.models.layers.gan import (
    DiscriminatorOutput,
    GeneratorOutput,
    check_labels,
    embed_labels,
    label_embedding,
    required,
    stage_widths,
    stages,
)
from hfgen.models.layers.resample import blur


class Mapping(nn.Module):
    """z -> w: z / rms(z), the label's embedding beside it, then ``num_layers`` layers of
    ``width``.
    """

    def __init__(self, latent_dim: int, width: int, num_layers: int, num_class_embeds: int | None):
        super().__init__()
        self.class_embedding = label_embedding(num_class_embeds, width)
        inputs = latent_dim + (0 if num_class_embeds is None else width)
        sizes = [inputs, *[width] * num_layers]
        self.layers = nn.ModuleList(EqualLinear(a, b, rate=0.01) for a, b in pairwise(sizes))

    def forward(self, z: Tensor, class_labels: Tensor | None) -> Tensor:
        x = unit_rms(z)
        if self.class_embedding is not None:
            label = embed_labels(self.class_embedding, class_labels)
            x = torch.cat([x, unit_rms(label)], dim=1)
        for layer in self.layers:
            x = activate(layer(x))
        return x


def unit_rms(x: Tensor) -> Tensor:
    """Rows of mean square 1."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class StyleGAN2Generator(ModelMixin, ConfigMixin):
    """Mapping network, constant input, modulated convolutions, and the sum of upsampled RGB skips.

    ``forward`` is ``synthesize(map(z))``; between the two, w can be truncated or mixed.

    Args:
        sample_size: side of the images, 4, 5, 6 or 7 times a power of two.
        out_channels: 1 grey, 3 colour.
        latent_dim: size of z (512 in the paper).
        style_dim: size of w (512 in the paper).
        channels: width, one for all resolutions or a list from the smallest to the largest (the
            paper: 512 up to 64x64).
        num_mapping_layers: depth of the mapping network (8; ADA's small configurations: 2).
        num_class_embeds: number of classes.

    Raises:
        ValueError: a size that cannot be made, a missing argument.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        out_channels: int | None = None,
        latent_dim: int = 128,
        style_dim: int = 128,
        channels: int | list[int] = 64,
        num_mapping_layers: int = 2,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        base, n = stages(sample_size)
        widths = stage_widths(channels, n + 1)
        colours = required("out_channels", out_channels)
        self.mapping = Mapping(latent_dim, style_dim, num_mapping_layers, num_class_embeds)
        self.constant = nn.Parameter(torch.randn(widths[0], base, base))
        self.first = ModulatedConv2d(widths[0], widths[0], 3, style_dim)
        self.ups = nn.ModuleList(
            ModulatedConv2d(a, b, 3, style_dim, up=True) for a, b in pairwise(widths)
        )
        self.convs = nn.ModuleList(ModulatedConv2d(b, b, 3, style_dim) for b in widths[1:])
        self.to_image = nn.ModuleList(
            ModulatedConv2d(width, colours, 1, style_dim, demodulate=False) for width in widths
        )

    @property
    def num_styles(self) -> int:
        """Layers that a w of their own can be given: one, two for each doubling, and the last
        RGB.
        """
        return 2 + 2 * len(self.ups)

    @property
    def style_weight(self) -> Tensor:
        """The matrices that a w shared by all layers meets, one above the other, [outputs,
        style_dim]: what SeFa looks at.
        """
        layers = [self.first, *self.ups, *self.convs, *self.to_image]
        return torch.cat([layer.affine.weight for layer in layers])  # type: ignore[union-attr]

    def map(self, z: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """w [B, num_styles, style_dim] from z [B, latent_dim] and labels [B] int64."""
        check_labels(class_labels, self.config["num_class_embeds"])
        return self.mapping(z, class_labels)[:, None].expand(-1, self.num_styles, -1)

    def synthesize(self, w: Tensor) -> GeneratorOutput:
        """Images [B, C, H, W], nominally in [-1, 1], from w [B, num_styles, style_dim]."""
        x = self.constant.expand(w.shape[0], -1, -1, -1)
        x = activate(self.first(x, w[:, 0]))
        image = self.to_image[0](x, w[:, 1])
        layers = zip(self.ups, self.convs, self.to_image[1:], strict=True)
        for i, (up, conv, to_image) in enumerate(layers):
            x = activate(up(x, w[:, 2 * i + 1]))
            x = activate(conv(x, w[:, 2 * i + 2]))
            image = upsample_image(image) + to_image(x, w[:, 2 * i + 3])
        return GeneratorOutput(sample=image)

    def forward(self, z: Tensor, class_labels: Tensor | None = None) -> GeneratorOutput:
        """Images [B, C, H, W], nominally in [-1, 1], from z [B, latent_dim] ~ N(0, 1) and
        labels.
        """
        return self.synthesize(self.map(z, class_labels))


def upsample_image(image: Tensor) -> Tensor:
    """Zeros in between, then [1, 3, 3, 1]: the sizes double."""
    rows, channels, height, width = image.shape
    spaced = image.new_zeros(rows, channels, 2 * height, 2 * width)
    spaced[:, :, ::2, ::2] = image
    padded = torch.nn.functional.pad(spaced, (2, 1, 2, 1))
    return blur(padded, 0, gain=4)


class StyleBlock(nn.Module):
    """(conv3x3 stride 2 (blur(act(conv3x3 x))) + conv1x1 (down x)) / sqrt(2): the residual
    discriminator.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = EqualConv2d(inputs, inputs, 3)
        self.down = EqualConv2d(inputs, outputs, 3, stride=2, padding=0)
        self.skip = EqualConv2d(inputs, outputs, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        h = activate(self.down(blur(activate(self.conv(x)), 2)))
        return (h + self.skip(blur(x, 1))) / math.sqrt(2)


class StyleGAN2Discriminator(ModelMixin, ConfigMixin):
    """Residual blocks, the minibatch standard deviation, and two linear layers.

    Args:
        sample_size: side of the images, 4, 5, 6 or 7 times a power of two.
        in_channels: 1 grey, 3 colour.
        channels: width, one for all resolutions or a list from the smallest to the largest.
        group_size: rows of one group of the minibatch standard deviation; 1 leaves it out.
        num_class_embeds: number of classes; the logit is the product of the label's embedding with
            the features (projection).

    Raises:
        ValueError: a size that cannot be made, a missing argument; a batch that is no multiple of
            ``group_size``.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int | None = None,
        channels: int | list[int] = 64,
        group_size: int = 4,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        base, n = stages(sample_size)
        widths = stage_widths(channels, n + 1)[::-1]
        self.from_image = EqualConv2d(required("in_channels", in_channels), widths[0], 1)
        self.blocks = nn.Sequential(*(StyleBlock(a, b) for a, b in pairwise(widths)))
        last = widths[-1]
        self.conv = EqualConv2d(last + (group_size > 1), last, 3)
        self.linear = EqualLinear(last * base**2, last)
        self.head = EqualLinear(last, 1 if num_class_embeds is None else last)
        self.class_embedding = label_embedding(num_class_embeds, last)

    def forward(self, sample: Tensor, class_labels: Tensor | None = None) -> DiscriminatorOutput:
        """Logits [B] for images [B, C, H, W] in [-1, 1] and labels [B] int64."""
        check_labels(class_labels, self.config["num_class_embeds"])
        x = self.blocks(activate(self.from_image(sample)))
        if self.config["group_size"] > 1:
            x = minibatch_stddev(x, self.config["group_size"])
        features = activate(self.linear(activate(self.conv(x)).flatten(1)))
        logits = self.head(features)
        if self.class_embedding is not None:
            label = unit_rms(self.class_embedding(class_labels))
            logits = (logits * label).sum(1, keepdim=True) / math.sqrt(label.shape[1])
        return DiscriminatorOutput(logits=logits.squeeze(1), features=features)
