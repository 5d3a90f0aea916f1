"""Residual convolution blocks that several autoencoders share."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def group_norm(channels: int, max_groups: int = 8) -> nn.GroupNorm:
    """Group norm with the most groups up to ``max_groups`` that divide ``channels`` (Wu & He
    2018).
    """
    groups = next(g for g in range(min(max_groups, channels), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


class ResBlock(nn.Module):
    """Pre-activation residual block (He et al. 2016): x + conv(act(norm(conv(act(norm(x)))))), [B,
    C, H, W].

    The last convolution starts at zero, so that a deep stack starts as the identity.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.conv1 = group_norm(channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2, self.conv2 = group_norm(channels), nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class DownBlock(nn.Module):
    """Strided 3x3 convolution, then residual blocks: [B, in, H, W] -> [B, out, ceil(H/2),
    ceil(W/2)].
    """

    def __init__(self, in_channels: int, out_channels: int, layers: int):
        super().__init__()
        self.down = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*[ResBlock(out_channels) for _ in range(layers)])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.down(x))


class UpBlock(nn.Module):
    """Residual blocks, then a transposed convolution: [B, in, h, w] -> [B, out, size, size].

    ``size`` is 2h or 2h - 1: cutting to it undoes the ceil of ``DownBlock``
    (28 -> 14 -> 7 -> 4 -> 7 -> 14 -> 28). The kernel of 4 divides by the stride, so that all
    pixels get equally many terms; it costs 4/9 of upsampling before a 3x3 convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, layers: int, size: int):
        super().__init__()
        self.size = size
        self.blocks = nn.Sequential(*[ResBlock(in_channels) for _ in range(layers)])
        self.norm = group_norm(in_channels)
        self.up = nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(F.silu(self.norm(self.blocks(x))))
        return x[..., : self.size, : self.size]


def halved_sizes(owner: str, sample_size: int, block_out_channels: Sequence[int]) -> list[int]:
    """Sides of the image and of the map after each halving, rounded up.

    Raises:
        ValueError: of ``owner``: no halving, or an image too small to halve so often.
    """
    if not block_out_channels:
        raise ValueError(f"{owner}: block_out_channels is empty; give the channels of each halving")
    if sample_size < 2 ** len(block_out_channels):
        raise ValueError(
            f"{owner}: sample_size {sample_size} is too small to halve "
            f"{len(block_out_channels)} times (block_out_channels={tuple(block_out_channels)})"
        )
    sizes = [sample_size]
    for _ in block_out_channels:
        sizes.append((sizes[-1] + 1) // 2)
    return sizes


def down_stack(in_channels: int, block_out_channels: Sequence[int], layers: int) -> nn.ModuleList:
    """From the image to the smallest map."""
    widths = [in_channels, *block_out_channels]
    return nn.ModuleList(
        [DownBlock(a, b, layers) for a, b in zip(widths[:-1], widths[1:], strict=True)]
    )


def up_stack(
    out_channels: int, block_out_channels: Sequence[int], layers: int, sizes: Sequence[int]
) -> nn.ModuleList:
    """Back from the smallest map to the image, by the ``sizes`` of the way down."""
    widths = [out_channels, *block_out_channels]
    return nn.ModuleList(
        [
            UpBlock(widths[i + 1], widths[i], layers, sizes[i])
            for i in reversed(range(len(block_out_channels)))
        ]
    )
