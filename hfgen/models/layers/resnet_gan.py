"""Residual blocks of SNGAN, SAGAN and BigGAN, self-attention and conditional batch
normalisation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfgen.models.layers.gan import check_attention
from hfgen.models.layers.resample import conv_pooled, conv_upsampled
from hfgen.models.layers.spectral_norm import SNConv2d, SNLinear, effective_weight


def conv(inputs: int, outputs: int, kernel: int, spectral: bool) -> nn.Conv2d:
    """A convolution that keeps the size, with spectral normalisation or without."""
    cls = SNConv2d if spectral else nn.Conv2d
    return cls(inputs, outputs, kernel, padding=kernel // 2)


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose gain and shift are linear in a condition (de Vries et al. 2017).

    Args:
        channels: of the input.
        condition: size of the condition; None for plain batch norm.
        spectral: spectral normalisation of the two linear maps (BigGAN).
    """

    def __init__(self, channels: int, condition: int | None, spectral: bool = False):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=condition is None)
        self.affine = None
        if condition is not None:
            linear = SNLinear if spectral else nn.Linear
            self.affine = linear(condition, 2 * channels, bias=False)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        x = self.norm(x)
        if self.affine is None:
            return x
        gain, shift = self.affine(condition)[:, :, None, None].chunk(2, 1)
        return x * (1 + gain) + shift


class UpBlock(nn.Module):
    """x + conv(act(norm(conv(up(act(norm(x))))))) (Miyato et al. 2018, figure 8; BigGAN, figure
    15).
    """

    def __init__(self, inputs: int, outputs: int, condition: int | None, spectral: bool):
        super().__init__()
        self.norm1 = ConditionalBatchNorm(inputs, condition, spectral)
        self.conv1 = conv(inputs, outputs, 3, spectral)
        self.norm2 = ConditionalBatchNorm(outputs, condition, spectral)
        self.conv2 = conv(outputs, outputs, 3, spectral)
        self.skip = conv(inputs, outputs, 1, spectral)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        h = F.relu(self.norm1(x, condition))
        h = conv_upsampled(h, effective_weight(self.conv1), self.conv1.bias)
        h = self.conv2(F.relu(self.norm2(h, condition)))
        # a 1x1 convolution and nearest upsampling commute: the cheap one first
        return h + F.interpolate(self.skip(x), scale_factor=2.0)


class DownBlock(nn.Module):
    """x + pool(conv(act(conv(act(x))))) (Miyato et al. 2018, figure 8).

    Args:
        first: no activation before the first convolution: the input is an image.
        down: halve the size by averaging.
    """

    def __init__(self, inputs: int, outputs: int, *, first: bool = False, down: bool = True):
        super().__init__()
        self.first, self.down = first, down
        self.conv1 = conv(inputs, outputs, 3, True)
        self.conv2 = conv(outputs, outputs, 3, True)
        self.skip = conv(inputs, outputs, 1, True) if down or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.conv1(x if self.first else F.relu(x)))
        if not self.down:
            return self.conv2(h) + self.skip(x)
        h = conv_pooled(h, effective_weight(self.conv2), self.conv2.bias)
        # averaging and a 1x1 convolution commute: the small one second
        return h + self.skip(F.avg_pool2d(x, 2))


class SelfAttention(nn.Module):
    """x + gamma * attention(x), gamma = 0 at first (Zhang et al. 2019, SAGAN, equations 1 to 3).

    Keys and values are pooled by two, queries and keys have an eighth of the channels, as in the
    released code.
    """

    def __init__(self, channels: int):
        super().__init__()
        small, half = max(channels // 8, 1), max(channels // 2, 1)
        self.query = SNConv2d(channels, small, 1, bias=False)
        self.key = SNConv2d(channels, small, 1, bias=False)
        self.value = SNConv2d(channels, half, 1, bias=False)
        self.out = SNConv2d(half, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).flatten(2).mT  # [B, HW, c]
        key = F.max_pool2d(self.key(x), 2).flatten(2)  # [B, c, HW / 4]
        value = F.max_pool2d(self.value(x), 2).flatten(2)  # [B, C / 2, HW / 4]
        weights = (query @ key).softmax(-1)
        return x + self.gamma * self.out((value @ weights.mT).unflatten(2, x.shape[2:]))


def attention_at(widths: list[int], sizes: list[int], attention_size: int | None) -> nn.ModuleList:
    """Self-attention for the feature map of that side, nothing for the others; ValueError where
    there is no such map.
    """
    check_attention(attention_size, sizes)
    return nn.ModuleList(
        SelfAttention(width) if size == attention_size else nn.Identity()
        for width, size in zip(widths, sizes, strict=True)
    )


def with_attention(
    stages: Iterable[Sequence[nn.Module]],
    widths: list[int],
    sizes: list[int],
    attention_size: int | None,
) -> list[nn.Module]:
    """The layers of all stages in a row, with self-attention behind the stage whose feature map has
    that side; ValueError where there is no such map.
    """
    check_attention(attention_size, sizes)
    row: list[nn.Module] = []
    for stage, width, size in zip(stages, widths, sizes, strict=True):
        row += stage
        if size == attention_size:
            row.append(SelfAttention(width))
    return row


@torch.no_grad()
def init_xavier(module: nn.Module, gain: float = 1.0) -> None:
    """Xavier-uniform weights of linear maps and convolutions, zero biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@torch.no_grad()
def init_orthogonal(module: nn.Module) -> None:
    """Orthogonal weights of linear maps, convolutions and embeddings, zero biases (BigGAN, section
    3).
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding):
            nn.init.orthogonal_(layer.weight)
            if getattr(layer, "bias", None) is not None:
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
