"""Annealed importance sampling: ln of a normaliser by chains from the prior to the posterior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hfgen.rng import Rng

ACCEPTANCE = 0.65
"""Share of accepted proposals that step sizes are tuned to (Neal 2011, section 5.4.4)."""
FIRST_STEP, RATE = 0.1, 0.2
"""Where tuning starts, and how fast ln(step size) follows the acceptance."""


def sigmoid_schedule(count: int, slope: float = 4.0) -> Tensor:
    """0 = beta_0 < ... < beta_count = 1, dense at both ends (Grosse et al. 2015, "Sandwiching the
    marginal likelihood").
    """
    raw = torch.sigmoid(slope * torch.linspace(-1, 1, count + 1, dtype=torch.float64))
    return (raw - raw[0]) / (raw[-1] - raw[0])


@dataclass(frozen=True, kw_only=True)
class Path:
    """f_beta(z) = p(z) p(x | z)^beta, for one x per row (Wu et al. 2017, section 2.2).

    Attributes:
        log_prior, log_likelihood: latents [N, *latent] -> nats [N], differentiable.
        num_temperatures: distributions after the prior, the posterior being the last.
        num_leapfrog: leapfrog steps of one Hamiltonian transition.
    """

    log_prior: Callable[[Tensor], Tensor]
    log_likelihood: Callable[[Tensor], Tensor]
    num_temperatures: int
    num_leapfrog: int

    def slope(self, z: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
        """ln f_beta [N], ln p(x | z) [N] and the gradient of the first, like z."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            likelihood = self.log_likelihood(z)
            value = self.log_prior(z) + beta * likelihood
            (gradient,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), likelihood.detach(), gradient

    def move(self, z: Tensor, beta: float, step: Tensor, rng: Rng) -> tuple[Tensor, ...]:
        """One Hamiltonian transition that leaves f_beta as it is (Neal 2011, section 5.3.2).

        Args:
            step: [N], leapfrog step sizes.
        Returns:
            the new z, its ln p(x | z) [N], and the probability of acceptance [N].
        """
        shape = (-1, *[1] * (z.dim() - 1))
        width = step.view(shape)
        value, likelihood, gradient = self.slope(z, beta)
        momentum = rng.randn("momentum", z.shape)
        energy = value - 0.5 * momentum.square().flatten(1).sum(1)
        there, speed = z, momentum
        found, reached = value, likelihood
        for _ in range(self.num_leapfrog):
            speed = speed + width / 2 * gradient
            there = there + width * speed
            found, reached, gradient = self.slope(there, beta)
            speed = speed + width / 2 * gradient
        change = found - 0.5 * speed.square().flatten(1).sum(1) - energy
        accepted = torch.exp(change.nan_to_num(nan=-torch.inf).clamp(max=0))
        taken = rng.rand("accept", step.shape) < accepted
        moved = torch.where(taken.view(shape), there, z)
        return moved, torch.where(taken, reached, likelihood), accepted

    def tune(self, z: Tensor, rng: Rng) -> Tensor:
        """Step sizes [num_temperatures, N], from a chain that is then thrown away.

        ln(step) follows the acceptance (Andrieu & Thoms 2008, algorithm 4). Chains that weights
        come from must not adapt themselves: that would bias the weights.
        """
        step, steps = torch.full((len(z),), FIRST_STEP, device=z.device), []
        for i, beta in enumerate(sigmoid_schedule(self.num_temperatures)[1:].tolist()):
            z, _, accepted = self.move(z, beta, step, rng.fork("tune", i))
            step = step * torch.exp(RATE * (accepted - ACCEPTANCE))
            steps.append(step)
        return torch.stack(steps)

    def log_weights(self, z: Tensor, steps: Tensor, rng: Rng) -> Tensor:
        """ln w [N] in float64, with E[w] = p(x), of chains that start at draws z of the prior (Neal
        2001, eq. 11).
        """
        betas = sigmoid_schedule(self.num_temperatures).tolist()
        log_w = torch.zeros(len(z), dtype=torch.float64, device=z.device)
        with torch.no_grad():
            likelihood = self.log_likelihood(z)
        for i, step in enumerate(steps):
            log_w = log_w + (betas[i + 1] - betas[i]) * likelihood.double()
            if i + 1 < len(steps):  # the last transition would change no weight
                z, likelihood, _ = self.move(z, betas[i + 1], step, rng.fork("chain", i))
        return log_w
