"""Normalising flows on flat latents: masked affine (MAF and IAF), planar and radial steps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskedLinear(nn.Linear):
    """A linear layer that lets output j see input i where ``mask[j, i]``."""

    mask: Tensor

    def __init__(self, mask: Tensor):
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.bool(), persistent=False)  # of no dtype to keep

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight * self.mask, self.bias)


class MADE(nn.Module):
    """Two outputs per dimension, each a function of the dimensions before it (Germain et al. 2015).

    Args:
        dim: D.
        hidden: width of the two hidden layers.
        context: length of a further input that every output may see; 0 for none.
    """

    def __init__(self, dim: int, hidden: int, context: int = 0):
        super().__init__()
        inputs = torch.arange(1, dim + 1)
        middle = torch.arange(hidden) % max(dim - 1, 1) + 1
        self.first = MaskedLinear(middle[:, None] >= inputs[None])
        self.second = MaskedLinear(middle[:, None] >= middle[None])
        self.last = MaskedLinear((inputs[:, None] > middle[None]).repeat(2, 1))
        self.context = nn.Linear(context, hidden, bias=False) if context else None
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h = self.first(x)
        if self.context is not None:
            h = h + self.context(context)
        first, second = self.last(F.silu(self.second(F.silu(h)))).chunk(2, dim=-1)
        return first, second


class MaskedAffine(nn.Module):
    """y_i = exp(s_i) x_i + m_i, with s_i and m_i functions of x_1 .. x_{i-1} and the context.

    ``forward`` is parallel, ``inverse`` takes D passes. With noise as x it is a step of the inverse
    autoregressive flow (Kingma et al. 2016); with data as x, of the masked autoregressive flow
    (Papamakarios et al. 2017). |s| stays below 3.
    """

    def __init__(self, dim: int, hidden: int, context: int = 0):
        super().__init__()
        self.net = MADE(dim, hidden, context)

    def _coefficients(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        shift, raw = self.net(x, context)
        return shift, 3 * torch.tanh(raw / 3)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [..., D] -> y [..., D] and ln |det dy/dx| [...]."""
        shift, log_scale = self._coefficients(x, context)
        return torch.exp(log_scale) * x + shift, log_scale.sum(-1)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y [..., D] -> x [..., D] and ln |det dx/dy| [...]."""
        x = torch.zeros_like(y)
        log_scale = torch.zeros_like(y)
        for i in range(y.shape[-1]):
            shift, log_scale = self._coefficients(x, context)
            solved = (y[..., i] - shift[..., i]) * torch.exp(-log_scale[..., i])
            x = torch.cat([x[..., :i], solved.unsqueeze(-1), x[..., i + 1 :]], dim=-1)
        return x, -self._coefficients(x, context)[1].sum(-1)


class MaskedAffineFlow(nn.Module):
    """Masked affine steps, the order of the dimensions reversed between them."""

    def __init__(self, dim: int, steps: int, hidden: int, context: int = 0):
        super().__init__()
        self.steps = nn.ModuleList([MaskedAffine(dim, hidden, context) for _ in range(steps)])

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = torch.zeros(x.shape[:-1], dtype=x.dtype, device=x.device)
        for step in self.steps:
            x, log_det = step(x.flip(-1), context)
            total = total + log_det
        return x, total

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = torch.zeros(y.shape[:-1], dtype=y.dtype, device=y.device)
        for step in reversed(self.steps):
            y, log_det = step.inverse(y, context)  # type: ignore[operator]
            y, total = y.flip(-1), total + log_det
        return y, total


class InverseFlow(nn.Module):
    """A flow the other way round: with masked affine steps, noise to latents as MAF draws."""

    def __init__(self, flow: MaskedAffineFlow):
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.flow.inverse(x, context)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.flow(y, context)


class PlanarFlow(nn.Module):
    """z + u tanh(w^T z + b), u, w, b from the context (Rezende & Mohamed 2015, eq. 10-12).

    u is moved so that w^T u >= -1, which keeps the step invertible (their appendix A.1).
    """

    def __init__(self, dim: int, steps: int, context: int):
        super().__init__()
        self.dim, self.count = dim, steps
        self.amortised = nn.Linear(context, steps * (2 * dim + 1))
        nn.init.normal_(self.amortised.weight, std=0.01)
        nn.init.normal_(self.amortised.bias, std=0.1)

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros(z.shape[:-1], dtype=z.dtype, device=z.device)
        values = self.amortised(context).unflatten(-1, (self.count, 2 * self.dim + 1))
        for step in values.unbind(-2):
            u, w, b = step.split([self.dim, self.dim, 1], dim=-1)
            inner = (w * u).sum(-1, keepdim=True)
            norm = w.square().sum(-1, keepdim=True) + 1e-6
            u = u + (F.softplus(inner) - 1 - inner) * w / norm
            h = torch.tanh((w * z).sum(-1, keepdim=True) + b)
            slope = (1 - h.square()) * (w * u).sum(-1, keepdim=True)
            z, total = z + u * h, total + torch.log1p(slope.clamp(min=-1 + 1e-6)).squeeze(-1)
        return z, total


class RadialFlow(nn.Module):
    """z + beta (z - z0) / (alpha + |z - z0|) (Rezende & Mohamed 2015, eq. 14), from the context.

    beta >= -alpha keeps the step invertible (their appendix A.2).
    """

    def __init__(self, dim: int, steps: int, context: int):
        super().__init__()
        self.dim, self.count = dim, steps
        self.amortised = nn.Linear(context, steps * (dim + 2))
        nn.init.normal_(self.amortised.weight, std=0.01)
        nn.init.normal_(self.amortised.bias, std=0.1)

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros(z.shape[:-1], dtype=z.dtype, device=z.device)
        values = self.amortised(context).unflatten(-1, (self.count, self.dim + 2))
        for step in values.unbind(-2):
            centre, raw_alpha, raw_beta = step.split([self.dim, 1, 1], dim=-1)
            alpha = F.softplus(raw_alpha) + 1e-3
            beta = F.softplus(raw_beta) - alpha
            offset = z - centre
            r = (offset.square().sum(-1, keepdim=True) + 1e-12).sqrt()
            h = 1 / (alpha + r)
            # det = (1 + beta h)^(D-1) (1 + beta h + beta h' r), with h' = -h^2
            line = 1 + beta * h
            log_det = (self.dim - 1) * line.log() + (line - beta * h.square() * r).log()
            z, total = z + beta * h * offset, total + log_det.squeeze(-1)
        return z, total
