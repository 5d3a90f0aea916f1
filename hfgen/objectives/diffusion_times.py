"""Which noise levels a denoiser trains on."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from hfgen.denoising import ProbabilityPath
from hfgen.rng import Rng


@dataclass(frozen=True, kw_only=True)
class TimeSampler(ABC):
    """A distribution of noise levels, by its quantile function. Concrete ones are frozen.

    Args:
        stratified: row i of a global batch of N draws from the i-th of N equal parts of the
            distribution, over all processes and micro-batches (as k-diffusion does): every batch
            has the same mix of noise levels.
    """

    stratified: bool = False

    @abstractmethod
    def at(self, u: Tensor, path: ProbabilityPath) -> Tensor:
        """Times in the unit of ``path`` below which the share ``u`` in (0, 1) of draws lies."""

    def shares(self, rng: Rng, batch: int, total: int = 0) -> Tensor:
        """Shares u [batch], uniform in (0, 1): the draw named ``t``.

        Args:
            total: rows of the global batch; needed for strata.
        """
        u = rng.rand("t", (batch,))
        if self.stratified:
            row = torch.arange(rng.start, rng.start + batch, device=u.device)
            u = (row % max(total, batch) + u) / max(total, batch)
        return u.clamp(1e-6, 1 - 1e-6)

    def sample(self, rng: Rng, batch: int, path: ProbabilityPath, total: int = 0) -> Tensor:
        """Times [batch] in the unit of ``path``."""
        return self.at(self.shares(rng, batch, total), path)


@dataclass(frozen=True, kw_only=True)
class UniformTime(TimeSampler):
    """Uniform over the path: over the T steps of a chain (Ho et al. 2020, algorithm 1), or time."""

    def at(self, u: Tensor, path: ProbabilityPath) -> Tensor:
        return path.at(u)


@dataclass(frozen=True, kw_only=True)
class LogNormalTime(TimeSampler):
    """ln(sigma / alpha) ~ N(mean, std^2) (Karras et al. 2022, table 1), on any path.

    On the linear path sigma / alpha = t / (1 - t), so this is the logit-normal time of SD3 (Esser
    et al. 2024, eq. 19).
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ValueError(f"std of the log-normal time must be positive, got {self.std}")

    def at(self, u: Tensor, path: ProbabilityPath) -> Tensor:
        ratio = torch.exp(self.mean + self.std * torch.special.ndtri(u))
        return path.snap(path.at_ratio(ratio))


@dataclass(frozen=True, kw_only=True)
class LogitNormalTime(TimeSampler):
    """The share u of the path has logit(u) ~ N(mean, std^2) (Esser et al. 2024, eq. 19)."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ValueError(f"std of the logit-normal time must be positive, got {self.std}")

    def at(self, u: Tensor, path: ProbabilityPath) -> Tensor:
        return path.at(torch.sigmoid(self.mean + self.std * torch.special.ndtri(u)))


@dataclass(frozen=True, kw_only=True)
class ModeTime(TimeSampler):
    """Mode sampling with heavy tails: 1 - u - s (cos^2(pi u / 2) - 1 + u) (Esser 2024, eq. 20).

    Args:
        scale: s in [-1, 2 / (pi - 2)]; positive favours the middle of the path, negative its ends,
        0 is uniform.
    """

    scale: float = 1.29

    def __post_init__(self) -> None:
        if not -1 <= self.scale <= 2 / (math.pi - 2):
            raise ValueError(f"scale of the mode time must be in [-1, 1.7519], got {self.scale}")

    def at(self, u: Tensor, path: ProbabilityPath) -> Tensor:
        u = 1 - u  # eq. 20 falls with u
        return path.at(1 - u - self.scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u))


TIME_SAMPLERS: dict[str, type[TimeSampler]] = {
    "uniform": UniformTime,
    "log_normal": LogNormalTime,
    "logit_normal": LogitNormalTime,
    "mode": ModeTime,
}
