"""Which noise goes with which image of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


class Coupling(ABC):
    """Pairs images with noise; concrete ones are frozen dataclasses."""

    @abstractmethod
    def pair(self, images: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
        """``noise`` [B, ...] in the order in which it goes with ``images`` [B, ...]."""


@dataclass(frozen=True, kw_only=True)
class IndependentCoupling(Coupling):
    """As drawn."""

    def pair(self, images: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
        return noise


@dataclass(frozen=True, kw_only=True)
class OptimalTransportCoupling(Coupling):
    """OT-CFM (Tong et al. 2023): the permutation that minimises sum |x_i - n_j|^2.

    Without replacement, so noise stays exactly normal; within each class where there are labels,
    so that it stays independent of them. Couples the rows of a micro-batch: the same recipe with
    another split pairs differently.
    """

    def pair(self, images: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
        groups = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels.cpu()
        order = torch.arange(len(images))
        for group in groups.unique():
            rows = (groups == group).nonzero().flatten()
            order[rows] = rows[_assign(images[rows], noise[rows])]
        return noise[order.to(noise.device)]


def _assign(images: Tensor, noise: Tensor) -> Tensor:
    cost = torch.cdist(images.flatten(1).float(), noise.flatten(1).float()).square()
    return torch.from_numpy(linear_sum_assignment(cost.cpu().numpy())[1])


COUPLINGS: dict[str, type[Coupling]] = {
    "independent": IndependentCoupling,
    "optimal_transport": OptimalTransportCoupling,
}
