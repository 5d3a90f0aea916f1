"""VAEs with a discriminator of latents: FactorVAE and the adversarial autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hfgen.likelihoods import Bernoulli, Likelihood
from hfgen.objectives.base import Batch, Clock, Objective, Phase, detach
from hfgen.objectives.vae import (
    Models,
    active_units,
    draw,
    label_arguments,
    log_likelihood,
    rate_terms,
    require,
    unused_spread,
)
from hfgen.objectives.vae_symptoms import symptoms
from hfgen.rng import Rng

PHASES = (
    Phase(name="vae", trains=("vae",)),
    Phase(name="discriminator", trains=("latent_discriminator",)),
)


def permute_dims(z: Tensor, rng: Rng) -> Tensor:
    """Each dimension of z [B, D] shuffled over the rows: a draw of prod_j q(z_j).

    Kim & Mnih 2018, algorithm 1. It mixes the rows at hand.
    """
    order = rng.rand("permute", z.shape).argsort(0)
    return z.gather(0, order)


def tell_apart(discriminator: Any, first: Tensor, second: Tensor) -> Tensor:
    """Mean cross-entropy of calling ``first`` 1 and ``second`` 0, in nats."""
    ones, zeros = discriminator(first).logits, discriminator(second).logits
    return 0.5 * (F.softplus(-ones) + F.softplus(zeros)).mean()


@dataclass(frozen=True, kw_only=True)
class FactorVAE(Objective):
    """ELBO - gamma TC(z), with TC by a discriminator's density ratio (Kim & Mnih 2018, eq. 2-3).

    Roles: ``vae`` and ``latent_discriminator``, whose logit estimates ln q(z) - ln prod_j q(z_j).
    It trains in a phase with a batch of its own, as in their algorithm 2.

    Args:
        likelihood: p(x | decoder output).
        gamma: weight of the total correlation.
    """

    likelihood: Likelihood = field(default_factory=Bernoulli)
    gamma: float = 10.0

    def __post_init__(self) -> None:
        require("gamma", self.gamma, 0)

    @property
    def phases(self) -> tuple[Phase, ...]:
        return PHASES

    def symptoms(self, terms: Mapping[str, float], clock: Clock) -> dict[str, str]:
        return symptoms(terms, clock)

    def loss(
        self, phase: str, models: Models, batch: Batch, rng: Rng, clock: Clock
    ) -> tuple[Tensor, dict[str, Tensor]]:
        vae: Any = models["vae"]
        discriminator: Any = models["latent_discriminator"]
        images, labels = batch["images"], label_arguments(vae, batch)
        if phase == "discriminator":
            with torch.no_grad():
                z, _ = draw(vae.encode(images, **labels).latent_dist, rng)
                z = z.flatten(1)
            loss = tell_apart(discriminator, z, permute_dims(z, rng))
            return loss, detach({"discriminator": loss})
        posterior = vae.encode(images, **labels).latent_dist
        z, log_q = draw(posterior, rng)
        params = vae.decode(z, **labels).sample
        reconstruction = -log_likelihood(self.likelihood, images, params)
        kl = rate_terms(models, posterior, z, log_q).sum(1)
        correlation = discriminator(z.flatten(1)).logits
        loss = (reconstruction + kl + self.gamma * correlation).mean()
        logs = {"loss": loss, "reconstruction": reconstruction, "kl": kl}
        logs |= {"elbo": -(reconstruction + kl), "total_correlation": correlation}
        return loss, detach({**logs, "active_units": active_units(posterior.mode())})


@dataclass(frozen=True, kw_only=True)
class AdversarialAutoencoder(Objective):
    """Reconstruction, and latents that a discriminator cannot tell from N(0, I).

    Makhzani et al. 2016, with the non-saturating loss. Roles: ``vae`` and ``latent_discriminator``.

    Args:
        likelihood: p(x | decoder output).
        weight: of the adversarial term.
        deterministic: decode the posterior's mode (their choice) or a draw of it.
    """

    likelihood: Likelihood = field(default_factory=Bernoulli)
    weight: float = 10.0
    deterministic: bool = False

    def __post_init__(self) -> None:
        require("weight", self.weight, 0)

    @property
    def phases(self) -> tuple[Phase, ...]:
        return PHASES

    def symptoms(self, terms: Mapping[str, float], clock: Clock) -> dict[str, str]:
        return symptoms(terms, clock)

    def loss(
        self, phase: str, models: Models, batch: Batch, rng: Rng, clock: Clock
    ) -> tuple[Tensor, dict[str, Tensor]]:
        vae: Any = models["vae"]
        discriminator: Any = models["latent_discriminator"]
        images, labels = batch["images"], label_arguments(vae, batch)
        if phase == "discriminator":
            with torch.no_grad():
                z = self._code(vae.encode(images, **labels).latent_dist, rng)
            loss = tell_apart(discriminator, rng.randn("prior", z.shape), z)
            return loss, detach({"discriminator": loss})
        posterior = vae.encode(images, **labels).latent_dist
        z = self._code(posterior, rng)
        params = vae.decode(z, **labels).sample
        reconstruction = -log_likelihood(self.likelihood, images, params)
        adversarial = F.softplus(-discriminator(z).logits)
        loss = (reconstruction + self.weight * adversarial).mean()
        if self.deterministic:
            loss = loss + 0 * unused_spread(posterior)
        logs = {"loss": loss, "reconstruction": reconstruction, "adversarial": adversarial}
        return loss, detach({**logs, "active_units": active_units(posterior.mode())})

    def _code(self, posterior: Any, rng: Rng) -> Tensor:
        return posterior.mode() if self.deterministic else draw(posterior, rng)[0]
