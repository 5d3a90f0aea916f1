"""SNGAN's residual networks (Miyato et al. 2018, arXiv 1802.05957, tables 3 and 4).

Conditional as in arXiv 1802.05637; with ``attention_size``, and ``spectral_norm`` in the generator
too, SAGAN's (Zhang et al. 2019, arXiv 1805.08318).
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
    check_labels,
    class_weights,
    required,
    stage_widths,
    stages,
)
from hfgen.models.layers.resnet_gan import (
    ConditionalBatchNorm,
    DownBlock,
    UpBlock,
    attention_at,
    conv,
    init_xavier,
    with_attention,
)
from hfgen.models.layers.spectral_norm import SNLinear


class ResNetGenerator(ModelMixin, ConfigMixin):
    """z -> linear to base x base -> residual blocks, each doubling the size -> convolution, tanh.

    Args:
        sample_size: side of the images, 4, 5, 6 or 7 times a power of two.
        out_channels: 1 grey, 3 colour.
        latent_dim: size of z (128 in the papers).
        channels: width, one for all blocks (256 for SNGAN at 32x32) or a list from the smallest
            resolution to the largest, one entry more than there are doublings.
        spectral_norm: normalise the generator's layers as well (SAGAN).
        attention_size: insert self-attention at the feature maps of this side (SAGAN: 32).
        num_class_embeds: number of classes; they set the gain and shift of batch norm.

    Raises:
        ValueError: a size that cannot be made, a missing argument, an attention size that never
            occurs.
    """

    # these layers are used by their weights, where the hooks of layerwise casting are not called
    _skip_layerwise_casting_patterns = ["conv1", "conv2"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        out_channels: int | None = None,
        latent_dim: int = 128,
        channels: int | list[int] = 64,
        spectral_norm: bool = False,
        attention_size: int | None = None,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        base, n = stages(sample_size)
        widths = stage_widths(channels, n + 1)
        sizes = [base * 2**i for i in range(n + 1)]
        linear = SNLinear if spectral_norm else nn.Linear
        self.project = linear(latent_dim, widths[0] * base**2)
        self.base = base
        self.blocks = nn.ModuleList(
            UpBlock(a, b, num_class_embeds, spectral_norm) for a, b in pairwise(widths)
        )
        self.attention = attention_at(widths, sizes, attention_size)
        self.norm = ConditionalBatchNorm(widths[-1], None)
        self.to_image = conv(widths[-1], required("out_channels", out_channels), 3, spectral_norm)
        init_xavier(self)

    @property
    def latent_weight(self) -> Tensor:
        """The matrix that latents meet first, [outputs, latent_dim]: what SeFa looks at."""
        return self.project.weight

    def forward(self, z: Tensor, class_labels: Tensor | None = None) -> GeneratorOutput:
        """Images [B, C, H, W] in [-1, 1] from z [B, latent_dim] ~ N(0, 1) and labels [B] int64."""
        classes = self.config["num_class_embeds"]
        check_labels(class_labels, classes)
        condition = None if class_labels is None else class_weights(class_labels, classes, z)
        x = self.attention[0](self.project(z).unflatten(1, (-1, self.base, self.base)))
        for block, attention in zip(self.blocks, self.attention[1:], strict=True):
            x = attention(block(x, condition))
        return GeneratorOutput(sample=torch.tanh(self.to_image(F.relu(self.norm(x, None)))))


class ResNetDiscriminator(ModelMixin, ConfigMixin):
    """Residual blocks with spectral normalisation -> ReLU -> sum over positions -> linear.

    All doublings but one are halved away; two blocks follow at the smallest size (table 4).

    Args:
        sample_size: side of the images, 4, 5, 6 or 7 times a power of two.
        in_channels: 1 grey, 3 colour.
        channels: width, one for all blocks (128 for SNGAN at 32x32) or a list from the smallest
            resolution to the largest, one entry for each halving.
        attention_size: insert self-attention at the feature maps of this side.
        num_class_embeds: number of classes.
        conditioning: how labels enter, see ``ClassHead``.
        num_codes: latent codes to predict (InfoGAN).

    Raises:
        ValueError: a size that cannot be made, a missing argument, an attention size that never
            occurs.
    """

    # these layers are used by their weights, where the hooks of layerwise casting are not called
    _skip_layerwise_casting_patterns = ["conv1", "conv2"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int | None = None,
        channels: int | list[int] = 64,
        attention_size: int | None = None,
        num_class_embeds: int | None = None,
        conditioning: str = "projection",
        num_codes: int = 0,
    ):
        super().__init__()
        base, n = stages(sample_size)
        halvings = max(n - 1, 1)
        widths = stage_widths(channels, halvings)[::-1]
        sizes = [base * 2 ** (n - i) for i in range(1, halvings + 1)]
        pairs = pairwise([required("in_channels", in_channels), *widths])
        halved = ([DownBlock(a, b, first=i == 0)] for i, (a, b) in enumerate(pairs))
        blocks = with_attention(halved, widths, sizes, attention_size)
        blocks += [DownBlock(widths[-1], widths[-1], down=False) for _ in range(2)]
        self.blocks = nn.Sequential(*blocks)
        self.head = SNLinear(widths[-1], 1)
        self.classes = ClassHead(
            widths[-1], num_class_embeds, conditioning, num_codes, spectral=True
        )
        init_xavier(self)

    def forward(self, sample: Tensor, class_labels: Tensor | None = None) -> DiscriminatorOutput:
        """Logits [B] for images [B, C, H, W] in [-1, 1] and labels [B] int64."""
        features = F.relu(self.blocks(sample)).sum((2, 3))
        return self.classes(self.head(features).squeeze(1), features, class_labels)
