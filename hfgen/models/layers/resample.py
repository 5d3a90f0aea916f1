"""Resampling by two with the binomial filter [1, 2, 1], as slices and sums: differentiable any
number of times.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def upsample(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, 2H, 2W]: zeros in between, then [1, 2, 1] x [1, 2, 1] / 4.

    Odd output pixels are input pixels, even ones the mean of their two neighbours; outside is zero
    (Karras et al. 2019, StyleGAN, section 2: bilinear filtering instead of nearest neighbours).
    """
    return _up(_up(x, 3), 2)


def downsample(x: Tensor) -> Tensor:
    """[B, C, 2H, 2W] -> [B, C, H, W]: [1, 2, 1] x [1, 2, 1] / 16, then every second pixel."""
    return F.avg_pool2d(F.avg_pool2d(F.pad(x, (1, 0, 1, 0)), 2, stride=1), 2)


def _up(x: Tensor, dim: int) -> Tensor:
    before = F.pad(x, (1, 0) if dim == 3 else (0, 0, 1, 0)).narrow(dim, 0, x.shape[dim])
    return torch.stack([(before + x) / 2, x], dim + 1).flatten(dim, dim + 1)


def blur(x: Tensor, padding: int, gain: float = 1.0) -> Tensor:
    """[1, 3, 3, 1] / 8 along both axes, with ``padding`` zeros on each side: sides change by 2
    padding - 3.
    """
    x = F.pad(x, [padding] * 4)
    for dim in (2, 3):
        length = x.shape[dim] - 3
        a, b, c, d = (x.narrow(dim, i, length) for i in range(4))
        x = (a + d + 3 * (b + c)) / 8
    return x if gain == 1 else x * gain


def conv_upsampled(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``conv2d(nearest-upsampled x, weight)``, [B, C, H, W] -> [B, O, 2H, 2W], at 4/9 of the cost.

    Of a 3x3 kernel's nine taps on an upsampled image at most four fall on different pixels: summed
    beforehand, they are the 4x4 kernel of a transposed convolution of stride 2.

    Args:
        weight: [O, C, 3, 3], for a padding of 1.
    """
    taps = F.pad(weight, (1, 1, 1, 1))
    wide = F.avg_pool2d(taps, 2, stride=1) * 4
    # a transposed convolution reads its kernel mirrored
    return F.conv_transpose2d(x, wide.flip(2, 3).transpose(0, 1), bias, stride=2, padding=1)


def conv_pooled(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``avg_pool2d(conv2d(x, weight), 2)``, [B, C, 2H, 2W] -> [B, O, H, W], at 4/9 of the cost.

    The mean of four neighbouring results is one 4x4 convolution of stride 2.

    Args:
        weight: [O, C, 3, 3], for a padding of 1.
    """
    wide = F.avg_pool2d(F.pad(weight, (1, 1, 1, 1)), 2, stride=1)
    return F.conv2d(x, wide, bias, stride=2, padding=1)
