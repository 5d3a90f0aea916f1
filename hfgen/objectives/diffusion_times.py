"""Which noise levels a denoiser trains on."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from hfgen.denoising import ProbabilityPath
from hfgen.rng import Rng


class TimeSampler(ABC):
    """Draws one time of ``path`` per image. Concrete ones are frozen dataclasses."""

    @abstractmethod
    def sample(self, rng: Rng, batch: int, path: ProbabilityPath) -> Tensor:
        """Times [batch] in the unit of ``path``, with the draw named ``t``."""


@dataclass(frozen=True, kw_only=True)
class UniformTime(TimeSampler):
    """Uniform over the path: over the T steps of a chain (Ho et al. 2020, algorithm 1), or time."""

    def sample(self, rng: Rng, batch: int, path: ProbabilityPath) -> Tensor:
        return path.at(rng.rand("t", (batch,)))


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

    def sample(self, rng: Rng, batch: int, path: ProbabilityPath) -> Tensor:
        ratio = torch.exp(self.mean + self.std * rng.randn("t", (batch,)))
        return path.snap(path.at_ratio(ratio))


@dataclass(frozen=True, kw_only=True)
class LogitNormalTime(TimeSampler):
    """The share u of the path has logit(u) ~ N(mean, std^2) (Esser et al. 2024, eq. 19)."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ValueError(f"std of the logit-normal time must be positive, got {self.std}")

    def sample(self, rng: Rng, batch: int, path: ProbabilityPath) -> Tensor:
        return path.at(torch.sigmoid(self.mean + self.std * rng.randn("t", (batch,))))


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

    def sample(self, rng: Rng, batch: int, path: ProbabilityPath) -> Tensor:
        u = rng.rand("t", (batch,))
        return path.at(1 - u - self.scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u))


TIME_SAMPLERS: dict[str, type[TimeSampler]] = {
    "uniform": UniformTime,
    "log_normal": LogNormalTime,
    "logit_normal": LogitNormalTime,
    "mode": ModeTime,
}
