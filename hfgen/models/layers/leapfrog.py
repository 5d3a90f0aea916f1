"""What the Hamiltonian flows of latents share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput
from torch import Tensor


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
