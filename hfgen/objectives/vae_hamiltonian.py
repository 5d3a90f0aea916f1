"""The Hamiltonian VAE: latents that follow the gradient of ln p(x, z) before they are decoded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hfgen.errors import HfgenError
from hfgen.likelihoods import Bernoulli, Likelihood
from hfgen.objectives.base import Batch, Clock, Objective, Phase, detach
from hfgen.objectives.vae import (
    Models,
    active_units,
    draw,
    label_arguments,
    log_likelihood,
    log_prior,
    tie_prior,
)
from hfgen.objectives.vae_symptoms import symptoms
from hfgen.rng import Rng


@dataclass(frozen=True, kw_only=True)
class HamiltonianELBO(Objective):
    """E ln p(x, z_K) + ln N(rho_K) - ln q(z_0 | x) - ln N(gamma_0) (Caterini et al. 2018, eq. 8).

    z_0 ~ q(z | x), gamma_0 ~ N(0, I), rho_0 = gamma_0 / sqrt(beta_0), and (z_K, rho_K) come of
    tempered leapfrog steps on -ln p(x, z): the flow's volume change and the scale of rho_0 cancel.
    Roles: ``vae`` with a flat latent, ``leapfrog`` (LeapfrogFlow), ``prior`` where there is one.

    Args:
        likelihood: p(x | decoder output).
    """

    likelihood: Likelihood = field(default_factory=Bernoulli)

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase(name="vae", trains=("vae", "leapfrog")),)

    def symptoms(self, terms: Mapping[str, float], clock: Clock) -> dict[str, str]:
        return symptoms(terms, clock)

    def loss(
        self, phase: str, models: Models, batch: Batch, rng: Rng, clock: Clock
    ) -> tuple[Tensor, dict[str, Tensor]]:
        vae: Any = models["vae"]
        leapfrog: Any = models["leapfrog"]
        images, labels = batch["images"], label_arguments(vae, batch)
        tie_prior(models)
        posterior = vae.encode(images, **labels).latent_dist
        start, log_q = draw(posterior, rng)
        if start.shape[1:] != leapfrog.step_logit.shape:
            raise HfgenError(
                f"model.leapfrog.latent_dim is {len(leapfrog.step_logit)}, but the VAE's latents "
                f"are {tuple(start.shape[1:])}"
            )
        noise = rng.randn("momentum", start.shape)

        def log_joint(z: Tensor) -> Tensor:
            params = vae.decode(z, **labels).sample
            return log_likelihood(self.likelihood, images, params) + log_prior(models, z)

        def gradient(z: Tensor) -> Tensor:
            if not z.requires_grad:
                z = z.detach().requires_grad_()
            (slope,) = torch.autograd.grad(-log_joint(z).sum(), z, create_graph=True)
            return slope

        begin = noise * leapfrog.beta.rsqrt()
        z, momentum = leapfrog(start, begin, gradient, return_dict=False)
        bound = log_joint(z) + _log_normal(momentum) - log_q - _log_normal(noise)
        moved = (z - start).norm(dim=1)
        logs = {"loss": -bound, "elbo": bound, "moved": moved, "temperature": leapfrog.beta}
        return -bound.mean(), detach({**logs, "active_units": active_units(posterior.mode())})


def _log_normal(x: Tensor) -> Tensor:
    return -0.5 * (x.square() + math.log(2 * math.pi)).sum(1)
