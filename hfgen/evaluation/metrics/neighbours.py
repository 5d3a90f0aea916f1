"""Nearest neighbours and balls: the one place where metrics of manifolds compute distances.

Squared distances of centred copies, of float32 or of whole numbers of 16 bits, come from matrix
products. Wherever their rounding error, bounded rigorously, could change a decision (which sample
is the k-th nearest, whether a point is in a ball), direct float64 differences of the original
features decide. So results are exact, do not depend on the block size or the processor, and no
[N, M] matrix is ever held.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hfgen.errors import HfgenError
from hfgen.evaluation.arrays import slices
from hfgen.evaluation.metrics.fixed_point import LARGEST, UNIT, FixedPoint, has_byte_units

BLOCK = 2048
CHUNK = 256
"""Pairs whose differences are taken at once: they stay in the cache."""
SPARE = 16
"""Candidates kept beyond k; rows where that could be too few are searched in full."""
COARSEST = 2e-3
"""Largest slack, as a share of the mean squared length, that leaves few candidates undecided."""


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
    _check_k(k, len(reference), "samples")
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
    count = len(points.original)
    _check_k(k, count - 1, "other samples")
    best = _Best.empty(count, min(k + SPARE, count - 1), points.original.device)
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
    device, (n, m) = a.original.device, (len(a.original), len(b.original))
    in_a, in_b = Members.none(m, n, device), Members.none(n, m, device)
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
    rows, columns = _below(bounds, limits)
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
    """A set of features, with a centred and scaled copy of it to multiply.

    Attributes:
        original: [N, D].
        copy: [N, D], float32 or fixed point.
        base: its squared norms less ``slack``, [N] float32.
        slack: its share of a bound on the error of a squared distance of copies, [N] float32.
        scale: factor of the copy.
    """

    original: Tensor
    copy: Tensor | FixedPoint
    base: Tensor
    slack: Tensor
    scale: float

    @classmethod
    def pair(cls, a: Tensor, b: Tensor) -> tuple[Points, Points]:
        """Both sets [N, D], [M, D] with one centre and one scale."""
        centre = b.mean(0)
        largest = max(_largest(x, centre) for x in (a, b))
        scale = 1 / largest if largest > 0 else 1.0
        sets = [a] if a is b else [a, b]
        if has_byte_units(b):
            copies = [FixedPoint.of(x, centre, scale * LARGEST) for x in sets]
            error = max(copy.error for copy in copies)
            found = [
                cls._fixed(x, copy, error, scale * LARGEST)
                for x, copy in zip(sets, copies, strict=True)
            ]
            if all(points._fine for points in found):
                return found[0], found[-1]
        found = [cls._float(x, centre, scale) for x in sets]
        return found[0], found[-1]

    @classmethod
    def _float(cls, x: Tensor, centre: Tensor, scale: float) -> Points:
        rows = (x - centre).mul_(scale).float()
        squares = torch.linalg.vecdot(rows, rows)
        # A scalar product of D terms errs by at most D u |x||y| (Higham 2002, section 3.1), with
        # |x||y| <= (|x|^2 + |y|^2) / 2, and a norm by D u |x|^2; 16 more units for the copy's own
        # rounding, the sums and the comparison; the last term for subnormal numbers
        slack = squares * ((2 * x.shape[1] + 16) * UNIT) + torch.finfo(torch.float32).tiny
        return cls(x, rows, squares - slack, slack, scale)

    @classmethod
    def _fixed(cls, x: Tensor, copy: FixedPoint, error: float, scale: float) -> Points:
        # The products left out are at most |l||l'| <= (|l|^2 + |l'|^2) / 2. With an error of at
        # most E in every row, |x - y|^2 differs from that of the copies by at most
        # 2 (|q| + |q'|) 2 E + (2 E)^2. 16 units of rounding for the sums and the comparison
        lengths = copy.squares.sqrt()
        slack = copy.low_squares + 4 * error * lengths + 2 * error**2 + 16 * UNIT * copy.squares
        return cls(x, copy, (copy.squares - slack).float(), slack.float(), scale)

    @property
    def _fine(self) -> bool:
        """Whether outliers have left enough steps for the others."""
        return bool(self.slack.max() <= COARSEST * (self.base + self.slack).mean())

    def bounds(self, i: slice, other: Points, j: slice) -> Tensor:
        """Lower bounds of the scaled squared distances of rows ``i`` to rows ``j`` of ``other``."""
        if isinstance(self.copy, FixedPoint):
            assert isinstance(other.copy, FixedPoint)
            bounds = self.copy.products(i, other.copy, j, -2.0).add_(other.base[j])
        else:
            assert isinstance(other.copy, Tensor)
            bounds = torch.addmm(other.base[j], self.copy[i], other.copy[j].T, alpha=-2)
        return bounds.add_(self.base[i, None])


def _largest(x: Tensor, centre: Tensor) -> float:
    return max(float((x.amax(0) - centre).amax()), float((centre - x.amin(0)).amax()))


def _blocks(a: Points, b: Points, *, upper: bool = False) -> Iterator[tuple[slice, slice, Tensor]]:
    """Row slices and ``Points.bounds`` of them; with ``upper``, only j >= i, the diagonal first."""
    rows, columns = (slices(len(points.original), BLOCK) for points in (a, b))
    pairs = [(i, j) for i in rows for j in columns if not upper or j.start > i.start]
    for i, j in [(i, i) for i in rows if upper] + pairs:
        yield i, j, a.bounds(i, b, j)


def _below(bounds: Tensor, limits: Tensor, *, strict: bool = False) -> tuple[Tensor, Tensor]:
    """Row and column of the entries of a block that are at most (below) their limits."""
    if bounds.is_cuda:
        mask = bounds < limits if strict else bounds <= limits
        rows, columns = torch.nonzero(mask, as_tuple=True)
        return rows, columns
    # on the CPU, numpy finds few among many ten times as fast
    compare = np.less if strict else np.less_equal
    found = np.flatnonzero(compare(bounds.numpy(), limits.numpy()))
    rows, columns = np.divmod(found, bounds.shape[1])
    return torch.from_numpy(rows), torch.from_numpy(columns)


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
        limits = self.bounds[rows, -1]
        if bool(limits.isinf().any()):
            keep = min(self.bounds.shape[1], bounds.shape[1])
            values, indices = torch.topk(bounds, keep, dim=1, largest=False, sorted=False)
        else:
            values, indices = _few(bounds, limits)
        values = torch.cat([self.bounds[rows], values], dim=1)
        indices = torch.cat([self.indices[rows], indices + offset], dim=1)
        values, order = torch.topk(values, self.bounds.shape[1], dim=1, largest=False)
        self.bounds[rows] = values
        self.indices[rows] = indices.gather(1, order)


def _few(bounds: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
    """Entries of each row [R, C] below its limit and their columns, [R, most] with inf beyond."""
    if bounds.is_contiguous():
        rows, columns = _below(bounds, limits[:, None], strict=True)
    else:  # a transposed block, whose memory is read in its own order
        columns, rows = _below(bounds.T, limits, strict=True)
        rows, order = rows.sort(stable=True)
        columns = columns[order]
    counts = torch.bincount(rows, minlength=len(bounds))
    place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    shape = (len(bounds), int(counts.max()))
    values = torch.full(shape, torch.inf, device=bounds.device)
    indices = torch.zeros(shape, dtype=torch.int64, device=bounds.device)
    values[rows, place] = bounds[rows, columns]
    indices[rows, place] = columns
    return values, indices


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
    complete = best.bounds.shape[1] == len(b.original) - others
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
        raise HfgenError(f"k: {k} neighbours asked, but there are {available} {what}")
