"""Noise levels drawn in proportion to the size of their loss (Nichol & Dhariwal 2021, eq. 18)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hfgen.objectives.gan_state import StepSum


class LossHistory(nn.Module):
    """Root mean square of the loss in equal parts of a time distribution, over recent steps.

    A step sees only what earlier steps added, so that the split of a batch changes nothing.

    Args:
        parts: how many equal parts the distribution has.
        decay: weight of the earlier sums in each step.
        floor: share of the draws that stays even over all parts.
        minimum: losses that each part must have seen, after decay, before draws are weighted.
    """

    squares: Tensor
    counts: Tensor

    def __init__(
        self, parts: int = 32, decay: float = 0.99, floor: float = 0.01, minimum: float = 10.0
    ):
        super().__init__()
        self.parts, self.decay, self.floor, self.minimum = parts, decay, floor, minimum
        self.sums = StepSum(2 * parts)
        self.register_buffer("squares", torch.zeros(parts, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(parts, dtype=torch.float64))

    @property
    def density(self) -> Tensor:
        """Density of the draws relative to the distribution itself, float64 [parts], mean 1."""
        if bool((self.counts < self.minimum).any()):
            return torch.ones_like(self.counts)
        size = (self.squares / self.counts).sqrt()
        return (1 - self.floor) * size / size.mean() + self.floor

    def warp(self, u: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Shares ``u`` [B], uniform, moved to where the loss is large; their weights [B].

        The weight is one over the density, so that weighted means stay what they were.
        """
        self._fold(step)
        density = self.density.to(u.device)
        ends = torch.cat([density.new_zeros(1), density.cumsum(0) / self.parts])
        part = (torch.searchsorted(ends, u.double(), right=True) - 1).clamp(0, self.parts - 1)
        inside = (u.double() - ends[part]) * self.parts / density[part]
        moved = (part + inside.clamp(0, 1)) / self.parts
        return moved.to(u.dtype).clamp(1e-6, 1 - 1e-6), density[part].reciprocal().to(u.dtype)

    @torch.no_grad()
    def add(self, u: Tensor, loss: Tensor, step: int) -> None:
        """Remember the losses [B] at the shares ``u`` [B]."""
        part = (u * self.parts).long().clamp(0, self.parts - 1)
        where = nn.functional.one_hot(part, self.parts).double()
        self.sums.add(torch.cat([where * loss.double()[:, None] ** 2, where], dim=1), step)

    @torch.no_grad()
    def _fold(self, step: int) -> None:
        taken = self.sums.take(step)
        if taken is None:
            return
        squares, counts = (taken[0] * taken[1]).chunk(2)
        self.squares.mul_(self.decay).add_(squares)
        self.counts.mul_(self.decay).add_(counts)
