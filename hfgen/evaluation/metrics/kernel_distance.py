"""Kernel distance (KID; Binkowski et al. 2018, section 4): unbiased MMD^2, k = (x'y / D + 1)^3.

The kernel sums are taken over blocks; a symmetric one costs half. Each scalar product is split
into a centred part, multiplied in the features' own precision, and a float64 rest, so that float32
features lose nothing that the difference of three large means would show.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hfgen.errors import HfgenError
from hfgen.evaluation.arrays import Array, Estimate, as_pair

BLOCK = 2048


def kernel_distance(a: Array, b: Array) -> Estimate:
    """Unbiased MMD^2 over all pairs, with the jackknife's standard error over both sets.

    Args:
        a, b: features [N, D] and [M, D], at least 3 each. The value may be slightly negative.
    """
    x, y = as_pair(a, b, ("first set", "second set"), at_least=3)
    sums = _row_sums(x, y)
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
    values = []
    for _ in range(subsets):
        rows_x = draw.choice(len(x), subset_size, replace=False)
        rows_y = draw.choice(len(y), subset_size, replace=False)
        values.append(_row_sums(x[rows_x], y[rows_y]).mmd2())
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


def _row_sums(x: Tensor, y: Tensor) -> _Sums:
    centre = (x.double().mean(0) + y.double().mean(0)) / 2
    kernel = _CubicKernel(centre)
    px, py = kernel.prepare(x), kernel.prepare(y)
    xy, yx = _sums_between(px, py)
    return _Sums(_sums_within(px), _sums_within(py), xy, yx)


@dataclass(frozen=True)
class _CubicKernel:
    centre: Tensor

    def prepare(self, x: Tensor) -> _Prepared:
        """Centred rows over sqrt(D); per row c'x / D and half of the constant 1 + c'c / D."""
        centred = x.double() - self.centre
        d = x.shape[1]
        offset = centred @ self.centre / d + (1 + self.centre.square().sum() / d) / 2
        return _Prepared((centred / math.sqrt(d)).to(x.dtype), offset.to(x.dtype))


@dataclass(frozen=True)
class _Prepared:
    rows: Tensor
    offset: Tensor

    def blocks(self) -> list[slice]:
        return [slice(i, i + BLOCK) for i in range(0, len(self.rows), BLOCK)]


def _block(x: _Prepared, i: slice, y: _Prepared, j: slice) -> Tensor:
    """(x'y / D + 1)^3 for rows i of x and j of y."""
    base = torch.addmm(y.offset[j], x.rows[i], y.rows[j].T).add_(x.offset[i, None])
    return torch.mul(base, base).mul_(base)


def _sums_within(x: _Prepared) -> Tensor:
    total = torch.zeros(len(x.rows), dtype=torch.float64, device=x.rows.device)
    for i in x.blocks():
        for j in x.blocks():
            if j.start < i.start:
                continue
            kernel = _block(x, i, x, j)
            if i == j:
                kernel.fill_diagonal_(0)
            else:
                total[j] += kernel.sum(0).double()
            total[i] += kernel.sum(1).double()
    return total


def _sums_between(x: _Prepared, y: _Prepared) -> tuple[Tensor, Tensor]:
    rows = torch.zeros(len(x.rows), dtype=torch.float64, device=x.rows.device)
    columns = torch.zeros(len(y.rows), dtype=torch.float64, device=x.rows.device)
    for i in x.blocks():
        for j in y.blocks():
            kernel = _block(x, i, y, j)
            rows[i] += kernel.sum(1).double()
            columns[j] += kernel.sum(0).double()
    return rows, columns
