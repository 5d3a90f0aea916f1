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
