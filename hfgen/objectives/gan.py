"""Adversarial training: a discriminator's step, then a generator's, each on its own fresh batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hfgen.errors import HfgenError, one_of
from hfgen.objectives.base import Batch, Clock, Objective, Phase, detach
from hfgen.objectives.gan_losses import LOSSES
from hfgen.rng import Rng

Models = Mapping[str, nn.Module]


@dataclass(frozen=True, kw_only=True)
class GAN(Objective):
    """Generator against discriminator (Goodfellow et al. 2014) with R1 (Mescheder et al. 2018).

    Roles: ``generator(z, class_labels).sample`` and ``discriminator(images, class_labels).logits``.
    Where a model is conditional (``num_class_embeds`` in its config), generated images take the
    labels of the batch.

    Args:
        adversarial_loss: a name of ``gan_losses.LOSSES``.
        r1_gamma: weight of R1, (r1_gamma / 2) E ||grad_x D(x)||^2 over real x. Not set, it is
            StyleGAN2's heuristic (Karras et al. 2020, ADA, appendix C) 0.0002 * resolution^2 /
            total_batch_size: the squared norm sums over pixels while neighbouring pixels move
            together, so that at one weight the penalty bites less as images grow, and a larger
            batch gives a cleaner gradient that needs less damping. It is a start to search from by
            factors of 2 to 5, not an optimum. 0 switches R1 off.
        r1_every: 1 adds R1 to the discriminator's loss at every step. n > 1 makes it a phase of its
            own on each n-th step, with n times the weight (lazy regularisation, Karras et al. 2020,
            StyleGAN2, appendix B): the discriminator's Adam then takes n + 1 steps in n, so a
            learning rate of n / (n + 1) and betas to that power (16 / 17 for 16) keep its pace; at
            n >= 16 the difference is small.
        n_critic: steps of the discriminator for each of the generator.
        total_batch_size: images in one step over all processes; follows the recipe. Only the
            heuristic reads it.
    """

    adversarial_loss: str = "nonsaturating"
    r1_gamma: float | None = None
    r1_every: int = 16
    n_critic: int = 1
    total_batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.adversarial_loss not in LOSSES:
            raise one_of("objective.adversarial_loss", self.adversarial_loss, list(LOSSES))
        if self.r1_gamma is not None and self.r1_gamma < 0:
            raise HfgenError(f"objective.r1_gamma: must be >= 0, got {self.r1_gamma}")
        for name in ("r1_every", "n_critic"):
            if getattr(self, name) < 1:
                raise HfgenError(f"objective.{name}: must be >= 1, got {getattr(self, name)}")

    @property
    def phases(self) -> tuple[Phase, ...]:
        critic = ("discriminator",)
        lazy = self.r1_every > 1 and self.r1_gamma != 0
        r1 = (Phase(name="r1", trains=critic, every=self.r1_every),) if lazy else ()
        generator = Phase(name="generator", trains=("generator",), every=self.n_critic)
        return (Phase(name="discriminator", trains=critic), *r1, generator)

    def loss(
        self, phase: str, models: Models, batch: Batch, rng: Rng, clock: Clock
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.loss``; ``phase`` is ``discriminator``, ``r1`` or ``generator``."""
        steps = {
            "discriminator": self._discriminator,
            "r1": self._r1,
            "generator": self._generator,
        }
        return steps[phase](models, batch, rng)

    def _discriminator(self, models: Models, batch: Batch, rng: Rng):
        with torch.no_grad():
            fake = generate(models["generator"], batch, rng)
        penalise = self.r1_every == 1 and self.r1_gamma != 0
        real = batch["images"].detach().requires_grad_(penalise)
        real_logits, fake_logits = self._judge(models, batch, real, fake, apart=penalise)
        loss = LOSSES[self.adversarial_loss].discriminator(real_logits, fake_logits).mean()
        terms = {"loss_d": loss, "logit_real": real_logits, "logit_fake": fake_logits}
        if penalise:
            r1 = squared_gradient(real_logits, real).mean()
            loss = loss + self._gamma(real) / 2 * r1
            terms["r1"] = r1
        return loss, detach(terms)

    def _r1(self, models: Models, batch: Batch, rng: Rng):
        real = batch["images"].detach().requires_grad_(True)
        logits = critic(models, batch, real)
        r1 = squared_gradient(logits, real).mean()
        # Biases have no part in the gradient; DDP wants every trained parameter in the graph.
        loss = self.r1_every * self._gamma(real) / 2 * r1 + 0 * logits.sum()
        return loss, detach({"r1": r1})

    def _generator(self, models: Models, batch: Batch, rng: Rng):
        fake = generate(models["generator"], batch, rng)
        loss = LOSSES[self.adversarial_loss]
        if loss.uses_real:
            real_logits, fake_logits = self._judge(models, batch, batch["images"], fake)
        else:
            fake_logits = critic(models, batch, fake)
            real_logits = fake_logits.detach()
        value = loss.generator(real_logits, fake_logits).mean()
        return value, detach({"loss_g": value})

    def _judge(
        self, models: Models, batch: Batch, real: Tensor, fake: Tensor, apart: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Logits of real and fake images, in one forward unless batch norm would mix the two."""
        mixes = any(isinstance(m, _BatchNorm) for m in models["discriminator"].modules())
        if apart or mixes:
            return critic(models, batch, real), critic(models, batch, fake)
        both = {name: torch.cat([rows, rows]) for name, rows in batch.items() if name == "labels"}
        real_logits, fake_logits = critic(models, both, torch.cat([real, fake])).chunk(2)
        return real_logits, fake_logits

    def _gamma(self, images: Tensor) -> float:
        if self.r1_gamma is not None:
            return self.r1_gamma
        if self.total_batch_size is None:
            raise HfgenError(
                "objective.r1_gamma: its default needs objective.total_batch_size; set either"
            )
        return 0.0002 * images.shape[-1] * images.shape[-2] / self.total_batch_size


def generate(generator: Any, batch: Batch, rng: Rng) -> Tensor:
    """Images from fresh latents, one for each row of ``batch``, with that row's label."""
    images = batch["images"]
    z = rng.randn("z", (images.shape[0], generator.config.latent_dim)).to(images.dtype)
    return generator(z, labels_for(generator, "generator", batch)).sample


def critic(models: Models, batch: Batch, images: Tensor) -> Tensor:
    """The discriminator's logits [B] for ``images`` under the labels of ``batch``."""
    discriminator = models["discriminator"]
    return discriminator(images, labels_for(discriminator, "discriminator", batch)).logits


def labels_for(model: Any, role: str, batch: Batch) -> Tensor | None:
    """Labels for a conditional model (HfgenError without any), None for an unconditional one."""
    classes = model.config.num_class_embeds
    if classes is None:
        return None
    if "labels" not in batch:
        raise HfgenError(f"model.{role}.num_class_embeds: is {classes}, but the data has no labels")
    return batch["labels"]


def squared_gradient(logits: Tensor, images: Tensor) -> Tensor:
    """||grad_x D(x)||^2 of each row, [B], differentiable again. Rows must not see one another."""
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(1)
