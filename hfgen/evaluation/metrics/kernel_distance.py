"""Kernel distance (KID; Binkowski et al. 2018, section 4): unbiased MMD^2, k = (x'y / D + 1)^3.

The kernel sums are taken over blocks; a symmetric one costs half. Each scalar product is split
into a centred part, multiplied in the features' own precision, and a float64 rest, so that float32
features lose nothing that the difference of three large means would show.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hfgen.errors import HfgenError
from hfgen.evaluation.arrays import Array, Estimate, as_pair

ROWS, COLUMNS = 512, 4096
"""Of one block of the kernel. Few rows, since a symmetric one is computed from its diagonal on;
never more than columns."""


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

    def prepare(self, x: Tensor) -> Tensor:
        """[N, D + 2]: centred rows over sqrt(D), then c'x / D with half of the constant 1 + c'c /
        D, and a one: so that one product gives the whole of x'y / D + 1.
        """
        centred = x.double() - self.centre
        d = x.shape[1]
        rows = torch.empty(len(x), d + 2, dtype=x.dtype, device=x.device)
        rows[:, :d] = centred / math.sqrt(d)
        rows[:, d] = centred @ self.centre / d + (1 + self.centre.square().sum() / d) / 2
        rows[:, d + 1] = 1
        return rows


def _sums_within(x: Tensor) -> Tensor:
    """Row sums of the kernel of x with itself, without the diagonal."""
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for i, j, kernel in _blocks(x, x, upper=True):
        if i.start == j.start:
            kernel.fill_diagonal_(0)
        total[i] += kernel.sum(1).double()
        beyond = slice(max(i.stop, j.start), j.stop)  # the rest is in the block of these rows
        total[beyond] += kernel[:, beyond.start - j.start :].sum(0).double()
    return total


def _sums_between(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    rows = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    columns = torch.zeros(len(y), dtype=torch.float64, device=x.device)
    for i, j, kernel in _blocks(x, y):
        rows[i] += kernel.sum(1).double()
        columns[j] += kernel.sum(0).double()
    return rows, columns


def _blocks(x: Tensor, y: Tensor, *, upper: bool = False) -> Iterator[tuple[slice, slice, Tensor]]:
    """Row slices, and (x'y / D + 1)^3 of these rows; with ``upper``, only j >= i. A block is
    overwritten by the next one.
    """
    base, cube = (torch.empty(ROWS * COLUMNS, dtype=x.dtype, device=x.device) for _ in range(2))
    for start in range(0, len(x), ROWS):
        i = slice(start, min(start + ROWS, len(x)))
        left = x[i].clone()
        left[:, -2], left[:, -1] = 1, x[i, -2]
        for first in range(start if upper else 0, len(y), COLUMNS):
            j = slice(first, min(first + COLUMNS, len(y)))
            shape = (i.stop - i.start, j.stop - j.start)
            k, product = (v[: shape[0] * shape[1]].view(shape) for v in (cube, base))
            torch.mm(left, y[j].T, out=product)
            yield i, j, torch.mul(product, product, out=k).mul_(product)
