"""Autoencoders with a codebook."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hfgen.errors import HfgenError
from hfgen.likelihoods import Gaussian, Likelihood
from hfgen.objectives.base import Batch, Clock, Objective, Phase, detach
from hfgen.objectives.vae import Models, label_arguments, log_likelihood, require, tie_prior
from hfgen.objectives.vae_symptoms import symptoms
from hfgen.rng import Rng


def code_counts(indices: Tensor, vocabulary: int) -> Tensor:
    """How often a batch uses each code, [vocabulary], float."""
    return torch.bincount(indices.flatten(), minlength=vocabulary).float()


def perplexity(indices: Tensor, vocabulary: int) -> Tensor:
    """exp of the entropy of code use in a batch: how many codes do the work, in [1, vocabulary]."""
    return entropy_size(code_counts(indices, vocabulary))


def entropy_size(counts: Tensor) -> Tensor:
    """exp of the entropy of counts: how many equal shares would have it."""
    share = counts / counts.sum()
    return torch.exp(-(share * share.clamp(min=1e-12).log()).sum())


def code_usage(counts: Tensor) -> Tensor:
    """Share of the codes that a batch could use that it uses, in (0, 1]."""
    return (counts > 0).sum() / counts.sum().clamp(max=len(counts))


def autoencode(
    model: nn.Module,
    images: Tensor,
    labels: dict[str, Tensor],
    clock: Clock,
    commitment: float,
    entropy: float,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Decoder output, the weighted terms of the codes (a scalar) and what is logged of them."""
    vae: Any = model
    vae.codebook.advance(clock.step)
    latents = vae.encode_map(images, **labels)
    try:
        vae.codebook.start_from(latents)
    except ValueError as error:
        raise HfgenError(f"model.vae.{error}") from None
    quantized = vae.quantize(latents)
    params = vae.decode(quantized.codes, **labels).sample
    rate = (quantized.codebook + commitment * quantized.commitment).mean()
    rate = rate + entropy * quantized.entropy
    vocabulary = vae.codebook.num_embeddings
    levels = [code_counts(level, vocabulary) for level in quantized.indices.unbind(-1)]
    logs = {
        "commitment": quantized.commitment,
        "perplexity": torch.stack([entropy_size(counts) for counts in levels]).mean(),
        "code_usage": torch.stack([code_usage(counts) for counts in levels]).mean(),
    }
    if entropy:
        logs["entropy"] = quantized.entropy
    return params, rate, logs


def code_prior_loss(models: Models, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """-ln p(codes) of role ``prior`` in nats per image."""
    vae: Any = models["vae"]
    prior: Any = models["prior"]
    labels = label_arguments(vae, batch)
    tie_prior(models)
    with torch.no_grad():
        indices = vae.quantize(vae.encode_map(batch["images"], **labels)).indices
    loss = -prior.log_prob_indices(indices, labels.get("class_labels")).mean()
    return loss, detach({"prior": loss})


@dataclass(frozen=True, kw_only=True)
class VectorQuantized(Objective):
    """-ln p(x|e) + ||sg(z) - e||^2 + commitment ||z - sg(e)||^2 (van den Oord et al. 2017, eq. 3).

    All terms are sums per image, averaged over the batch: none depends on its size. Role ``vae``: a
    model with ``encode_map``, ``quantize`` and ``decode`` (VQVAE). What the codebook learns from,
    and whether there is one, is the model's ``quantizer``; the log tells how many codes are in use.

    Args:
        likelihood: p(x | decoder output).
        commitment: weight of the commitment; none is needed for FSQ.
        entropy: weight of LFQ's entropy term, in nats per image.
        learn_prior: train the role ``prior`` (CodePrior) on the codes, in a phase of its own.
    """

    likelihood: Likelihood = field(default_factory=Gaussian)
    commitment: float = 0.25
    entropy: float = 0.0
    learn_prior: bool = False

    def __post_init__(self) -> None:
        require("commitment", self.commitment, 0)
        require("entropy", self.entropy, 0)

    @property
    def phases(self) -> tuple[Phase, ...]:
        prior = (Phase(name="prior", trains=("prior",)),) if self.learn_prior else ()
        return (Phase(name="vae", trains=("vae",)), *prior)

    def symptoms(self, terms: Mapping[str, float], clock: Clock) -> dict[str, str]:
        return symptoms(terms, clock)

    def loss(
        self, phase: str, models: Models, batch: Batch, rng: Rng, clock: Clock
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if phase == "prior":
            return code_prior_loss(models, batch)
        images, labels = batch["images"], label_arguments(models["vae"], batch)
        params, rate, logs = autoencode(
            models["vae"], images, labels, clock, self.commitment, self.entropy
        )
        reconstruction = -log_likelihood(self.likelihood, images, params).mean()
        loss = reconstruction + rate
        return loss, detach({"loss": loss, "reconstruction": reconstruction, **logs})
