"""A learned Riemannian metric on a latent space, and shortest paths under a metric.

Chadebec et al. 2020, "Geometry-aware Hamiltonian variational auto-encoder", eq. 9:
G^-1(z) = sum_i M_i exp(-|z - c_i|^2 / T^2) + lambda I. Far from every c_i, G is I / lambda.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """The metric around given centroids.

    Attributes:
        centroids: c_i, [N, D].
        matrices: M_i, positive definite, [N, D, D].
        temperature: T, how far a centroid reaches.
        regularization: lambda.
    """

    centroids: Tensor
    matrices: Tensor
    temperature: float
    regularization: float

    def _weights(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """exp(-|z - c_i|^2 / T^2), [B, N], and its logarithm's gradient in z, [B, N, D]."""
        offset = z[:, None] - self.centroids
        square = offset.square().sum(2) / self.temperature**2
        return torch.exp(-square), -2 / self.temperature**2 * offset

    def inverse(self, z: Tensor) -> Tensor:
        """G^-1 at z [B, D], [B, D, D], in float32 at least, which matrices are inverted in."""
        weights, _ = self._weights(z)
        mixed = torch.einsum("bi,ide->bde", weights, self.matrices)
        eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        exact = torch.promote_types(z.dtype, torch.float32)
        return (mixed + self.regularization * eye).to(exact)

    def at(self, z: Tensor) -> Tensor:
        """G at z [B, D], [B, D, D], in float32 at least."""
        return torch.linalg.inv_ex(self.inverse(z)).inverse

    def root(self, z: Tensor) -> Tensor:
        """The lower triangular L with L L^T = G at z [B, D], [B, D, D]."""
        return _cholesky(self.at(z))

    def log_volume(self, z: Tensor) -> Tensor:
        """ln sqrt(det G^-1) at z [B, D], [B]."""
        return _cholesky(self.inverse(z)).diagonal(dim1=1, dim2=2).log().sum(1)

    def slope(self, z: Tensor, momentum: Tensor | None = None) -> Tensor:
        """Gradient in z of rho^T G^-1 rho / 2 - ln sqrt(det G^-1), [B, D]; of the second term
        alone without a momentum [B, D].
        """
        weights, gradient = self._weights(z)
        metric = self.at(z).to(z.dtype)
        share = -0.5 * torch.einsum("bde,ied->bi", metric, self.matrices)
        if momentum is not None:
            share = share + 0.5 * torch.einsum("bd,ide,be->bi", momentum, self.matrices, momentum)
        return torch.einsum("bi,bid->bd", weights * share, gradient)


def _cholesky(matrix: Tensor) -> Tensor:
    """The lower triangular L with L L^T = ``matrix`` [B, D, D]; NaN where there is none, so that
    a run that diverges ends at its loss and not within a formula.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return factor.masked_fill(failed[:, None, None] > 0, float("nan"))


def geodesics(
    inverse: Callable[[Tensor], Tensor], start: Tensor, end: Tensor, steps: int, rounds: int = 300
) -> Tensor:
    """Shortest paths as points [B, steps, D], both ends included.

    The discrete curve of least energy sum_k dz_k^T G(middle) dz_k / 2 (Shao et al. 2018, section
    3), from the straight line by Adam. Speed is constant along it, as on a geodesic.

    Args:
        inverse: G^-1 at points [N, D], [N, D, D].
        start, end: [B, D].
    """
    share = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device)[:, None]
    line = start[:, None] + share * (end - start)[:, None]
    if steps < 3:
        return line
    with torch.inference_mode(False), torch.enable_grad():
        start, end = line[:, :1].clone(), line[:, -1:].clone()
        inner = line[:, 1:-1].clone().requires_grad_()
        size = float((end - start).norm(dim=2).mean()) / (steps - 1)
        optimizer = torch.optim.Adam([inner], 0.05 * size + 1e-12)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, rounds)
        for _ in range(rounds):
            points = torch.cat([start, inner, end], dim=1)
            change, middle = points.diff(dim=1), (points[:, 1:] + points[:, :-1]) / 2
            solved = torch.linalg.solve(inverse(middle.flatten(0, 1)), change.flatten(0, 1))
            energy = 0.5 * (change.flatten(0, 1) * solved).sum()
            (inner.grad,) = torch.autograd.grad(energy, inner)
            optimizer.step()
            schedule.step()
    return torch.cat([start, inner.detach(), end], dim=1)
