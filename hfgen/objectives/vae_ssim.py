"""Multi-scale structural similarity, differentiable."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the scales from fine to coarse (Wang et al. 2003, section 3.2)."""
C1, C2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
"""Of a range of 2, as [-1, 1] has it."""


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """MS-SSIM of each pair of images [B, C, H, W] in [-1, 1], [B] (Wang et al. 2003, eq. 7).

    As many of the five scales are used as the 11-pixel window fits into, their exponents scaled to
    a sum of one. Contrast-structure terms below zero count as zero: a negative base has no power.

    Raises:
        ValueError: images smaller than the window.
    """
    side = min(x.shape[-2:])
    if side < WINDOW:
        raise ValueError(f"ms-ssim needs images of at least {WINDOW} pixels, got {side}")
    scales = next(n for n in range(len(WEIGHTS), 0, -1) if side // 2 ** (n - 1) >= WINDOW)
    weights = torch.tensor(WEIGHTS[:scales], dtype=x.dtype, device=x.device)
    weights, product = weights / weights.sum(), torch.ones(len(x), dtype=x.dtype, device=x.device)
    for scale in range(scales):
        luminance, structure = _terms(x, y)
        last = scale == scales - 1
        value = (luminance * structure if last else structure).flatten(1).mean(1)
        product = product * value.clamp(min=1e-6) ** weights[scale]
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return product


def _terms(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance and contrast-structure at each position (Wang et al. 2004, eq. 6 and 9)."""
    mean_x, mean_y = _blur(x), _blur(y)
    var_x = _blur(x * x) - mean_x**2
    var_y = _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    mean_x, mean_y = mean_x + 1, mean_y + 1  # the constants are for intensities from zero
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    return luminance, (2 * covariance + C2) / (var_x + var_y + C2)


def _blur(x: Tensor) -> Tensor:
    """A Gaussian window, without padding."""
    offset = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    window = torch.softmax(-0.5 * (offset / SIGMA) ** 2, dim=0)
    flat = x.flatten(0, 1).unsqueeze(1)
    flat = F.conv2d(F.conv2d(flat, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    return flat.view(*x.shape[:2], *flat.shape[2:])
