"""Wavelet filters of ADA as matrices that act on the rows or columns of an image.

A side of n pixels is continued by mirroring at its edges, so that every linear filter of it is an
n x n matrix. Matrices are differentiable as often as one likes and know no smallest size.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

SYM2 = tuple(v / (4 * 2**0.5) for v in (1 - 3**0.5, 3 - 3**0.5, 3 + 3**0.5, 1 + 3**0.5))
"""Symlet with two vanishing moments (Daubechies 1992, section 6.4), sum sqrt(2)."""

SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
"""Symlet with six vanishing moments (Daubechies 1992, table 8.1), sum sqrt(2)."""

MARGIN = len(SYM6) // 4
"""Pixels outside the image that the low-pass filter of ``downsampling`` reaches."""


SHIFT = 5.5 - sum(tap * value for tap, value in enumerate(SYM6)) / sum(SYM6)
"""Fine pixels by which ``upsampling`` moves a side to the left; sym6 is not quite symmetric."""


def mirrored(positions: Tensor, size: int) -> Tensor:
    """Which of ``size`` pixels stands at each position, inside or outside."""
    folded = positions % (2 * size)
    return torch.minimum(folded, 2 * size - 1 - folded)


def convolve(a: Tensor, b: Tensor) -> Tensor:
    """The product of two polynomials, by their coefficients."""
    return F.conv1d(a[None, None], b.flip(0)[None, None], padding=len(b) - 1)[0, 0]


def band_filters() -> Tensor:
    """Impulse responses [4, 43], centred, of the bands from [0, pi/8] to [pi/2, pi]; their sum is
    an impulse.

    With L(z) = H(z) H(1/z) / 2 of the low-pass filter H of sym2, L(z) + L(-z) = 1: the bands are
    L(z) L(z^2) L(z^4), L(z) L(z^2) (1 - L(z^4)), L(z) (1 - L(z^2)) and 1 - L(z) (Karras et al.
    2020, ADA, appendix B).
    """
    taps = torch.tensor(SYM2, dtype=torch.float64)
    low = convolve(taps, taps.flip(0)) / 2
    lower, bands = torch.ones(1, dtype=torch.float64), []
    for step in (1, 2, 4):
        spread = torch.zeros(6 * step + 1, dtype=torch.float64)
        spread[::step] = low
        rest = -spread
        rest[3 * step] += 1
        bands.append(convolve(lower, rest))
        lower = convolve(lower, spread)
    bands.append(lower)
    return torch.stack([F.pad(band, [(43 - len(band)) // 2] * 2) for band in reversed(bands)])


@lru_cache
def band_matrices(size: int) -> Tensor:
    """[4, size, size], float64: what each band of a side's spectrum keeps; they sum to 1."""
    filters = band_filters()
    matrices = filters.new_zeros(4, size, size)
    rows = torch.arange(size)
    for tap in range(filters.shape[1]):
        matrices[:, rows, mirrored(rows + tap - 21, size)] += filters[:, tap, None]
    return matrices


@lru_cache
def upsampling(size: int) -> Tensor:
    """[2 size, size], float64: the side on a grid of twice the resolution, by sym6."""
    matrix = torch.zeros(2 * size, size, dtype=torch.float64)
    coarse = torch.arange(-MARGIN, size + MARGIN)
    for tap, value in enumerate(SYM6):
        fine = 2 * coarse + tap - 5
        inside = (fine >= 0) & (fine < 2 * size)
        matrix[fine[inside], mirrored(coarse, size)[inside]] += 2**0.5 * value
    return matrix


@lru_cache
def downsampling(size: int) -> Tensor:
    """[size, 2 (size + 2 MARGIN)], float64: low-pass filtered by sym6 and taken at half the
    resolution; of a side that goes on for ``MARGIN`` pixels at both ends.

    ``downsampling`` of ``upsampling`` is the identity where no border is near, since the filter
    is orthogonal to itself shifted by an even number.
    """
    matrix = torch.zeros(size, 2 * (size + 2 * MARGIN), dtype=torch.float64)
    rows = torch.arange(size)
    for tap, value in enumerate(SYM6):
        matrix[rows, 2 * (rows + MARGIN) + tap - 5] = value / 2**0.5
    return matrix
