"""Nearest neighbours and balls: the one place where metrics of manifolds compute distances.

Squared distances of centred float32 copies come from matrix products. Wherever their rounding
error, bounded rigorously, could change a decision (which sample is the k-th nearest, whether a
point is in a ball), direct float64 differences of the original features decide. So results are
exact, do not depend on the block size, and no [N, M] matrix is ever held.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hfgen.errors import HfgenError

BLOCK = 2048
CHUNK = 256
"""Pairs whose differences are taken at once: they stay in the cache."""
SPARE = 4
"""Candidates kept beyond k; rows where that could be too few are searched in full."""


@dataclass(frozen=True)
class Neighbours:
    """Nearest neighbours in ascending order.

    Attributes:
        distances: [N, k] float64.
        indices: [N, k] int64, rows of the reference set.
    """

    distances: Tensor
    indices: Tensor


def nearest(queries: Tensor, reference: Tensor, k: int = 1) -> Neighbours:
    """The ``k`` nearest rows of ``reference`` [M, D] for each row of ``queries`` [N, D]."""
    _check_k(k, len(reference), "a reference set")
    a, b = Points.pair(queries, reference)
    best = _Best.empty(len(queries), min(k + SPARE, len(reference)), queries.device)
    for i, j, bounds in _blocks(a, b):
        best.offer(i, bounds, j.start)
    return _refine(a, b, best, k, others=False)


def nearest_others(x: Tensor, k: int) -> Neighbours:
    """The ``k`` nearest *other* rows for each row of ``x`` [N, D]; no distance is made twice."""
    points, _ = Points.pair(x, x)
    return _refine(points, points, _best_others(points, k), k, others=True)


def radii(points: Points, k: int) -> Tensor:
    """Distance of each point to its ``k``-th nearest other one, [N] float64."""
    best = _best_others(points, k)
    return _refine(points, points, best, k, others=True, last_only=True).distances[:, -1]


def _best_others(points: Points, k: int) -> _Best:
    count = len(points.rows)
    _check_k(k, count - 1, "the others in a set")
    best = _Best.empty(count, min(k + SPARE, count - 1), points.rows.device)
    for i, j, bounds in _blocks(points, points, upper=True):
        if i.start == j.start:
            bounds.fill_diagonal_(torch.inf)
        else:
            best.offer(j, bounds.T, i.start)
        best.offer(i, bounds, j.start)
    return best


@dataclass(frozen=True)
class Members:
    """How many balls each point is in, and how many points each ball holds; int64."""

    per_point: Tensor
    per_ball: Tensor

    @classmethod
    def none(cls, points: int, balls: int, device: torch.device) -> Members:
        zeros = [torch.zeros(n, dtype=torch.int64, device=device) for n in (points, balls)]
        return cls(*zeros)

    def add(self, points: Tensor, balls: Tensor) -> None:
        self.per_point.add_(torch.bincount(points, minlength=len(self.per_point)))
        self.per_ball.add_(torch.bincount(balls, minlength=len(self.per_ball)))


def memberships(
    a: Points, b: Points, radii_a: Tensor | None, radii_b: Tensor | None, *, closed: bool
) -> tuple[Members, Members]:
    """Which points of ``b`` are in the balls around those of ``a``, and the reverse, in one pass.

    Args:
        a, b: sets made by ``Points.pair``.
        radii_a, radii_b: [N], [M] float64; None leaves that direction out (its counts stay zero).
        closed: ``<=`` rather than ``<``.
    """
    device = a.rows.device
    in_a = Members.none(len(b.rows), len(a.rows), device)
    in_b = Members.none(len(a.rows), len(b.rows), device)
    for i, j, bounds in _blocks(a, b):
        if radii_a is not None:
            rows, columns = _inside(a, b, i, j, bounds, radii_a[i, None], closed=closed)
            in_a.add(columns, rows)
        if radii_b is not None:
            rows, columns = _inside(a, b, i, j, bounds, radii_b[j], closed=closed)
            in_b.add(rows, columns)
    return in_a, in_b


def _inside(
    a: Points, b: Points, i: slice, j: slice, bounds: Tensor, radii: Tensor, *, closed: bool
) -> tuple[Tensor, Tensor]:
    """Index pairs of one block that are within ``radii`` (broadcast over the block)."""
    limits = (radii * a.scale).square().float()
    rows, columns = torch.nonzero(bounds <= limits, as_tuple=True)
    limits = limits.expand_as(bounds)[rows, columns]
    exact_limits = radii.expand_as(bounds)[rows, columns]
    lower = bounds[rows, columns]
    rows, columns = rows + i.start, columns + j.start
    unsure = lower + 2 * (a.slack[rows] + b.slack[columns]) >= limits
    exact = _distances(a.original, b.original, rows[unsure], columns[unsure])
    inside = torch.ones_like(unsure)
    inside[unsure] = exact <= exact_limits[unsure] if closed else exact < exact_limits[unsure]
    return rows[inside], columns[inside]


@dataclass(frozen=True)
class Points:
    """A set of features, with a centred and scaled float32 copy of it to multiply.

    Attributes:
        original: [N, D].
        rows: the copy, [N, D].
        base: its squared norms less ``slack``, [N].
        slack: its share of a bound on the rounding error of a squared distance, [N].
        scale: factor of the copy.
    """

    original: Tensor
    rows: Tensor
    base: Tensor
    slack: Tensor
    scale: float

    @classmethod
    def pair(cls, a: Tensor, b: Tensor) -> tuple[Points, Points]:
        """Both sets [N, D], [M, D] with one centre and one scale."""
        centre = b.mean(0)
        largest = float(torch.maximum(a.abs().amax(), b.abs().amax()))
        scale = 1 / largest if largest > 0 else 1.0
        first = cls._of(a, centre, scale)
        return first, first if a is b else cls._of(b, centre, scale)

    @classmethod
    def _of(cls, x: Tensor, centre: Tensor, scale: float) -> Points:
        rows = (x - centre).mul_(scale).float()
        squares = torch.linalg.vecdot(rows, rows)
        # A scalar product of D terms errs by at most D u |x||y| (Higham 2002, section 3.1), with
        # |x||y| <= (|x|^2 + |y|^2) / 2, and a norm by D u |x|^2; 16 more units for the copy's own
        # rounding, the sums and the comparison; the last term for subnormal numbers
        info = torch.finfo(torch.float32)
        slack = squares * ((2 * x.shape[1] + 16) * info.eps / 2) + info.tiny
        return cls(x, rows, squares - slack, slack, scale)


def _blocks(a: Points, b: Points, *, upper: bool = False) -> Iterator[tuple[slice, slice, Tensor]]:
    """Row slices, and lower bounds of the scaled squared distances; with ``upper``, only j >= i."""
    for i in range(0, len(a.rows), BLOCK):
        for j in range(i if upper else 0, len(b.rows), BLOCK):
            rows, columns = slice(i, i + BLOCK), slice(j, j + BLOCK)
            product = torch.addmm(b.base[columns], a.rows[rows], b.rows[columns].T, alpha=-2)
            yield rows, columns, product.add_(a.base[rows, None])


@dataclass(frozen=True)
class _Best:
    """Running smallest bounds of squared distances per row, ascending."""

    bounds: Tensor
    indices: Tensor

    @classmethod
    def empty(cls, n: int, keep: int, device: torch.device) -> _Best:
        bounds = torch.full((n, keep), torch.inf, device=device)
        return cls(bounds, torch.zeros(n, keep, dtype=torch.int64, device=device))

    def offer(self, rows: slice, bounds: Tensor, offset: int) -> None:
        """Merge a block [rows, M'] whose columns are the candidates from ``offset`` on."""
        keep = min(self.bounds.shape[1], bounds.shape[1])
        values, indices = torch.topk(bounds, keep, dim=1, largest=False, sorted=False)
        values = torch.cat([self.bounds[rows], values], dim=1)
        indices = torch.cat([self.indices[rows], indices + offset], dim=1)
        values, order = torch.topk(values, self.bounds.shape[1], dim=1, largest=False)
        self.bounds[rows] = values
        self.indices[rows] = indices.gather(1, order)


def _refine(
    a: Points, b: Points, best: _Best, k: int, *, others: bool, last_only: bool = False
) -> Neighbours:
    """Exact distances of the candidates that could be among the k nearest.

    A distance lies between its bound and that plus the row's margin, so candidates that are a
    margin above the k-th bound cannot be among the k. With ``last_only`` those a margin below it
    are left out as well (-inf): they are nearer than the k-th whatever they are. A row of which too
    few candidates were kept to be sure is searched in full.
    """
    margin = 2 * (a.slack + b.slack.max())
    kth = best.bounds[:, k - 1]
    possible = best.bounds <= (kth + margin)[:, None]
    certain = (best.bounds < (kth - margin)[:, None]) & last_only
    rows, columns = (possible & ~certain).nonzero(as_tuple=True)
    exact = torch.full(best.bounds.shape, torch.inf, dtype=torch.float64, device=margin.device)
    exact[certain] = -torch.inf
    exact[rows, columns] = _distances(a.original, b.original, rows, best.indices[rows, columns])
    exact, order = exact.sort(dim=1, stable=True)
    found = Neighbours(exact[:, :k].contiguous(), best.indices.gather(1, order)[:, :k])
    complete = best.bounds.shape[1] == len(b.rows) - others
    unsure = possible[:, -1] & (found.distances[:, -1] > 0) & (not complete)
    for row in unsure.nonzero().flatten():
        _search_row(a.original, b.original, int(row), found, others=others)
    return found


def _search_row(a: Tensor, b: Tensor, row: int, found: Neighbours, *, others: bool) -> None:
    distances = (b.double() - a[row].double()).square_().sum(1).sqrt_()
    if others:
        distances[row] = torch.inf
    values, indices = torch.topk(distances, found.distances.shape[1], largest=False)
    found.distances[row], found.indices[row] = values, indices


def _distances(a: Tensor, b: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """|a_i - b_j| for index pairs, from float64 differences."""
    parts = []
    for start in range(0, len(i), CHUNK):
        rows, columns = i[start : start + CHUNK], j[start : start + CHUNK]
        difference = a[rows].double().sub_(b[columns])
        parts.append(torch.linalg.vecdot(difference, difference).sqrt_())
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64, device=a.device)


def _check_k(k: int, available: int, what: str) -> None:
    if not 1 <= k <= available:
        raise HfgenError(f"k: {k} neighbours asked of {what} of {available} samples")
