"""The evidence lower bound, and the pieces that every objective of a VAE shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hfgen.errors import HfgenError
from hfgen.likelihoods import Bernoulli, Likelihood
from hfgen.objectives.base import Batch, Clock, Objective, Phase, detach
from hfgen.rng import Rng


def label_arguments(vae: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """``class_labels`` for a conditional model, nothing for the others (the stock AutoencoderKL
    takes none).
    """
    config: Any = vae.config
    classes = config.get("num_class_embeds")
    if classes is None:
        return {}
    if "labels" not in batch:
        raise HfgenError(
            f"model.vae.num_class_embeds is {classes}, but the data has no labels: leave it unset"
        )
    return {"class_labels": batch["labels"]}


def log_likelihood(likelihood: Likelihood, images: Tensor, params: Tensor) -> Tensor:
    """ln p(x | z) in nats, [B], after checking that the likelihood fits the data and the
    decoder.
    """
    needed = likelihood.channels(images.shape[1])
    if params.shape[1] != needed:
        raise HfgenError(
            f"{type(likelihood).__name__} needs {needed} channels from the decoder for images of "
            f"{images.shape[1]}, got {params.shape[1]}: set model.vae.out_channels to {needed}"
        )
    low, high = (float(bound) for bound in torch.aminmax(images.detach()))
    if low < -1 - 1e-4 or high > 1 + 1e-4:
        raise HfgenError(
            f"{type(likelihood).__name__} needs images in [-1, 1], "
            f"got values in [{low:.4g}, {high:.4g}]"
        )
    return likelihood.log_prob(images, params)


def kl_terms(posterior: Any) -> Tensor:
    """KL(q(z|x) || N(0, I)) of a Gaussian posterior per latent dimension in nats, [B, D].

    Kingma & Welling 2013, appendix B. Needs ``mean`` and ``logvar`` only, which diffusers'
    posterior has as well.
    """
    mean, logvar = posterior.mean.flatten(1), posterior.logvar.flatten(1)
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar)


def active_units(mean: Tensor) -> Tensor:
    """How many latent dimensions the batch uses: Var_x E[z|x] > 0.01 (Burda et al. 2016, section
    2.3).
    """
    mean = mean.detach().float().flatten(1)
    return (mean.var(0, correction=0) > 0.01).sum()


def require(name: str, value: float, least: float) -> None:
    """HfgenError where an argument of an objective lies below ``least``."""
    if not value >= least:
        raise HfgenError(f"objective.{name} must be at least {least:g}, got {value}")


@dataclass(frozen=True, kw_only=True)
class ELBO(Objective):
    """-E_q[ln p(x|z)] + beta KL(q(z|x) || p(z)) (Kingma & Welling 2013, eq. 7; Higgins et al. 2017
    for beta).

    Role ``vae``: anything with AutoencoderKL's interface and a Gaussian posterior, flat or
    image-shaped.

    Args:
        likelihood: p(x | decoder output).
        beta: weight of the KL.
        kl_warmup_images: the weight rises linearly from 0 to ``beta`` over this many images (Bowman
            et al. 2016).
        free_bits: nats that each latent dimension may use at no cost, per image (Kingma et al.
            2016, eq. 15, which averages over the batch first; per image, a split of the batch
            changes nothing).
    """

    likelihood: Likelihood = field(default_factory=Bernoulli)
    beta: float = 1.0
    kl_warmup_images: int = 0
    free_bits: float = 0.0

    def __post_init__(self) -> None:
        require("beta", self.beta, 0)
        require("kl_warmup_images", self.kl_warmup_images, 0)
        require("free_bits", self.free_bits, 0)

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase(name="vae", trains=("vae",)),)

    def loss(
        self, phase: str, models: Mapping[str, nn.Module], batch: Batch, rng: Rng, clock: Clock
    ) -> tuple[Tensor, dict[str, Tensor]]:
        vae: Any = models["vae"]
        images, labels = batch["images"], label_arguments(vae, batch)
        posterior = vae.encode(images, **labels).latent_dist
        eps = rng.randn("eps", posterior.mean.shape).to(posterior.mean.dtype)
        params = vae.decode(posterior.mean + posterior.std * eps, **labels).sample
        reconstruction = -log_likelihood(self.likelihood, images, params)
        terms = kl_terms(posterior)
        weight = self.beta * clock.ramp(self.kl_warmup_images)
        loss = (reconstruction + weight * terms.clamp(min=self.free_bits).sum(1)).mean()
        kl = terms.sum(1)
        logs = {"loss": loss, "reconstruction": reconstruction, "kl": kl}
        logs |= {"elbo": -(reconstruction + kl), "active_units": active_units(posterior.mean)}
        return loss, detach(logs)
