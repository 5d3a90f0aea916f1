"""Moments of many float32 features by exact products of bytes, where the processor is made for it.

Each column is rounded to steps of about 2^-23 of its largest deviation, much as float32 itself
rounds it, and split into three signed bytes, 2^16 h + 2^8 m + l (see ``fixed_point``). Sums of
products of bytes are exact, so that rounding is the only error: 1e-8 of the product of two standard
deviations or less. For whole sets, not for parts that are merged: each has steps of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from hfgen.evaluation.arrays import one_thread, slices
from hfgen.evaluation.metrics.fixed_point import has_byte_units
from hfgen.evaluation.moments import Moments

ROWS = 16_384
"""Rows at once: 3 ROWS products of bytes stay below 2^31."""
TILE = 256
"""Columns whose products with as many others are added up while they are in the cache."""
CHUNK = 64
SMALLEST = 512
"""Columns from which on it is faster."""
LEVELS = (((0, 0),), ((0, 1), (1, 0)), ((0, 2), (1, 1), (2, 0)), ((1, 2), (2, 1)))
"""Bytes whose products have the weights 2^32, 2^24, 2^16 and 2^8; for the last, of l with l, that
of their means will do."""


def byte_moments_pay(x: Tensor) -> bool:
    """Whether ``byte_moments`` of features [N, D] is faster than ``Moments.of``, and as good."""
    return x.dtype == torch.float32 and x.shape[1] >= SMALLEST and has_byte_units(x)


@one_thread()
def byte_moments(x: Tensor) -> Moments:
    """Moments of finite float32 features [N, D]."""
    centre, step = _steps(x.numpy())
    count, width = x.shape
    products = torch.zeros(width, width, dtype=torch.float64)
    sums = torch.zeros(2, width, dtype=torch.float64)
    for rows in slices(count, ROWS):
        digits = _digits(x[rows], centre, step)
        sums += _sums(digits)
        for i, j in _tiles(width):
            products[i, j] += _products(digits[:, i], digits[:, j])
    whole, low = sums
    step = step.double()
    for i, j in _tiles(width):
        tile = products[i, j]
        tile.addr_(low[i], low[j], alpha=1 / count).addr_(whole[i], whole[j], alpha=-1 / count)
        tile.mul_(step[i, None]).mul_(step[j])
        if i != j:
            products[j, i] = tile.T
    mean = x.numpy().mean(axis=0, dtype=np.float64)
    return Moments(count, mean, products.T.numpy())  # in the order of LAPACK


def _steps(x: np.ndarray) -> tuple[Tensor, Tensor]:
    """Centre and step of each column [D]; steps are powers of two.

    A centre is a whole number of high bytes, so that zeros, of which rectified features have many,
    have no other byte.
    """
    low, high = x.min(0).astype(np.float64), x.max(0).astype(np.float64)
    middle = ((low + high) / 2).astype(np.float32)
    peak = np.maximum(high - middle, middle - low)
    varies = peak > 0
    exponent = np.ceil(np.log2(np.where(varies, peak, 1) / (126 * 65536)))
    step = np.exp2(np.clip(exponent, -126, 126))
    centre = np.where(varies, np.round(middle / (65536 * step)) * (65536 * step), middle)
    return torch.from_numpy(centre.astype(np.float32)), torch.from_numpy(step.astype(np.float32))


def _digits(x: Tensor, centre: Tensor, step: Tensor) -> Tensor:
    """The bytes h, m, l of (x - centre) / step: int8 [3, D, N]."""
    digits = torch.empty(3, x.shape[1], len(x), dtype=torch.int8)
    buffers = torch.empty(2, x.shape[1], CHUNK)
    centre, inverse = centre[:, None], 1 / step[:, None]
    for start in range(0, len(x), CHUNK):
        rows = slice(start, min(start + CHUNK, len(x)))
        rest, byte = buffers[..., : rows.stop - rows.start]
        rest.copy_(x[rows].T).sub_(centre).mul_(inverse).round_()
        # the nearest byte that leaves a rest which the lower ones can hold: -128 ... 127 each
        for digit, (unit, half) in zip(digits, ((65536, 32896), (256, 128)), strict=False):
            torch.add(rest, half, out=byte).mul_(1 / unit).floor_()
            digit[:, rows] = byte
            rest.sub_(byte, alpha=unit)
        digits[2, :, rows] = rest
    return digits


def _tiles(width: int) -> Iterator[tuple[slice, slice]]:
    """Those of a square matrix on and below its diagonal."""
    parts = slices(width, TILE)
    for number, i in enumerate(parts):
        for j in parts[: number + 1]:
            yield i, j


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Sums of products of numbers in bytes, [3, I, N] by [3, J, N], less those of l with l: float64
    [I, J]."""
    total = torch.zeros(a.shape[1], b.shape[1], dtype=torch.float64)
    for pairs in LEVELS:
        total.mul_(256)
        for p, q in pairs:
            total += torch._int_mm(a[p], b[q].T)  # the public product of integers is slow on CPUs
    return total.mul_(256)


def _sums(digits: Tensor) -> Tensor:
    """Of the whole numbers and of their bytes l: float64 [2, D]."""
    ones = torch.ones(digits.shape[2], 1, dtype=torch.int8)
    high, middle, low = (torch._int_mm(part, ones)[:, 0].double() for part in digits)
    return torch.stack([high * 65536 + middle * 256 + low, low])
