"""How close reconstructions are to their images, pixel by pixel and window by window."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hfgen.errors import HfgenError


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB: 10 log10(range^2 / MSE), inf where equal.

    Args:
        images, reconstructions: [B, C, H, W] in [-1, 1].
    Returns:
        [B] float64.
    """
    x, y = _pair(images, reconstructions)
    return 10 * torch.log10(4 / (x - y).square().flatten(1).mean(1))


def ssim(
    images: Tensor, reconstructions: Tensor, *, window: int = 11, sigma: float = 1.5
) -> Tensor:
    """Structural similarity of each image (Wang et al. 2004, eq. 13): Gaussian window, K1 = 0.01,
    K2 = 0.03.

    Population (biased) windowed moments over windows that fit wholly, mean over positions and
    channels, as scikit-image computes with ``gaussian_weights=True, use_sample_covariance=False``.

    Args:
        images, reconstructions: [B, C, H, W] in [-1, 1], H and W at least ``window``.
    Returns:
        [B] float64, at most 1.
    """
    x, y = _pair(images, reconstructions)
    if min(x.shape[-2:]) < window:
        raise HfgenError(
            f"ssim: images of {tuple(x.shape[-2:])} are smaller than the window {window}"
        )
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    kernel = _gaussian(window, sigma).to(x)
    mx, my = _filter(x, kernel), _filter(y, kernel)
    vx, vy = _filter(x * x, kernel) - mx * mx, _filter(y * y, kernel) - my * my
    cov = _filter(x * y, kernel) - mx * my
    # means on the scale [0, 2]: the constants of eq. 13 assume intensities that start at zero
    mx, my = mx + 1, my + 1
    index = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return index.flatten(1).mean(1)


def _gaussian(window: int, sigma: float) -> Tensor:
    offsets = torch.arange(window, dtype=torch.float64) - (window - 1) / 2
    weights = torch.exp(-offsets.square() / (2 * sigma**2))
    return weights / weights.sum()


def _filter(x: Tensor, kernel: Tensor) -> Tensor:
    channels = x.shape[1]
    rows = kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    columns = kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    return F.conv2d(F.conv2d(x, rows, groups=channels), columns, groups=channels)


def _pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.ndim != 4 or x.shape != y.shape:
        raise HfgenError(
            f"reconstructions: shape {tuple(y.shape)} does not match images {tuple(x.shape)}"
        )
    x, y = x.detach().double(), y.detach().double()
    for name, value in (("images", x), ("reconstructions", y)):
        if not math.isfinite(float(value.sum())):
            raise HfgenError(f"{name}: NaN or infinity")
    return x, y
