"""The Riemannian Hamiltonian VAE: a metric of the latent space that is learned with the model."""

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
)
from hfgen.objectives.vae_symptoms import symptoms
from hfgen.rng import Rng


@dataclass(frozen=True, kw_only=True)
class RiemannianELBO(Objective):
    """E ln p(x, z_K) + ln N(rho_K; 0, G(z_K)) - ln q(z_0|x) - ln N(gamma_0; 0, G(z_0)) (Chadebec et
    al. 2020, section 3.3).

    z_0 ~ q(z|x), gamma_0 ~ N(0, G(z_0)), rho_0 = gamma_0 / sqrt(beta_0), and (z_K, rho_K) come of
    tempered Riemannian leapfrog steps on -ln p(x, z) with a standard normal p(z); the flow's volume
    change and the scale of rho_0 cancel. The metric's centroids are the posterior means of the
    rows at hand. Roles: ``vae`` with a flat latent, ``prior`` (MetricPrior, which holds the
    metric), ``leapfrog`` (RiemannianLeapfrog).

    Args:
        likelihood: p(x | decoder output).
    """

    likelihood: Likelihood = field(default_factory=Bernoulli)

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase(name="vae", trains=("vae", "prior", "leapfrog")),)

    def symptoms(self, terms: Mapping[str, float], clock: Clock) -> dict[str, str]:
        return symptoms(terms, clock)

    def loss(
        self, phase: str, models: Models, batch: Batch, rng: Rng, clock: Clock
    ) -> tuple[Tensor, dict[str, Tensor]]:
        vae: Any = models["vae"]
        leapfrog: Any = models["leapfrog"]
        prior: Any = models["prior"]
        images, labels = batch["images"], label_arguments(vae, batch)
        posterior = vae.encode(images, **labels).latent_dist
        start, log_q = draw(posterior, rng)
        if start.shape[1:] != prior.centre.shape:
            raise HfgenError(
                f"model.prior.latent_dim is {len(prior.centre)}, but the VAE's latents are "
                f"{tuple(start.shape[1:])}: make them equal"
            )
        metric = prior.metric(posterior.mode(), prior.read(images))

        def log_joint(z: Tensor) -> Tensor:
            params = vae.decode(z, **labels).sample
            return log_likelihood(self.likelihood, images, params) + log_prior({}, z)

        def gradient(z: Tensor) -> Tensor:
            if not z.requires_grad:
                z = z.detach().requires_grad_()
            (slope,) = torch.autograd.grad(-log_joint(z).sum(), z, create_graph=True)
            return slope

        noise = torch.einsum("bde,be->bd", metric.root(start), rng.randn("momentum", start.shape))
        z, momentum = leapfrog(
            start,
            noise * leapfrog.beta.rsqrt(),
            gradient,
            metric,
            return_dict=False,
        )
        reached = _log_normal(momentum, metric.inverse(z))
        bound = log_joint(z) + reached - log_q - _log_normal(noise, metric.inverse(start))
        logs = {
            "loss": -bound,
            "elbo": bound,
            "moved": (z - start).norm(dim=1),
            "temperature": leapfrog.beta,
            "log_volume": metric.log_volume(z),
        }
        return -bound.mean(), detach({**logs, "active_units": active_units(posterior.mode())})


def _log_normal(x: Tensor, precision: Tensor) -> Tensor:
    """ln N(x; 0, precision^-1) in nats, [B], of x [B, D] and precision [B, D, D]."""
    square = torch.einsum("bd,bde,be->b", x, precision, x)
    log_det = torch.logdet(precision)
    return 0.5 * (log_det - square - x.shape[1] * math.log(2 * math.pi))
