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
    a, b = _Coarse.pair(queries, reference)
    best = _Best.empty(len(queries), min(k + SPARE, len(reference)), queries.device)
    for i, j, distances in _blocks(a, b):
        best.offer(i, distances, j.start)
    return _refine(a, b, best, k, others=False)


def nearest_others(x: Tensor, k: int) -> Neighbours:
    """The ``k`` nearest *other* rows for each row of ``x`` [N, D]; no distance is made twice."""
    _check_k(k, len(x) - 1, "the others in a set")
    a, _ = _Coarse.pair(x, x)
    best = _Best.empty(len(x), min(k + SPARE, len(x) - 1), x.device)
    for i, j, distances in _blocks(a, a, upper=True):
        if i.start == j.start:
            distances.fill_diagonal_(torch.inf)
        else:
            best.offer(j, distances.T, i.start)
        best.offer(i, distances, j.start)
    return _refine(a, a, best, k, others=True)


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
    a: Tensor, b: Tensor, radii_a: Tensor | None, radii_b: Tensor | None, *, closed: bool
) -> tuple[Members, Members]:
    """Which rows of ``b`` are in the balls around rows of ``a``, and the reverse, from one pass
    over the distances.

    Args:
        a, b: [N, D], [M, D].
        radii_a, radii_b: [N], [M] float64; None leaves that direction out (its counts stay zero).
        closed: ``<=`` rather than ``<``.
    """
    ca, cb = _Coarse.pair(a, b)
    in_a = Members.none(len(b), len(a), a.device)
    in_b = Members.none(len(a), len(b), a.device)
    for i, j, distances in _blocks(ca, cb):
        if radii_a is not None:
            rows, columns = _inside(ca, cb, i, j, distances, radii_a[i, None], closed=closed)
            in_a.add(columns, rows)
        if radii_b is not None:
            rows, columns = _inside(ca, cb, i, j, distances, radii_b[j], closed=closed)
            in_b.add(rows, columns)
    return in_a, in_b


def _inside(
    a: _Coarse, b: _Coarse, i: slice, j: slice, coarse: Tensor, radii: Tensor, *, closed: bool
) -> tuple[Tensor, Tensor]:
    """Index pairs of one block that are within ``radii`` (broadcast over the block)."""
    limits = (radii * a.scale).square().float()
    slack = a.slack[i, None] + b.slack[j]
    rows, columns = torch.nonzero(coarse - slack <= limits, as_tuple=True)
    limits = limits.expand_as(coarse)[rows, columns]
    unsure = coarse[rows, columns] + slack[rows, columns] >= limits
    exact_limits = radii.expand_as(coarse)[rows[unsure], columns[unsure]]
    rows, columns = rows + i.start, columns + j.start
    exact = _distances(a.original, b.original, rows[unsure], columns[unsure])
    inside = torch.ones_like(unsure)
    inside[unsure] = exact <= exact_limits if closed else exact < exact_limits
    return rows[inside], columns[inside]


@dataclass(frozen=True)
class _Coarse:
    """A centred and scaled float32 copy, its squared norms, and its share of a bound on a squared
    distance's error.
    """

    original: Tensor
    rows: Tensor
    squares: Tensor
    slack: Tensor
    scale: float

    @classmethod
    def pair(cls, a: Tensor, b: Tensor) -> tuple[_Coarse, _Coarse]:
        centre = b.double().mean(0)
        spread = float((b.double() - centre).square().mean().sqrt())
        scale = 1 / spread if spread > 0 else 1.0
        first = cls._of(a, centre, scale)
        return first, first if a is b else cls._of(b, centre, scale)

    @classmethod
    def _of(cls, x: Tensor, centre: Tensor, scale: float) -> _Coarse:
        rows = ((x.double() - centre) * scale).float()
        squares = rows.double().square().sum(1)
        # |fl(x'y) - x'y| <= D u |x||y| (Higham 2002, section 3.1), and |x||y| <= (|x|^2 + |y|^2) /
        # 2; 8 more units for the cast, the sums and the comparison
        unit = torch.finfo(torch.float32).eps / 2
        slack = squares * ((x.shape[1] + 8) * unit) + torch.finfo(torch.float32).tiny
        return cls(x, rows, squares.float(), slack.float(), scale)


def _blocks(
    a: _Coarse, b: _Coarse, *, upper: bool = False
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Row slices and the coarse squared distances between them; with ``upper``, only j >= i."""
    for i in range(0, len(a.rows), BLOCK):
        for j in range(i if upper else 0, len(b.rows), BLOCK):
            rows, columns = slice(i, i + BLOCK), slice(j, j + BLOCK)
            product = torch.addmm(b.squares[columns], a.rows[rows], b.rows[columns].T, alpha=-2)
            yield rows, columns, product.add_(a.squares[rows, None])


@dataclass(frozen=True)
class _Best:
    """Running smallest coarse squared distances per row, ascending."""

    distances: Tensor
    indices: Tensor

    @classmethod
    def empty(cls, n: int, keep: int, device: torch.device) -> _Best:
        distances = torch.full((n, keep), torch.inf, device=device)
        return cls(distances, torch.zeros(n, keep, dtype=torch.int64, device=device))

    def offer(self, rows: slice, distances: Tensor, offset: int) -> None:
        """Merge a block [rows, M'] whose columns are the candidates from ``offset`` on."""
        keep = min(self.distances.shape[1], distances.shape[1])
        values, indices = torch.topk(distances, keep, dim=1, largest=False, sorted=False)
        values = torch.cat([self.distances[rows], values], dim=1)
        indices = torch.cat([self.indices[rows], indices + offset], dim=1)
        values, order = torch.topk(values, self.distances.shape[1], dim=1, largest=False)
        self.distances[rows] = values
        self.indices[rows] = indices.gather(1, order)


def _refine(a: _Coarse, b: _Coarse, best: _Best, k: int, *, others: bool) -> Neighbours:
    """Exact distances of all candidates that could be among the k nearest; rows with too few
    candidates in full.
    """
    margin = 2 * (a.slack + b.slack.max())
    possible = best.distances <= (best.distances[:, k - 1] + margin)[:, None]
    rows, columns = possible.nonzero(as_tuple=True)
    exact = torch.full(best.distances.shape, torch.inf, dtype=torch.float64, device=margin.device)
    exact[rows, columns] = _distances(a.original, b.original, rows, best.indices[rows, columns])
    exact, order = exact.sort(dim=1, stable=True)
    found = Neighbours(exact[:, :k].contiguous(), best.indices.gather(1, order)[:, :k])
    complete = best.distances.shape[1] == len(b.rows) - others
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
    parts = [
        (a[i[s : s + BLOCK]].double() - b[j[s : s + BLOCK]].double()).square_().sum(1).sqrt_()
        for s in range(0, len(i), BLOCK)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64, device=a.device)


def _check_k(k: int, available: int, what: str) -> None:
    if not 1 <= k <= available:
        raise HfgenError(f"k: {k} neighbours asked of {what} of {available} samples")
