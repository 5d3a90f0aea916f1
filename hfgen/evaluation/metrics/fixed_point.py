"""Scalar products of many vectors in exact integer arithmetic, where the processor is made for it.

Numbers are rounded to 16 bits of one common step and split into two signed bytes, 256 h + l. Sums
of products of bytes are exact in 32 bits, so the rounding of the numbers, which is known, is the
only error: the idea of Ozaki's splitting on 8-bit matrix units (Ootomo, Ozaki & Yokota 2024). On a
CPU with AMX the three products of bytes that matter take less than half the time of one product in
float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hfgen.evaluation.arrays import one_thread, slices

LARGEST = 32_512
"""In steps: 127 * 256, so that neither byte overflows."""
WIDEST = 32_768
"""Of vectors: 2 D products of bytes stay below 2^31."""
CHUNK = 512
CACHED = 64
"""Rows of some thousand numbers that stay in the cache from one operation to the next."""
UNIT = torch.finfo(torch.float32).eps / 2


def has_byte_units(x: Tensor) -> bool:
    """Whether vectors like the rows of ``x`` [N, D] are multiplied fast and exactly as bytes."""
    fast = x.device.type == "cpu" and torch.cpu.get_capabilities().get("amx_int8", False)
    return bool(fast) and x.shape[1] <= WIDEST


@dataclass(frozen=True)
class FixedPoint:
    """Rows of whole numbers 256 ``high`` + ``low``, both int8 [N, D].

    Attributes:
        squares: squared length of each row [N], float64, exact.
        low_squares: at least that of the low bytes alone.
        error: at least the distance of any row from what it was rounded from, in steps.
    """

    high: Tensor
    low: Tensor
    squares: Tensor
    low_squares: Tensor
    error: float

    @classmethod
    def of(cls, x: Tensor, centre: Tensor, scale: float) -> FixedPoint:
        """(x - centre) * scale, rounded; at most ``LARGEST`` in magnitude."""
        high, low = (torch.empty(x.shape, dtype=torch.int8) for _ in range(2))
        squares, low_squares, errors = (torch.empty(len(x), dtype=torch.float64) for _ in range(3))
        for start in range(0, len(x), CHUNK):
            rows = slice(start, start + CHUNK)
            exact = (x[rows] - centre).mul_(scale)
            whole = exact.round()
            upper = whole.add(128).div_(256).floor_()
            lower = whole.sub(upper, alpha=256)
            high[rows], low[rows] = upper, lower
            double = whole.double()
            squares[rows] = torch.linalg.vecdot(double, double)
            low_squares[rows] = torch.linalg.vecdot(lower, lower).double()
            exact.sub_(whole)
            errors[rows] = torch.linalg.vecdot(exact, exact).double()
        # what float32 may lose in a scalar product, and in centring and scaling
        rounding = 1 + x.shape[1] * UNIT
        lost = 4 * LARGEST * UNIT * math.sqrt(x.shape[1])
        error = math.sqrt(float(errors.max()) * rounding) + lost
        return cls(high, low, squares, low_squares * rounding, error)

    def __getitem__(self, rows: Tensor) -> FixedPoint:
        """These rows."""
        squares, low_squares = self.squares[rows], self.low_squares[rows]
        return FixedPoint(self.high[rows], self.low[rows], squares, low_squares, self.error)

    def products(self, i: slice, other: FixedPoint, j: slice, factor: float) -> Tensor:
        """``factor`` times those of rows ``i`` with rows ``j`` of ``other``: float32 [I, J].

        Without the products of low bytes, a quarter of the work: at most |l_i||l_j| each, and in
        the mean over the rows what ``low_products`` says.
        """
        digits = torch.cat([self.high[i], self.low[i]], dim=1)
        cross = torch.cat([other.low[j], other.high[j]], dim=1)
        # the public product of integers is slow on CPUs
        upper, lower = torch._int_mm(self.high[i], other.high[j].T), torch._int_mm(digits, cross.T)
        total = torch.empty(upper.shape)
        with one_thread():
            for rows in slices(len(total), CACHED):
                part = torch.mul(upper[rows], 65536 * factor, out=total[rows])
                part.add_(lower[rows], alpha=256 * factor)
        return total

    def low_products(self, other: FixedPoint) -> Tensor:
        """Share of each row [N], float64, in the products of low bytes l'l', to first order.

        With the means m, m' of l, l' over the rows it is l'm' - m'm' / 2; with the other's share
        the rest of a product, (l - m)'(l' - m'), is zero in the mean over all pairs. Of a set with
        itself only pairs of two different rows count, in whose mean the rest is -|l - m|^2 / (N -
        1).
        """
        mine, theirs = self.low_mean, other.low_mean
        along = torch.cat([part.float() @ theirs for part in self.low.split(CHUNK)]).double()
        constant = float(mine @ theirs)
        if other is self:
            constant += (float(self.low_squares.mean()) - constant) / (len(self.low) - 1)
        return along - constant / 2

    @property
    def low_mean(self) -> Tensor:
        """[D] float32."""
        return self.low.sum(0, dtype=torch.int32).float() / len(self.low)
