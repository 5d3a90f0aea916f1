"""Spectral regularisation of a network's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

ITERATIONS = 8


def spectral_norms(model: nn.Module) -> Tensor:
    """Sum over linear and convolution weights of their largest singular value (Vahdat & Kautz 2020,
    section 3.2: L_SR = lambda sum_i s_i).

    By power iteration from a fixed start, without state; the gradient is u v^T of the vectors
    found. A convolution's weight counts as a matrix of its output channels.
    """
    norms = []
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            norms.append(_largest(module.weight.flatten(1)))
    return torch.stack(norms).sum()


def _largest(weight: Tensor) -> Tensor:
    with torch.no_grad():
        u = weight.new_ones(weight.shape[0]) + weight.abs().sum(1)
        for _ in range(ITERATIONS):
            v = nn.functional.normalize(weight.T @ u, dim=0)
            u = nn.functional.normalize(weight @ v, dim=0)
    return u @ weight @ v
