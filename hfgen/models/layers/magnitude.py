"""Layers that keep the magnitude of what goes through them (EDM2: Karras et al. 2024, "Analyzing
and improving the training dynamics of diffusion models", arXiv 2312.02696, appendix B).

Activations of mean square 1 stay so in expectation: nothing grows with depth or with training, and
the learning rate alone says how fast weights turn.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SILU = 0.596
"""Root mean square of silu(N(0, 1)) (eq. 81)."""


def unit(x: Tensor, eps: float = 1e-4) -> Tensor:
    """Mean square 1 over the last dimension (eqs. 47 and 66), in float32."""
    norm = x.float().norm(dim=-1, keepdim=True) * x.shape[-1] ** -0.5
    return (x / (norm + eps)).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """SiLU of mean square 1 for a standard normal input."""
    return F.silu(x) / SILU


def mp_sum(a: Tensor, b: Tensor, share: float = 0.3) -> Tensor:
    """Weighted sum of mean square 1 where both have it and are uncorrelated (eq. 88)."""
    return torch.lerp(a, b, share) * ((1 - share) ** 2 + share**2) ** -0.5


class MPLinear(nn.Module):
    """Rows of length 1, no bias. In training the stored weights are normalised before each use
    ("forced weight normalization", eq. 66), so that they cannot grow.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x: Tensor, gain: float | Tensor = 1.0) -> Tensor:
        if self.training:
            # past autograd's version counter: a network may be called again before its backward
            self.weight.data.copy_(unit(self.weight.data))
        weight = unit(self.weight) * (gain * self.weight.shape[1] ** -0.5)
        return F.linear(x, weight.to(x.dtype))
