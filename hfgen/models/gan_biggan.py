"""BigGAN and BigGAN-deep (Brock, Donahue & Simonyan 2019, arXiv 1809.11096, appendix B)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from hfgen.models.layers.gan import (
    ClassHead,
    DiscriminatorOutput,
    GeneratorOutput,
    check_labels,
    embed_labels,
    label_embedding,
    required,
    stage_widths,
    stages,
    with_label,
)
from hfgen.models.layers.resample import conv_upsampled
from hfgen.models.layers.resnet_gan import (
    ConditionalBatchNorm,
    DownBlock,
    UpBlock,
    attention_at,
    conv,
    init_orthogonal,
    with_attention,
)
from hfgen.models.layers.spectral_norm import SNConv2d, SNLinear, effective_weight


class DeepUpBlock(nn.Module):
    """Bottleneck 1x1, 3x3, 3x3, 1x1 at a quarter of the input's width; the skip drops channels and
    is upsampled (figure 16, left).
    """

    def __init__(self, inputs: int, outputs: int, condition: int | None, up: bool):
        super().__init__()
        hidden, self.up, self.outputs = max(inputs // 4, 1), up, outputs
        widths = [inputs, hidden, hidden, hidden, outputs]
        self.norms = nn.ModuleList(ConditionalBatchNorm(w, condition, True) for w in widths[:-1])
        self.convs = nn.ModuleList(
            conv(a, b, k, True) for (a, b), k in zip(pairwise(widths), (1, 3, 3, 1), strict=True)
        )

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        h, skip = x, x[:, : self.outputs]
        layers: Any = zip(self.norms, self.convs, strict=True)
        for i, (norm, layer) in enumerate(layers):
            h = F.relu(norm(h, condition))
            merged = self.up and i == 1  # the first 3x3 convolution, after the upsampling
            h = conv_upsampled(h, effective_weight(layer), layer.bias) if merged else layer(h)
        return h + (F.interpolate(skip, scale_factor=2.0) if self.up else skip)


class DeepDownBlock(nn.Module):
    """Bottleneck 1x1, 3x3, 3x3, 1x1; the skip is pooled and a 1x1 convolution's channels are
    concatenated to it (figure 16, right).
    """

    def __init__(self, inputs: int, outputs: int, down: bool):
        super().__init__()
        hidden, self.down = max(outputs // 4, 1), down
        widths = [inputs, hidden, hidden, hidden, outputs]
        self.convs = nn.ModuleList(
            conv(a, b, k, True) for (a, b), k in zip(pairwise(widths), (1, 3, 3, 1), strict=True)
        )
        self.more = SNConv2d(inputs, outputs - inputs, 1) if outputs > inputs else None

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for i, layer in enumerate(self.convs):
            h = F.relu(h)
            if self.down and i == 3:
                h = F.avg_pool2d(h, 2)
            h = layer(h)
        skip = F.avg_pool2d(x, 2) if self.down else x
        return h + (skip if self.more is None else torch.cat([skip, self.more(skip)], 1))


class BigGANGenerator(ModelMixin, ConfigMixin):
    """z is split: one part makes the first map, the others go to the blocks, each beside the shared
    class embedding, where they set gain and shift of batch norm (hierarchical latents, figure 15).

    Args:
        sample_size: side of the images, 4, 5, 6 or 7 times a power of two.
        out_channels: 1 grey, 3 colour.
        latent_dim: size of z, split into one part more than there are doublings (the last takes
            the rest).
        channels: width, one for all resolutions or a list from the smallest to the largest.
        attention_size: insert self-attention at the feature maps of this side (the paper: 64 at
            128x128).
        class_dim: size of the shared class embedding (128 in the paper).
        num_class_embeds: number of classes; None for an unconditional generator.

    Raises:
        ValueError: a size that cannot be made, a missing argument, too few latents, an attention
            size that never occurs.
    """

    # these layers are used by their weights, where the hooks of layerwise casting are not called
    _skip_layerwise_casting_patterns = ["conv1", "conv2"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        out_channels: int | None = None,
        latent_dim: int = 120,
        channels: int | list[int] = 64,
        attention_size: int | None = None,
        class_dim: int = 128,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        self.base, n = stages(sample_size)
        widths = stage_widths(channels, n + 1)
        sizes = [self.base * 2**i for i in range(n + 1)]
        if latent_dim < n + 1:
            raise ValueError(f"latent_dim {latent_dim}: at least {n + 1}, one for each split")
        chunk = latent_dim // (n + 1)
        self.splits = [latent_dim - n * chunk, *[chunk] * n]
        self.class_embedding = label_embedding(num_class_embeds, class_dim)
        condition = chunk + (0 if num_class_embeds is None else class_dim)
        self.project = SNLinear(self.splits[0], widths[0] * self.base**2)
        self.blocks = nn.ModuleList(UpBlock(a, b, condition, True) for a, b in pairwise(widths))
        self.attention = attention_at(widths, sizes, attention_size)
        self.norm = ConditionalBatchNorm(widths[-1], None)
        self.to_image = conv(widths[-1], required("out_channels", out_channels), 3, True)
        init_orthogonal(self)

    @property
    def latent_weight(self) -> Tensor:
        """The matrices that latents meet first, [outputs, latent_dim], block by block."""
        blocks = [block.norm1.affine.weight for block in self.blocks]  # type: ignore[union-attr]
        parts = [self.project.weight, *blocks]
        return torch.block_diag(
            *(part[:, :size] for part, size in zip(parts, self.splits, strict=True))
        )

    def forward(self, z: Tensor, class_labels: Tensor | None = None) -> GeneratorOutput:
        """Images [B, C, H, W] in [-1, 1] from z [B, latent_dim] ~ N(0, 1) and labels [B] int64."""
        check_labels(class_labels, self.config["num_class_embeds"])
        first, *others = z.split(self.splits, dim=1)
        if self.class_embedding is not None:
            label = embed_labels(self.class_embedding, class_labels)
            others = [torch.cat([part, label], dim=1) for part in others]
        x = self.attention[0](self.project(first).unflatten(1, (-1, self.base, self.base)))
        for block, attention, condition in zip(
            self.blocks, self.attention[1:], others, strict=True
        ):
            x = attention(block(x, condition))
        return GeneratorOutput(sample=torch.tanh(self.to_image(F.relu(self.norm(x, None)))))


class BigGANDeepGenerator(ModelMixin, ConfigMixin):
    """All of z, beside the class embedding, goes to every block; two bottleneck blocks for each
    resolution (appendix B, figure 16, table 7).

    Args:
        as ``BigGANGenerator``; widths must not grow towards the largest resolution.
    """

    # these layers are used by their weights, where the hooks of layerwise casting are not called
    _skip_layerwise_casting_patterns = ["convs"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        out_channels: int | None = None,
        latent_dim: int = 128,
        channels: int | list[int] = 64,
        attention_size: int | None = None,
        class_dim: int = 128,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        self.base, n = stages(sample_size)
        widths = stage_widths(channels, n + 1)
        sizes = [self.base * 2**i for i in range(n + 1)]
        if any(b > a for a, b in pairwise(widths)):
            raise ValueError(f"channels {widths}: must not grow, since a skip drops channels")
        self.class_embedding = label_embedding(num_class_embeds, class_dim)
        condition = latent_dim + (0 if num_class_embeds is None else class_dim)
        self.project = SNLinear(condition, widths[0] * self.base**2)
        self.blocks = nn.ModuleList(
            DeepUpBlock(a, after, condition, up)
            for a, b in pairwise(widths)
            for after, up in ((a, False), (b, True))
        )
        self.attention = attention_at(widths[1:], sizes[1:], attention_size)
        self.norm = ConditionalBatchNorm(widths[-1], None)
        self.to_image = conv(widths[-1], required("out_channels", out_channels), 3, True)
        init_orthogonal(self)

    @property
    def latent_weight(self) -> Tensor:
        """The matrices that latents meet first, one above the other, [outputs, latent_dim]."""
        size = self.config["latent_dim"]
        norms = [norm for block in self.blocks for norm in block.norms]  # type: ignore[union-attr]
        return torch.cat([self.project.weight, *(norm.affine.weight for norm in norms)])[:, :size]

    def forward(self, z: Tensor, class_labels: Tensor | None = None) -> GeneratorOutput:
        """Images [B, C, H, W] in [-1, 1] from z [B, latent_dim] ~ N(0, 1) and labels [B] int64."""
        z = with_label(z, self.class_embedding, class_labels)
        x = self.project(z).unflatten(1, (-1, self.base, self.base))
        pairs = zip(self.blocks[::2], self.blocks[1::2], self.attention, strict=True)
        for first, second, attention in pairs:
            x = attention(second(first(x, z), z))
        return GeneratorOutput(sample=torch.tanh(self.to_image(F.relu(self.norm(x, None)))))


class BigGANDiscriminator(ModelMixin, ConfigMixin):
    """Residual blocks with spectral normalisation, one for each halving, another at the base; sum
    over positions; linear, with the projection of the label (appendix B, tables 4 and 8).

    Args:
        sample_size: side of the images, 4, 5, 6 or 7 times a power of two.
        in_channels: 1 grey, 3 colour.
        channels: width, one for all blocks or a list from the smallest resolution to the largest,
            one entry for each halving.
        deep: BigGAN-deep: a first convolution and two bottleneck blocks for each halving; widths
            must not shrink towards the smallest resolution.
        attention_size: insert self-attention at the feature maps of this side.
        num_class_embeds: number of classes.
        conditioning: how labels enter, see ``ClassHead``.
        num_codes: latent codes to predict (InfoGAN).

    Raises:
        ValueError: a size that cannot be made, a missing argument, an attention size that never
            occurs.
    """

    # these layers are used by their weights, where the hooks of layerwise casting are not called
    _skip_layerwise_casting_patterns = ["conv1", "conv2", "convs"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int | None = None,
        channels: int | list[int] = 64,
        deep: bool = False,
        attention_size: int | None = None,
        num_class_embeds: int | None = None,
        conditioning: str = "projection",
        num_codes: int = 0,
    ):
        super().__init__()
        base, n = stages(sample_size)
        widths = stage_widths(channels, n)[::-1]
        sizes = [base * 2 ** (n - i) for i in range(1, n + 1)]
        if deep and any(b < a for a, b in pairwise(widths)):
            raise ValueError(f"channels {widths[::-1]}: must not grow, since a skip adds channels")
        colours = required("in_channels", in_channels)
        blocks: list[nn.Module] = [conv(colours, widths[0], 3, True)] if deep else []
        pairs = pairwise([widths[0] if deep else colours, *widths])
        halvings = (
            [DeepDownBlock(a, b, down=True), DeepDownBlock(b, b, down=False)]
            if deep
            else [DownBlock(a, b, first=i == 0)]
            for i, (a, b) in enumerate(pairs)
        )
        blocks += with_attention(halvings, widths, sizes, attention_size)
        if not deep:
            blocks.append(DownBlock(widths[-1], widths[-1], down=False))
        self.blocks = nn.Sequential(*blocks)
        self.head = SNLinear(widths[-1], 1)
        self.classes = ClassHead(
            widths[-1], num_class_embeds, conditioning, num_codes, spectral=True
        )
        init_orthogonal(self)

    def forward(self, sample: Tensor, class_labels: Tensor | None = None) -> DiscriminatorOutput:
        """Logits [B] for images [B, C, H, W] in [-1, 1] and labels [B] int64."""
        features = F.relu(self.blocks(sample)).sum((2, 3))
        return self.classes(self.head(features).squeeze(1), features, class_labels)
