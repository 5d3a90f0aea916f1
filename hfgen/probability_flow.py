"""Every path is one path: sampling, inversion and likelihood in trigonometric coordinates.

With ``tan(phi) = sigma / alpha`` and ``z = x_t / sqrt(alpha^2 + sigma^2)``, any path becomes
``z = cos(phi) x + sin(phi) n``, and its probability-flow ODE (Song et al. 2021, eq. 13) becomes

    dz/dphi = cos(phi) n - sin(phi) x,

finite everywhere, where x and n are the image and the noise that the network sees in z
(Salimans & Ho 2022, appendix D; Lu & Song 2024, section 3). This file needs only torch and
diffusers, through ``denoising``: the export of a pipeline inlines it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hfgen.denoising import Parameterisation

Network = Callable[[Tensor, Tensor], Tensor]
"""(input [B, C, H, W], time [B]), both as ``ProbabilityPath.model_input`` gives them, -> output."""

Field = Callable[[Tensor, Tensor], Tensor]
"""dz/dphi of (z, phi [])."""


@dataclass(frozen=True)
class ProbabilityFlow:
    """The ODE between images (phi near 0) and noise (phi near pi / 2) of a trained network."""

    param: Parameterisation
    network: Network

    @property
    def ends(self) -> tuple[float, float]:
        """phi of the cleanest and of the noisiest level that the network knows."""
        low, high = self.param.path.ratios
        return math.atan(low), math.atan(high)

    def split(self, z: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """The image and the noise that the network sees in ``z`` [B, C, H, W] at ``phi`` []."""
        path = self.param.path
        t = path.at_ratio(phi.tan()).to(z).expand(len(z))
        alpha, sigma = path.alpha_sigma(t[:1])
        x_t = z * torch.hypot(alpha, sigma)
        output = self.network(*path.model_input(x_t, t))[:, : z.shape[1]]  # less a variance
        image = self.param.denoised(output, x_t, t)
        return image, self.param.noise(image, x_t, t)

    def velocity(self, z: Tensor, phi: Tensor) -> Tensor:
        """dz/dphi."""
        image, noise = self.split(z, phi)
        return phi.cos() * noise - phi.sin() * image

    def grid(self, steps: int, rho: float = 3.0) -> Tensor:
        """``steps`` + 1 values of phi from clean to noise, phi^(1 / rho) evenly spaced; float64.

        Karras et al. 2022, eq. 5, with phi for sigma: fine where images keep their detail.
        """
        if steps < 1:
            raise ValueError(f"steps={steps}: must be at least 1")
        low, high = (end ** (1 / rho) for end in self.ends)
        return torch.linspace(low, high, steps + 1, dtype=torch.float64).pow(rho)


def rotate(image: Tensor, noise: Tensor, phi: Tensor) -> Tensor:
    """z of an image and a noise: one DDIM step (Song et al. 2021, eq. 12 with sigma = 0)."""
    return phi.cos() * image + phi.sin() * noise


def ancestral(image: Tensor, z: Tensor, start: Tensor, end: Tensor, fresh: Tensor) -> Tensor:
    """A draw of z at ``end`` < ``start`` given z there and the image (Ho et al. 2020, eq. 6).

    Args:
        fresh: standard normal numbers, as ``z``.
    """
    noise = (z - start.cos() * image) / start.sin()
    std = end.sin() / start.sin() * (1 - (start.cos() / end.cos()) ** 2).clamp(min=0).sqrt()
    kept = (end.sin() ** 2 - std**2).clamp(min=0).sqrt()
    return end.cos() * image + kept * noise + std * fresh


def diffuse(z: Tensor, start: Tensor, end: Tensor, fresh: Tensor) -> Tensor:
    """A draw of z at ``end`` > ``start`` given z at ``start``: forward diffusion (eq. 2 there)."""
    scale = end.cos() / start.cos()
    std = (end.sin() ** 2 - (scale * start.sin()) ** 2).clamp(min=0).sqrt()
    return scale * z + std * fresh


def heun(field: Field, z: Tensor, grid: Tensor) -> Tensor:
    """Heun's second-order method over ``grid`` [N + 1], in either direction; 2 N evaluations."""
    for start, end in zip(grid[:-1], grid[1:], strict=True):
        step = (end - start).to(z)
        first = field(z, start)
        second = field(z + step * first, end)
        z = z + step * (first + second) / 2
    return z


# Dormand & Prince 1980, table 2: nodes, stages, fifth-order weights, error weights (b - b*).
_NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def rk45(
    field: Field, z: Tensor, start: float, end: float, rtol: float = 1e-4, atol: float = 1e-4
) -> tuple[Tensor, int]:
    """Adaptive Runge-Kutta 5(4) of Dormand & Prince 1980 from ``start`` to ``end``.

    One step size for the whole batch; the error is the largest root mean square over its rows.

    Returns:
        z at ``end``, and the number of evaluations of ``field``.
    Raises:
        ValueError: tolerances that are not positive; a solution that is not finite.
    """
    if rtol <= 0 or atol <= 0:
        raise ValueError(f"rtol={rtol}, atol={atol}: must be positive")
    t, step = start, (end - start) / 20
    first, evaluations = field(z, torch.tensor(t, dtype=torch.float64)), 1
    while abs(end - t) > 1e-12:
        step = math.copysign(min(abs(step), abs(end - t)), end - start)
        new, last, error = _dormand_prince(field, z, t, step, first)
        evaluations += 6
        scale = atol + rtol * torch.maximum(z.abs(), new.abs())
        ratio = (error / scale).square().flatten(1).mean(1).sqrt().max().item()
        if not math.isfinite(ratio):
            raise ValueError(f"rk45: the solution is not finite at phi = {t:.4f}")
        if ratio <= 1:
            t, z, first = t + step, new, last
        step *= min(5.0, max(0.2, 0.9 * max(ratio, 1e-10) ** -0.2))
    return z, evaluations


def _dormand_prince(
    field: Field, z: Tensor, t: float, step: float, first: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One step: z at its end, the field there (the next step's first stage), an error estimate."""
    slopes = [first]
    stage = z
    for node, weights in zip(_NODES[1:], _STAGES[1:], strict=True):
        stage = z + step * _combine(weights, slopes)
        slopes.append(field(stage, torch.tensor(t + node * step, dtype=torch.float64)))
    return stage, slopes[-1], step * _combine(_ERROR, slopes)


def _combine(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    total = weights[0] * slopes[0]
    for weight, slope in zip(weights[1:], slopes[1:], strict=True):
        total = total + weight * slope
    return total
