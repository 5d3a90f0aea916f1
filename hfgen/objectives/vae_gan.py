"""A VAE whose reconstructions also face a discriminator of images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hfgen.likelihoods import Gaussian, Likelihood
from hfgen.objectives.base import Batch, Clock, Objective, Phase, detach
from hfgen.objectives.vae import (
    Models,
    active_units,
    draw,
    label_arguments,
    log_likelihood,
    rate_terms,
    require,
)
from hfgen.rng import Rng


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, image: Tensor) -> Tensor:
    """||d reconstruction|| / ||d adversarial||, a scalar without a gradient.

    Esser et al. 2021 (VQGAN), eq. 7, with both gradients taken at the decoded image instead of the
    decoder's last layer, so that any decoder will do.
    """
    (first,) = torch.autograd.grad(reconstruction, image, retain_graph=True)
    (second,) = torch.autograd.grad(adversarial, image, retain_graph=True)
    return (first.norm() / (second.norm() + 1e-4)).clamp(max=1e4).detach()


@dataclass(frozen=True, kw_only=True)
class VAEGAN(Objective):
    """ELBO plus an adversarial term on the reconstruction (Larsen et al. 2016; Esser et al. 2021).

    Roles: ``vae`` and ``discriminator``, ``discriminator(images).logits``, one per image or per
    patch. Hinge losses (Lim & Ye 2017); the discriminator trains in a phase of its own, on a batch
    of its own. Until ``start_images`` the adversarial term has no weight, while the discriminator
    learns already.

    Args:
        likelihood: p(x | decoder output); its mean is what the discriminator sees.
        beta: weight of the KL.
        weight: of the adversarial term, relative to the reconstruction's gradient.
        start_images: images before the adversarial term counts.
    """

    likelihood: Likelihood = field(default_factory=Gaussian)
    beta: float = 1.0
    weight: float = 0.5
    start_images: int = 0

    def __post_init__(self) -> None:
        for name in ("beta", "weight", "start_images"):
            require(name, getattr(self, name), 0)

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (
            Phase(name="vae", trains=("vae",)),
            Phase(name="discriminator", trains=("discriminator",)),
        )

    def loss(
        self, phase: str, models: Models, batch: Batch, rng: Rng, clock: Clock
    ) -> tuple[Tensor, dict[str, Tensor]]:
        vae: Any = models["vae"]
        discriminator: Any = models["discriminator"]
        images, labels = batch["images"], label_arguments(vae, batch)
        if phase == "discriminator":
            with torch.no_grad():
                z, _ = draw(vae.encode(images, **labels).latent_dist, rng)
                fake = self.likelihood.mean(vae.decode(z, **labels).sample)
            real, fake = discriminator(images).logits, discriminator(fake).logits
            loss = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
            logs = {"discriminator": loss, "logit_real": real, "logit_fake": fake}
            return loss, detach(logs)
        posterior = vae.encode(images, **labels).latent_dist
        z, log_q = draw(posterior, rng)
        params = vae.decode(z, **labels).sample
        reconstruction = -log_likelihood(self.likelihood, images, params).mean()
        kl = rate_terms(models, posterior, z, log_q).sum(1).mean()
        loss = reconstruction + self.beta * kl
        logs = {"reconstruction": reconstruction, "kl": kl, "elbo": -(reconstruction + kl)}
        if self.weight and clock.images_seen >= self.start_images:
            adversarial = -discriminator(self.likelihood.mean(params)).logits.mean()
            scale = adaptive_weight(reconstruction, adversarial, params)
            loss = loss + self.weight * scale * adversarial
            logs |= {"adversarial": adversarial, "adaptive_weight": scale}
        return loss, detach({"loss": loss, **logs, "active_units": active_units(posterior.mode())})
