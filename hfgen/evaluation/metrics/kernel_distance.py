"""Kernel distance (KID; Binkowski et al. 2018, section 4): unbiased MMD^2, k = (x'y / D + 1)^3.

The kernel sums are taken over blocks; a symmetric one costs half. Each scalar product is split
into a centred part, multiplied in the features' own precision or in 16-bit fixed point, and a rest
from float64, so that float32 features lose nothing that the difference of three large means would
show.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hfgen.errors import HfgenError
from hfgen.evaluation.arrays import Array, Estimate, as_pair, one_thread, slices
from hfgen.evaluation.metrics.fixed_point import CACHED, LARGEST, FixedPoint, has_byte_units

BLOCK = 2048
COARSEST = 1e-7
"""Largest share of the mean squared length that fixed point may lose: a noise of 1e-5 of a scalar
product, of mean zero over the pairs."""


def kernel_distance(a: Array, b: Array) -> Estimate:
    """Unbiased MMD^2 over all pairs, with the jackknife's standard error over both sets.

    Args:
        a, b: features [N, D] and [M, D], at least 3 each. The value may be slightly negative.
    """
    x, y = as_pair(a, b, ("first set", "second set"), at_least=3)
    sums = _row_sums(*_centred(x, y))
    return Estimate(sums.mmd2(), math.sqrt(sums.jackknife_variance()))


def kernel_distance_subsets(
    a: Array, b: Array, *, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> Estimate:
    """The conventional estimate: mean over random subsets, drawn in torch-fidelity's order.

    Returns:
        The mean; its ``standard_error`` is that of the mean over subsets (their std, ddof 0, over
        sqrt(subsets)).
    Raises:
        HfgenError: ``subset_size`` larger than a set.
    """
    x, y = as_pair(a, b, ("first set", "second set"))
    if not 2 <= subset_size <= min(len(x), len(y)):
        raise HfgenError(
            f"subset_size: {subset_size} is not between 2 and the smaller set's size, "
            f"{min(len(x), len(y))}"
        )
    draw = np.random.RandomState(seed)  # the generator that fixes the convention
    values, (a_rows, b_rows) = [], _centred(x, y)
    for _ in range(subsets):
        rows_a = draw.choice(len(x), subset_size, replace=False)
        rows_b = draw.choice(len(y), subset_size, replace=False)
        values.append(_row_sums(a_rows.take(rows_a), b_rows.take(rows_b)).mmd2())
    return Estimate(float(np.mean(values)), float(np.std(values) / math.sqrt(subsets)))


@dataclass(frozen=True)
class _Sums:
    """Kernel sums per row, float64; the symmetric ones without the diagonal."""

    xx: Tensor
    yy: Tensor
    xy: Tensor
    yx: Tensor

    def mmd2(self) -> float:
        n, m = len(self.xx), len(self.yy)
        within = self.xx.sum() / (n * (n - 1)) + self.yy.sum() / (m * (m - 1))
        return float(within - 2 * self.xy.sum() / (n * m))

    def jackknife_variance(self) -> float:
        return _leave_one_out_variance(self.xx, self.xy, len(self.yy)) + _leave_one_out_variance(
            self.yy, self.yx, len(self.xx)
        )


def _leave_one_out_variance(within: Tensor, across: Tensor, others: int) -> float:
    """(n - 1) / n times the squared deviations of the estimates that leave one row out."""
    n = len(within)
    left = (within.sum() - 2 * within) / ((n - 1) * (n - 2))
    left = left - 2 * (across.sum() - across) / ((n - 1) * others)
    return float((n - 1) / n * (left - left.mean()).square().sum())


@dataclass(frozen=True)
class _Rows:
    """Features x of which x'y / D + 1 is factor * (copy of x)'(copy of y) + rest of x + rest of y.

    Attributes:
        copy: centred, [N, D].
        rest: c'(x - c) / D + (1 + c'c / D) / 2 with the centre c, [N].
    """

    copy: Tensor | FixedPoint
    rest: Tensor
    factor: float

    def take(self, rows: np.ndarray) -> _Rows:
        """These rows."""
        index = torch.from_numpy(rows).to(self.rest.device)
        return _Rows(self.copy[index], self.rest[index], self.factor)

    def rest_with(self, other: _Rows) -> Tensor:
        """``rest``, with what products with the copy of ``other`` leave out."""
        if not isinstance(self.copy, FixedPoint):
            return self.rest
        assert isinstance(other.copy, FixedPoint)
        return self.rest + (self.factor * self.copy.low_products(other.copy)).float()

    def products(self, i: slice, other: _Rows, j: slice) -> Tensor:
        """factor * (copy of x)'(copy of y) of rows ``i`` and ``j``: [I, J]."""
        if isinstance(self.copy, FixedPoint):
            assert isinstance(other.copy, FixedPoint)
            return self.copy.products(i, other.copy, j, self.factor)
        assert isinstance(other.copy, Tensor)
        return (self.copy[i] @ other.copy[j].T).mul_(self.factor)


def _centred(x: Tensor, y: Tensor) -> tuple[_Rows, _Rows]:
    """Both sets with one centre."""
    centre = ((_mean(x) + _mean(y)) / 2).to(x.dtype)
    found = _fixed(x, y, centre) if x.dtype == torch.float32 and has_byte_units(x) else None
    return found or _rows(x, y, (x - centre, y - centre), centre, 1.0)


def _mean(x: Tensor) -> Tensor:
    return x.sum(0, dtype=torch.float64) / len(x)


def _fixed(x: Tensor, y: Tensor, centre: Tensor) -> tuple[_Rows, _Rows] | None:
    """The sets in fixed point; None where outliers leave too few steps for the others."""
    ends = [end - centre for v in (x, y) for end in (v.amax(0), v.amin(0))]
    largest = max(float(end.abs().amax()) for end in ends)
    scale = (LARGEST - 128) / largest if largest > 0 else 1.0
    # a whole number of high bytes: so that rectified features, often 0, then have no low byte
    # there, whose products would not average out
    centre = (centre * (scale / 256)).round() * (256 / scale)
    copies = FixedPoint.of(x, centre, scale), FixedPoint.of(y, centre, scale)
    if any(copy.error**2 > COARSEST * float(copy.squares.mean()) for copy in copies):
        return None
    return _rows(x, y, copies, centre, scale**-2)


def _rows(
    x: Tensor, y: Tensor, copies: Sequence[Tensor | FixedPoint], centre: Tensor, factor: float
) -> tuple[_Rows, _Rows]:
    c, width = centre.double(), x.shape[1]
    constant = float(c.square().sum())
    found = []
    for features, copy in zip((x, y), copies, strict=True):
        along = torch.cat([part.double() @ c for part in features.split(BLOCK)])
        rest = ((along - constant) + (width + constant) / 2) / width
        found.append(_Rows(copy, rest.to(x.dtype), factor / width))
    return found[0], found[1]


def _row_sums(x: _Rows, y: _Rows) -> _Sums:
    xy, yx = _sums_between(x, y)
    return _Sums(_sums_within(x), _sums_within(y), xy, yx)


def _sums_within(x: _Rows) -> Tensor:
    """Row sums of the kernel of x with itself, without the diagonal."""
    total = torch.zeros(len(x.rest), dtype=torch.float64, device=x.rest.device)
    for i, j, kernel in _blocks(x, x, lower=True):
        if i.start < j.stop:
            kernel.diagonal(i.start - j.start).zero_()
        else:
            total[j] += kernel.sum(0).double()
        total[i] += kernel.sum(1).double()
    return total


def _sums_between(x: _Rows, y: _Rows) -> tuple[Tensor, Tensor]:
    rows, columns = (
        torch.zeros(len(v.rest), dtype=torch.float64, device=v.rest.device) for v in (x, y)
    )
    for i, j, kernel in _blocks(x, y):
        rows[i] += kernel.sum(1).double()
        columns[j] += kernel.sum(0).double()
    return rows, columns


def _blocks(x: _Rows, y: _Rows, *, lower: bool = False) -> Iterator[tuple[slice, slice, Tensor]]:
    """Row slices and (x'y / D + 1)^3 of these rows; with ``lower``, of each square block only those
    on and below the diagonal of blocks. A block's rows come in parts that stay in the cache.
    """
    left, right = x.rest_with(y), y.rest_with(x)
    for rows in slices(len(left), BLOCK):
        for j in slices(len(right), BLOCK):
            if lower and j.start > rows.start:
                continue
            products = x.products(rows, y, j)
            with one_thread():
                for part in slices(len(products), CACHED):
                    i = slice(rows.start + part.start, rows.start + part.stop)
                    base = products[part].add_(right[j]).add_(left[i, None])
                    yield i, j, base.pow_(3)  # by two products, in one pass
