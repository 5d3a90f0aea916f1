"""Random image transformations [B, C, H, W] -> [B, C, H, W], row by row, differentiable twice.

Each takes ``p``, the probability with which a row is transformed, and draws from an ``Rng``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hfgen.objectives.gan_filters import MARGIN, SHIFT, band_matrices, downsampling, upsampling
from hfgen.rng import Rng

REFLECTION = 2  # torch.nn.functional.GRID_SAMPLE_PADDING_MODES


class _Sample(torch.autograd.Function):
    """Bilinear sampling with reflected borders; it is linear in the image, so its own double
    backward.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.shape = images.shape
        # under autocast a gradient, or the gradient of one, may come in half precision
        return F.grid_sample(images.to(grid), grid, padding_mode="reflection", align_corners=False)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Any:
        (grid,) = ctx.saved_tensors
        return _SampleAdjoint.apply(outputs[0], grid, ctx.shape), None


class _SampleAdjoint(torch.autograd.Function):
    """The transpose of ``_Sample``: torch computes it, but knows no derivative of it."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, grid: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        images = grid.new_zeros(shape)
        backward = torch.ops.aten.grid_sampler_2d_backward
        return backward(
            gradient.to(grid).contiguous(), images, grid, 0, REFLECTION, False, (True, False)
        )[0]

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Any:
        (grid,) = ctx.saved_tensors
        return _Sample.apply(outputs[0], grid), None, None


def warp(images: Tensor, inverse: Tensor) -> Tensor:
    """Images under affine maps.

    Args:
        inverse: [B, 3, 3], from an output point to the input point that it shows, in coordinates
            (x, y, 1) where the image is [-1, 1]^2.
    """
    grid = F.affine_grid(inverse[:, :2].to(images), list(images.shape), align_corners=False)
    return _Sample.apply(images, grid)  # type: ignore[return-value]


def warp_oversampled(images: Tensor, inverse: Tensor) -> Tensor:
    """``warp`` on a grid of twice the resolution, up and down by sym6 filters, so that bilinear
    sampling neither blurs nor aliases (Karras et al. 2020, ADA, appendix B).
    """
    height, width = images.shape[-2:]
    fine = _both_sides(images, upsampling(height), upsampling(width))
    wider = torch.diag(images.new_tensor([1 + 2 * MARGIN / width, 1 + 2 * MARGIN / height, 1.0]))
    shift = torch.eye(3, dtype=images.dtype, device=images.device)
    shift[:2, 2] = images.new_tensor([SHIFT / width, SHIFT / height])
    inverse = torch.linalg.inv(shift) @ inverse.to(images) @ shift @ wider
    shape = [*images.shape[:2], 2 * (height + 2 * MARGIN), 2 * (width + 2 * MARGIN)]
    grid = F.affine_grid(inverse[:, :2], shape, align_corners=False)
    warped: Tensor = _Sample.apply(fine, grid)  # type: ignore[assignment]
    return _both_sides(warped, downsampling(height), downsampling(width))


def _both_sides(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return rows.to(images) @ images @ columns.to(images).mT


def _chosen(rng: Rng, name: str, p: float, values: Tensor, neutral: float) -> Tensor:
    """``values`` with probability ``p``, else ``neutral``, for each row."""
    return torch.where(rng.rand(f"{name}?", (len(values),)) < p, values, neutral)


def _matrix(rows: list[list[Tensor | float]], like: Tensor) -> Tensor:
    """[B, n, n] from its entries, each [B] or a number."""
    full = [[torch.as_tensor(v).to(like).expand_as(like) for v in row] for row in rows]
    return torch.stack([torch.stack(row, -1) for row in full], -2)


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    return _matrix([[x, 0, 0], [0, y, 0], [0, 0, 1]], x)


def _rotation(angle: Tensor) -> Tensor:
    c, s = angle.cos(), angle.sin()
    return _matrix([[c, -s, 0], [s, c, 0], [0, 0, 1]], angle)


def _translation(x: Tensor, y: Tensor) -> Tensor:
    return _matrix([[1, 0, x], [0, 1, y], [0, 0, 1]], x)


def blit(images: Tensor, p: float, rng: Rng) -> Tensor:
    """Inverse maps [B, 3, 3] of flips, quarter turns and shifts by up to 1/8 in whole pixels."""
    rows, _, height, width = images.shape
    flip = _chosen(rng, "flip", p, 1 - 2.0 * rng.randint("flip", 2, (rows,)), 1.0)
    turns = _chosen(rng, "turn", p, rng.randint("turn", 4, (rows,)).float(), 0.0)
    shift = 2 * rng.rand("shift", (rows, 2)) - 1
    x = _chosen(rng, "shift", p, (shift[:, 0] * width / 8).round() * 2 / width, 0.0)
    y = _chosen(rng, "shift", p, (shift[:, 1] * height / 8).round() * 2 / height, 0.0)
    turned = _scaling(flip, torch.ones_like(flip)) @ _rotation(turns * math.pi / 2)
    return turned @ _translation(x, y)


def geometry(images: Tensor, p: float, rng: Rng) -> Tensor:
    """Inverse maps [B, 3, 3] of scaling, rotation, anisotropic scaling and shifts by fractions."""
    rows = len(images)
    scale = _chosen(rng, "scale", p, torch.exp2(-0.2 * rng.randn("scale", (rows,))), 1.0)
    aniso = _chosen(rng, "aniso", p, torch.exp2(-0.2 * rng.randn("aniso", (rows,))), 1.0)
    share = 1 - math.sqrt(1 - p)  # two rotations, one of which happens with probability p
    angles = [
        _chosen(rng, name, share, math.pi * (2 * rng.rand(name, (rows,)) - 1), 0.0)
        for name in ("before", "after")
    ]
    shift = 0.25 * rng.randn("fraction", (rows, 2))  # 1/8 of the side, which is 2
    x, y = (_chosen(rng, "fraction", p, shift[:, i], 0.0) for i in (0, 1))
    turned = _scaling(scale, scale) @ _rotation(angles[0])
    return turned @ _scaling(aniso, 1 / aniso) @ _rotation(angles[1]) @ _translation(x, y)


def slight(rows: int, rotation: float, zoom: float, shear: float, shift: float, rng: Rng) -> Tensor:
    """Inverse maps [rows, 3, 3] that leave an image what it is: each row turned by up to
    ``rotation`` degrees, scaled by 1 +- ``zoom`` along each axis, sheared by up to ``shear``
    and moved by up to ``shift`` of the side, all uniform.
    """
    turn, x, y, slant, right, down = (2 * rng.rand("slight", (rows, 6)) - 1).unbind(1)
    sheared = _matrix([[1, shear * slant, 0], [0, 1, 0], [0, 0, 1]], slant)
    turned = _rotation(math.radians(rotation) * turn) @ sheared
    scaled = turned @ _scaling(1 + zoom * x, 1 + zoom * y)
    return scaled @ _translation(2 * shift * right, 2 * shift * down)


def color(images: Tensor, p: float, rng: Rng) -> Tensor:
    """Brightness, contrast, luma flip, hue, saturation as one affine map of RGB; grey: its mean."""
    rows, channels = images.shape[:2]
    if channels not in (1, 3):
        raise ValueError(f"colour augmentation is for 1 or 3 channels, not {channels}")
    eye = torch.eye(4, device=rng.device)
    luma = torch.tensor([1.0, 1, 1, 0], device=rng.device) / math.sqrt(3)
    along = torch.outer(luma, luma)
    bright = _chosen(rng, "brightness", p, 0.2 * rng.randn("brightness", (rows,)), 0.0)
    contrast = _chosen(rng, "contrast", p, torch.exp2(0.5 * rng.randn("contrast", (rows,))), 1.0)
    flip = _chosen(rng, "luma", p, rng.randint("luma", 2, (rows,)).float(), 0.0)
    matrix = contrast[:, None, None] * (eye + bright[:, None, None] * _offsets(eye))
    matrix = (eye - 2 * along * flip[:, None, None]) @ matrix
    if channels == 3:
        hue = _chosen(rng, "hue", p, math.pi * (2 * rng.rand("hue", (rows,)) - 1), 0.0)
        strength = _chosen(rng, "saturation", p, torch.exp2(rng.randn("saturation", (rows,))), 1.0)
        matrix = _hue_rotation(hue) @ matrix
        matrix = (along + (eye - along) * strength[:, None, None]) @ matrix
    return _recolor(images, matrix.to(images))


def _offsets(eye: Tensor) -> Tensor:
    """[4, 4] with ones in the column of constants."""
    offsets = torch.zeros_like(eye)
    offsets[:3, 3] = 1
    return offsets


def _hue_rotation(angle: Tensor) -> Tensor:
    """[B, 4, 4]: a turn about the grey axis (Rodrigues' formula)."""
    c, s = angle.cos(), angle.sin() / math.sqrt(3)
    a, b = (1 + 2 * c) / 3, (1 - c) / 3
    rows = [[a, b - s, b + s, 0], [b + s, a, b - s, 0], [b - s, b + s, a, 0], [0, 0, 0, 1]]
    return _matrix(rows, angle)


def _recolor(images: Tensor, matrix: Tensor) -> Tensor:
    if images.shape[1] == 1:
        grey = matrix[:, :3].mean(1)
        return images * grey[:, :3].sum(1)[:, None, None, None] + grey[:, 3, None, None, None]
    mixed = torch.einsum("bij,bjhw->bihw", matrix[:, :3, :3], images)
    return mixed + matrix[:, :3, 3, None, None]


def band_filter(images: Tensor, p: float, rng: Rng) -> Tensor:
    """Four bands of frequencies, each amplified with probability ``p`` by 2 to the power of a
    standard normal number (Karras et al. 2020, ADA, appendix B), along rows and columns alike.
    """
    gains = band_gains(len(images), p, rng).to(images)
    height, width = (
        torch.einsum("bk,kij->bij", gains, band_matrices(side).to(images))[:, None]
        for side in images.shape[-2:]
    )
    return _both_sides(images, height, width)


SPECTRUM = (10 / 13, 1 / 13, 1 / 13, 1 / 13)
"""Share of a natural image's power (1/f^2) in each band."""


def band_gains(rows: int, p: float, rng: Rng) -> Tensor:
    """[rows, 4]: the product of a gain for each band, each normalised to keep the power of an image
    with the spectrum of natural ones.
    """
    spectrum = torch.tensor(SPECTRUM, device=rng.device)
    gains = torch.ones(rows, 4, device=rng.device)
    for band in range(4):
        name = f"band{band}"
        gain = _chosen(rng, name, p, torch.exp2(rng.randn(name, (rows,))), 1.0)
        changed = torch.where(torch.arange(4, device=rng.device) == band, gain[:, None], 1.0)
        gains = gains * changed / (spectrum * changed.square()).sum(1, keepdim=True).sqrt()
    return gains


def cutout(images: Tensor, p: float, rng: Rng) -> Tensor:
    """A square of half the side, anywhere (cut off at the border), set to 0, mid-grey."""
    rows, _, height, width = images.shape
    centre = rng.rand("cutout", (rows, 2)).to(images)[:, :, None]
    cut = (rng.rand("cutout?", (rows,)) < p).to(images.device)
    y = (torch.arange(height, device=images.device) + 0.5) / height
    x = (torch.arange(width, device=images.device) + 0.5) / width
    inside = ((y - centre[:, 0]).abs() < 0.25)[:, :, None] & ((x - centre[:, 1]).abs() < 0.25)[
        :, None
    ]
    return images * ~(inside & cut[:, None, None])[:, None]


def noise(images: Tensor, p: float, rng: Rng) -> Tensor:
    """Normal noise whose standard deviation is itself half-normal, 0.1."""
    sigma = _chosen(rng, "sigma", p, 0.1 * rng.randn("sigma", (len(images),)).abs(), 0.0)
    return images + sigma.to(images)[:, None, None, None] * rng.randn("noise", images.shape).to(
        images
    )


def jitter(images: Tensor, rng: Rng) -> Tensor:
    """Brightness, saturation and contrast of DiffAugment (Zhao et al. 2020, its released code)."""
    draws = rng.rand("jitter", (len(images), 3)).to(images)[:, :, None, None, None]
    images = images + draws[:, 0] - 0.5
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * 2 * draws[:, 1]
    middle = images.mean((1, 2, 3), keepdim=True)
    return middle + (images - middle) * (draws[:, 2] + 0.5)


def translate(images: Tensor, rng: Rng, ratio: float = 0.125) -> Tensor:
    """Shifts by up to ``ratio`` of the side in whole pixels, zeros outside (DiffAugment)."""
    rows, _, height, width = images.shape
    dy, dx = int(height * ratio + 0.5), int(width * ratio + 0.5)
    padded = F.pad(images, (dx, dx, dy, dy))
    device = images.device
    y = rng.randint("dy", 2 * dy + 1, (rows, 1)).to(device) + torch.arange(height, device=device)
    x = rng.randint("dx", 2 * dx + 1, (rows, 1)).to(device) + torch.arange(width, device=device)
    row = torch.arange(rows, device=device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[row, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)
