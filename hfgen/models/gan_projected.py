"""Projected discriminator (Sauer et al. 2021, "Projected GANs converge faster", arXiv 2111.01007).

It judges features of a network that was trained on other images and stays frozen. Scores by
features of the same network flatter its generators (Kynkaanniemi et al. 2023, arXiv 2203.06026):
compare them with other models by another backbone, or by eye.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from hfgen.models.layers.backbone import LITE0, make_backbone
from hfgen.models.layers.gan import (
    ClassHead,
    DiscriminatorOutput,
    check_labels,
    normalization,
    required,
)
from hfgen.models.layers.spectral_norm import SNConv2d


class RandomProjection(nn.Module):
    """Fixed random mixing of channels (1x1) and, from coarse to fine, of scales (section 3.2).

    Args:
        widths: channels of the maps, finest first.
        channels: of every projected map.
    """

    def __init__(self, widths: tuple[int, ...], channels: int):
        super().__init__()
        self.across_channels = nn.ModuleList(nn.Conv2d(w, channels, 1) for w in widths)
        self.across_scales = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in widths
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        mixed: list[Tensor] = []
        layers = zip(maps, self.across_channels, self.across_scales, strict=True)
        for x, channels, scales in reversed(list(layers)):
            x = channels(x)
            if mixed:
                up = F.interpolate(mixed[0], size=x.shape[2:], mode="bilinear")
                x = (x + up) / 2**0.5
            mixed.insert(0, scales(x))
        return mixed


class ScaleJudge(nn.Module):
    """One of the small discriminators: halvings down to 4x4, then one logit (table 7)."""

    def __init__(self, channels: int, side: int, norm: str, classes: int | None):
        super().__init__()
        layers: list[nn.Module] = []
        while side > 4:
            layers += [SNConv2d(channels, channels, 4, stride=2, padding=1)]
            layers += [normalization(norm, channels), nn.LeakyReLU(0.2)]
            side //= 2
        self.blocks = nn.Sequential(*layers)
        self.head = SNConv2d(channels, 1, side)
        self.classes = ClassHead(channels, classes, spectral=True)

    def forward(self, x: Tensor, class_labels: Tensor | None) -> DiscriminatorOutput:
        x = self.blocks(x)
        return self.classes(self.head(x).flatten(), x.mean((2, 3)), class_labels)


class ProjectedDiscriminator(ModelMixin, ConfigMixin):
    """Frozen features, random projections, and one small discriminator at each of their scales.

    Args:
        sample_size: side of the images, any.
        in_channels: 1 grey (shown as grey RGB), 3 colour.
        backbone: ``efficientnet-lite0`` (its package must be installed), or the Hub id or folder of
            any backbone of transformers (``AutoBackbone``), say ``microsoft/resnet-18``. A saved
            discriminator carries the backbone's weights, and here its configuration instead.
        input_size: images are resized bilinearly to this side for the backbone (256 in the paper;
            twice the images' side is enough for small ones); None: ``sample_size``.
        channels: width of the projected maps and of the discriminators on them.
        norm: of the discriminators: ``batch`` (the paper), ``group`` or ``none``; with the latter
            two, rows do not depend on one another.
        num_class_embeds: number of classes; each discriminator conditions by projection.
        map_sizes: sides of the backbone's maps, finest first; None finds them by running it once.

    Raises:
        ValueError: a missing argument, a backbone that cannot be had.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int | None = None,
        backbone: str | dict[str, Any] = LITE0,
        input_size: int | None = None,
        channels: int = 64,
        norm: str = "batch",
        num_class_embeds: int | None = None,
        map_sizes: list[int] | None = None,
    ):
        super().__init__()
        side = input_size or required("sample_size", sample_size)
        if in_channels not in (1, 3):
            raise ValueError(f"in_channels {in_channels}: the backbone takes 1 or 3")
        if side < 32:
            raise ValueError(f"input_size {side}: the backbone's last map needs at least 32")
        self.features, config = make_backbone(backbone)
        self.input_size = side
        self.projection = RandomProjection(self.features.widths, channels)
        if map_sizes is None:
            with torch.no_grad():
                map_sizes = [m.shape[2] for m in self.features(torch.zeros(1, 3, side, side))]
        self.register_to_config(backbone=config, map_sizes=map_sizes)
        self.judges = nn.ModuleList(
            ScaleJudge(channels, size, norm, num_class_embeds) for size in map_sizes
        )
        self.requires_grad_(True)

    def requires_grad_(self, requires_grad: bool = True) -> ProjectedDiscriminator:
        """As in torch, but the backbone and the projections stay frozen."""
        super().requires_grad_(requires_grad)
        self.features.requires_grad_(False)
        self.projection.requires_grad_(False)
        return self

    def train(self, mode: bool = True) -> ProjectedDiscriminator:
        """As in torch, but the backbone keeps its statistics."""
        super().train(mode)
        self.features.eval()
        return self

    def forward(self, sample: Tensor, class_labels: Tensor | None = None) -> DiscriminatorOutput:
        """Logits [B], the mean over scales, and each scale's own [B, scales], for images
        [B, C, H, W] in [-1, 1] and labels [B] int64.
        """
        check_labels(class_labels, self.config["num_class_embeds"])
        maps = self._maps(sample)
        outputs = [judge(x, class_labels) for judge, x in zip(self.judges, maps, strict=True)]
        judges = torch.stack([output.logits for output in outputs], dim=1)
        features = torch.cat([output.features for output in outputs], dim=1)
        return DiscriminatorOutput(logits=judges.mean(1), features=features, judges=judges)

    def _maps(self, sample: Tensor) -> list[Tensor]:
        x = sample.expand(-1, 3, -1, -1)
        if x.shape[-1] != self.input_size:
            x = F.interpolate(x, size=[self.input_size] * 2, mode="bilinear")
        return self.projection(self.features(x))
