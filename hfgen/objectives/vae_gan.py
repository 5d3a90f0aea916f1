"""Autoencoders whose reconstructions also face a frozen network and a discriminator."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
from hfgen.objectives.vae_perceptual import Perceptual
from hfgen.objectives.vae_symptoms import symptoms
from hfgen.rng import Rng


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, image: Tensor) -> Tensor:
    """||d reconstruction|| / ||d adversarial||, a scalar without a gradient.

    Esser et al. 2021 (VQGAN), eq. 7, with both gradients taken at the decoded image instead of the
    decoder's last layer, so that any decoder will do.
    """
    (first,) = torch.autograd.grad(reconstruction, image, retain_graph=True)
    (second,) = torch.autograd.grad(adversarial, image, retain_graph=True)
    return (first.norm() / (second.norm() + 1e-4)).clamp(max=1e4).detach()


@dataclass(frozen=True)
class Coded:
    """What an autoencoder makes of images.

    Attributes:
        params: decoder output [B, C', H, W].
        rate: what the code costs beside the reconstruction, a weighted mean over the rows.
        logs: further scalars.
    """

    params: Tensor
    rate: Tensor
    logs: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class AdversarialReconstruction(Objective):
    """Likelihood, perceptual distance and an adversarial term on the reconstruction.

    What VAE-GAN (Larsen et al. 2016), VQGAN (Esser et al. 2021) and the autoencoder of Stable
    Diffusion (Rombach et al. 2022) share. Roles: ``vae`` and, unless ``weight`` is 0,
    ``discriminator(images).logits``, one per image or per patch. Hinge losses (Lim & Ye 2017); the
    discriminator trains in a phase of its own, on a batch of its own. Until ``start_images`` it
    neither trains nor counts, as in VQGAN.

    Args:
        likelihood: p(x | decoder output); its mean is what the other networks see.
        perceptual: a distance of images and reconstructions under a frozen network.
        weight: of the adversarial term, relative to the gradient of all reconstruction terms.
        start_images: images before the discriminator takes part.
    """

    likelihood: Likelihood = field(default_factory=Gaussian)
    perceptual: Perceptual | None = None
    weight: float = 0.5
    start_images: int = 0

    def __post_init__(self) -> None:
        for name in ("weight", "start_images"):
            require(name, getattr(self, name), 0)

    @property
    def phases(self) -> tuple[Phase, ...]:
        game = (Phase(name="discriminator", trains=("discriminator",)),) if self.weight else ()
        return (Phase(name="vae", trains=("vae",)), *game)

    def extra_models(self) -> dict[str, nn.Module]:
        return {} if self.perceptual is None else {"perceptual": self.perceptual.network}

    def symptoms(self, terms: Mapping[str, float], clock: Clock) -> dict[str, str]:
        return symptoms(terms, clock)

    @abstractmethod
    def code(
        self, models: Models, images: Tensor, labels: dict[str, Tensor], rng: Rng, clock: Clock
    ) -> Coded:
        """Encode and decode."""

    def loss(
        self, phase: str, models: Models, batch: Batch, rng: Rng, clock: Clock
    ) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = batch["images"], label_arguments(models["vae"], batch)
        started = clock.images_seen >= self.start_images
        if phase == "discriminator":
            return self._tell_apart(models, images, labels, rng, clock, started)
        coded = self.code(models, images, labels, rng, clock)
        reconstruction = -log_likelihood(self.likelihood, images, coded.params).mean()
        logs = {"reconstruction": reconstruction, **coded.logs}
        made = self.likelihood.mean(coded.params)
        if self.perceptual is not None:
            distance = models["perceptual"](images, made).mean()
            scale = self.perceptual.weight * images[0].numel()
            reconstruction = reconstruction + scale * distance
            logs["perceptual"] = distance
        loss = reconstruction + coded.rate
        if self.weight and started:
            discriminator: Any = models["discriminator"]
            adversarial = -discriminator(made).logits.mean()
            scale = adaptive_weight(reconstruction, adversarial, coded.params)
            loss = loss + self.weight * scale * adversarial
            logs |= {"adversarial": adversarial, "adaptive_weight": scale}
        return loss, detach({"loss": loss, **logs})

    def _tell_apart(
        self,
        models: Models,
        images: Tensor,
        labels: dict[str, Tensor],
        rng: Rng,
        clock: Clock,
        started: bool,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        discriminator: Any = models["discriminator"]
        if not started:  # every parameter in the graph all the same, as DDP wants it
            return torch.stack([0 * p.sum() for p in discriminator.parameters()]).sum(), {}
        with torch.no_grad():
            fake = self.likelihood.mean(self.code(models, images, labels, rng, clock).params)
        real, fake = discriminator(images).logits, discriminator(fake).logits
        loss = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        return loss, detach({"discriminator": loss, "logit_real": real, "logit_fake": fake})


@dataclass(frozen=True, kw_only=True)
class VAEGAN(AdversarialReconstruction):
    """ELBO with perceptual and adversarial terms on the reconstruction.

    VAE-GAN (Larsen et al. 2016); with ``perceptual`` and a patch discriminator, the KL autoencoder
    of latent diffusion (Rombach et al. 2022, section 3.1 and appendix G).

    Args:
        beta: weight of the KL.
    """

    beta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require("beta", self.beta, 0)

    def code(
        self, models: Models, images: Tensor, labels: dict[str, Tensor], rng: Rng, clock: Clock
    ) -> Coded:
        vae: Any = models["vae"]
        posterior = vae.encode(images, **labels).latent_dist
        z, log_q = draw(posterior, rng)
        params = vae.decode(z, **labels).sample
        kl = rate_terms(models, posterior, z, log_q).sum(1).mean()
        logs = {"kl": kl, "active_units": active_units(posterior.mode())}
        return Coded(params, self.beta * kl, logs)
