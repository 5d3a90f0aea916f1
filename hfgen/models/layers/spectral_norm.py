"""Spectral normalisation: layers divided by their largest singular value (Miyato et al. 2018)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SpectralNorm(nn.Module):
    """sigma(W) by power iteration (appendix A, algorithm 1), one iteration for each new W in
    training.

    The weight is read as a matrix [out, rest]. One iteration per *weight*, not per call: a stamp of
    the weight tells whether it has changed, so that splitting a batch over several calls changes
    nothing.
    """

    u: Tensor
    stamp: Tensor

    def __init__(self, outputs: int):
        super().__init__()
        self.register_buffer("u", F.normalize(torch.randn(outputs), dim=0))
        self.register_buffer("stamp", torch.full((), torch.nan))

    def forward(self, weight: Tensor) -> Tensor:
        """``weight`` / sigma, differentiable with the singular vectors held fixed (equation 11)."""
        with torch.autocast(weight.device.type, enabled=False):  # a power iteration wants digits
            return weight / self._sigma(weight.flatten(1))

    def _sigma(self, matrix: Tensor) -> Tensor:
        with torch.no_grad():
            if self.training:
                stamp = matrix.sum()
                new = F.normalize(matrix @ F.normalize(matrix.mT @ self.u, dim=0), dim=0)
                self.u.copy_(torch.where(stamp == self.stamp, self.u, new))
                self.stamp.copy_(stamp)
            u = self.u.clone()  # the graph keeps this one; the buffer may change before backward
            v = F.normalize(matrix.mT @ u, dim=0)
        return torch.dot(u, matrix @ v)


class SNConv2d(nn.Conv2d):
    """A convolution of spectral norm 1, read as a matrix [out, in * k * k]."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, **options):
        super().__init__(inputs, outputs, kernel_size, **options)
        self.spectral = SpectralNorm(outputs)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.spectral(self.weight), self.bias)


class SNLinear(nn.Linear):
    """A linear map of spectral norm 1."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True):
        super().__init__(inputs, outputs, bias)
        self.spectral = SpectralNorm(outputs)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.spectral(self.weight), self.bias)


class SNEmbedding(nn.Embedding):
    """An embedding whose table has spectral norm 1."""

    def __init__(self, rows: int, size: int):
        super().__init__(rows, size)
        self.spectral = SpectralNorm(rows)

    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(input, self.spectral(self.weight))


def effective_weight(layer: nn.Conv2d) -> Tensor:
    """The kernel that a convolution convolves with, spectral normalisation included."""
    # by its part, not its class: diffusers runs an exported file once for each component, and every
    # run makes the classes anew
    spectral = getattr(layer, "spectral", None)
    return layer.weight if spectral is None else spectral(layer.weight)
