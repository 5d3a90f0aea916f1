"""A density on an interval as a table of cells: its normaliser, its means, its quantiles."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CELLS = 1024


class TabulatedDensity:
    """Densities that are known up to a factor and have no closed distribution function.

    Integrals are sums over the midpoints of equal cells; draws go through the inverse of the
    distribution function, so that their gradient is exact where rejection sampling needs a
    correction (Figurnov et al. 2018, "Implicit reparameterization gradients").

    Args:
        log_density: points [B or 1, CELLS] -> logarithm up to a constant, [B, CELLS].
        start, end: of the interval, [B or 1, 1]. They are not differentiated: beyond them is no
            mass to speak of.
    """

    def __init__(self, log_density: Callable[[Tensor], Tensor], start: Tensor, end: Tensor):
        self.start, self.width = start, (end - start) / CELLS
        steps = torch.arange(CELLS, device=start.device, dtype=start.dtype) + 0.5
        self.points = start + steps * self.width
        values = log_density(self.points)
        self.log_total = torch.logsumexp(values, dim=1) + self.width.log().squeeze(1)
        """ln of the integral of the density as it was given, [B]."""
        self._share = torch.softmax(values, dim=1)

    def mean(self, values: Tensor) -> Tensor:
        """Expectation [B] of a function with ``values`` [B or 1, CELLS] at the points."""
        return (self._share * values).sum(1)

    def quantile(self, share: Tensor) -> Tensor:
        """The point below which lies the ``share`` [..., B], in [0, 1], of the mass."""
        upper = self._share.cumsum(1)
        flat = share.reshape(-1, share.shape[-1]).T.contiguous()  # [B, samples]
        cell = torch.searchsorted(upper.detach(), flat).clamp(max=CELLS - 1)
        mass = self._share.gather(1, cell).clamp(min=1e-12)
        inside = ((flat - upper.gather(1, cell)) / mass + 1).clamp(0, 1)
        return (self.start + (cell + inside) * self.width).T.reshape(share.shape)
