"""VQGAN: a codebook, a perceptual distance and a discriminator."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hfgen.objectives.base import Batch, Clock, Phase
from hfgen.objectives.vae import Models, require
from hfgen.objectives.vae_gan import AdversarialReconstruction, Coded
from hfgen.objectives.vae_vq import autoencode, code_prior_loss
from hfgen.rng import Rng


@dataclass(frozen=True, kw_only=True)
class VQGAN(AdversarialReconstruction):
    """VQ-VAE with perceptual and adversarial terms on the reconstruction (Esser et al. 2021).

    Args:
        commitment: weight of the commitment.
        entropy: weight of LFQ's entropy term, in nats per image.
        learn_prior: train the role ``prior`` (CodePrior) on the codes, in a phase of its own.
    """

    commitment: float = 0.25
    entropy: float = 0.0
    learn_prior: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require("commitment", self.commitment, 0)
        require("entropy", self.entropy, 0)

    @property
    def phases(self) -> tuple[Phase, ...]:
        prior = (Phase(name="prior", trains=("prior",)),) if self.learn_prior else ()
        return (*super().phases, *prior)

    def loss(
        self, phase: str, models: Models, batch: Batch, rng: Rng, clock: Clock
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if phase == "prior":
            return code_prior_loss(models, batch)
        return super().loss(phase, models, batch, rng, clock)

    def code(
        self, models: Models, images: Tensor, labels: dict[str, Tensor], rng: Rng, clock: Clock
    ) -> Coded:
        return Coded(
            *autoencode(models["vae"], images, labels, clock, self.commitment, self.entropy)
        )
