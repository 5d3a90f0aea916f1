"""What the Hamiltonian flows of latents share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput
from torch import Tensor, nn


@dataclass
class LeapfrogOutput(BaseOutput):
    """Attributes:
    latents: z_K, [B, D].
    momentum: rho_K, [B, D].
    """

    latents: Tensor
    momentum: Tensor


def tempering(beta: Tensor, count: int) -> Tensor:
    """Factors sqrt(beta_(k-1) / beta_k) of the momentum after each of ``count`` steps, [count]
    (Caterini et al. 2018, eq. 9: 1 / sqrt(beta_k) falls quadratically to 1).
    """
    k = torch.arange(count + 1, device=beta.device, dtype=beta.dtype)
    root = 1 / ((1 - beta.rsqrt()) * (k / count) ** 2 + beta.rsqrt())
    return root[:-1] / root[1:]


class TemperedLeapfrog(nn.Module):
    """What such a flow learns: step sizes below a maximum, and beta_0 in (0, 1)."""

    config: Any
    step_logit: nn.Parameter
    temperature_logit: nn.Parameter

    def learn(
        self, shape: tuple[int, ...], step_size: float, max_step_size: float, temperature: float
    ) -> None:
        """Add the parameters: step sizes of ``shape`` and beta_0 at these values.

        Raises:
            ValueError: a value out of its range.
        """
        if not 0 < step_size < max_step_size or not 0 < temperature < 1:
            raise ValueError(
                f"{type(self).__name__}: needs 0 < step_size < max_step_size and temperature in "
                f"(0, 1), got {step_size}, {max_step_size} and {temperature}"
            )
        self.step_logit = nn.Parameter(torch.logit(torch.full(shape, step_size / max_step_size)))
        self.temperature_logit = nn.Parameter(torch.logit(torch.tensor(temperature)))

    @property
    def step(self) -> Tensor:
        """Step sizes, of the shape that was asked for."""
        return self.config["max_step_size"] * torch.sigmoid(self.step_logit)

    @property
    def beta(self) -> Tensor:
        """beta_0, a scalar."""
        return torch.sigmoid(self.temperature_logit)
