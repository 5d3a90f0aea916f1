"""The discrete VAE: a bound on ln p(x) with a categorical latent at each position."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hfgen.errors import HfgenError
from hfgen.likelihoods import Gaussian, Likelihood
from hfgen.objectives.base import Batch, Clock, Objective, Phase, detach
from hfgen.objectives.vae import label_arguments, log_likelihood, require
from hfgen.objectives.vae_vq import VectorQuantized, perplexity
from hfgen.rng import Rng


@dataclass(frozen=True, kw_only=True)
class DiscreteVAE(Objective):
    """-ln p(x|z) + beta KL(q(z|x) || uniform), z relaxed by Gumbel-softmax (Ramesh et al. 2021).

    Sums per image, averaged over the batch. Role ``vae``: a VQVAE with a ``gumbel`` quantizer.
    The temperature falls by a cosine, as beta rises linearly (their appendix A.2).

    Args:
        likelihood: p(x | decoder output).
        beta: weight of the KL at the end of its ramp.
        beta_ramp_images: images over which beta rises from 0.
        temperature, final_temperature: of the relaxation, at the start and after the annealing.
        annealing: share of the run that the temperature falls over.
        learn_prior: train the role ``prior`` (CodePrior) on the codes, in a phase of its own.
    """

    likelihood: Likelihood = field(default_factory=Gaussian)
    beta: float = 1.0
    beta_ramp_images: int = 0
    temperature: float = 1.0
    final_temperature: float = 1 / 16
    annealing: float = 0.8
    learn_prior: bool = False

    def __post_init__(self) -> None:
        require("beta", self.beta, 0)
        require("beta_ramp_images", self.beta_ramp_images, 0)
        if not 0 < self.final_temperature <= self.temperature:
            raise HfgenError(
                "objective: 0 < final_temperature <= temperature is needed, got "
                f"{self.final_temperature} and {self.temperature}"
            )
        if not 0 < self.annealing <= 1:
            raise HfgenError(f"annealing must be in (0, 1], got {self.annealing}")

    @property
    def phases(self) -> tuple[Phase, ...]:
        prior = (Phase(name="prior", trains=("prior",)),) if self.learn_prior else ()
        return (Phase(name="vae", trains=("vae",)), *prior)

    def temperature_at(self, clock: Clock) -> float:
        """Temperature of the relaxation at this point of the run."""
        share = min(clock.progress() / self.annealing, 1.0)
        height = (1 + math.cos(math.pi * share)) / 2
        return self.final_temperature + (self.temperature - self.final_temperature) * height

    def loss(
        self, phase: str, models: Mapping[str, nn.Module], batch: Batch, rng: Rng, clock: Clock
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if phase == "prior":
            return VectorQuantized(learn_prior=True).loss(phase, models, batch, rng, clock)
        vae: Any = models["vae"]
        if vae.config["quantizer"].get("type") != "gumbel":
            raise HfgenError(
                f"model.vae.quantizer: {vae.config['quantizer']} has no categorical posterior; "
                "dvae needs {type: gumbel}"
            )
        images, labels = batch["images"], label_arguments(vae, batch)
        logits = vae.codebook.logits(vae.encode_map(images, **labels))
        temperature = self.temperature_at(clock)
        codes = vae.codebook.relax(logits, rng.rand("gumbel", logits.shape), temperature)
        params = vae.decode(codes, **labels).sample
        reconstruction = -log_likelihood(self.likelihood, images, params)
        kl = kl_to_uniform(logits)
        beta = self.beta * clock.ramp(self.beta_ramp_images)
        loss = (reconstruction + beta * kl).mean()
        used = perplexity(logits.argmax(-1), logits.shape[-1])
        terms = {"loss": loss, "reconstruction": reconstruction, "kl": kl, "perplexity": used}
        return loss, detach({**terms, "temperature": torch.tensor(temperature)})


def kl_to_uniform(logits: Tensor) -> Tensor:
    """KL(q || uniform) in nats, [B], of independent categoricals with logits [B, *positions, K]."""
    log_q = torch.log_softmax(logits, dim=-1)
    each = (log_q.exp() * (log_q + math.log(logits.shape[-1]))).sum(-1)
    return each.flatten(1).sum(1)
