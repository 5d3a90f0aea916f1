"""Adversarial training: a discriminator's step, then a generator's, each on its own fresh batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from hfgen.errors import HfgenError, one_of
from hfgen.objectives.base import Batch, Clock, Objective, Phase, detach
from hfgen.objectives.gan_augment import Augmentation
from hfgen.objectives.gan_game import DISCRIMINATOR, GENERATOR, Game
from hfgen.objectives.gan_losses import LOSSES
from hfgen.objectives.gan_regularizers import (
    R1,
    R2,
    REGULARIZERS,
    Regularizer,
)
from hfgen.objectives.gan_symptoms import diversity, symptoms
from hfgen.rng import Rng

Models = Mapping[str, nn.Module]


@dataclass(frozen=True)
class _Part:
    """What one phase computes."""

    side: str
    adversarial: bool
    regularizers: Mapping[str, Regularizer]
    every: int


@dataclass(frozen=True, kw_only=True)
class GAN(Objective):
    """Generator against discriminator (Goodfellow et al. 2014) with R1 (Mescheder et al. 2018).

    Roles: ``generator(z, class_labels).sample`` and ``discriminator(images, class_labels).logits``.
    Where a model is conditional (``num_class_embeds`` in its config), generated images take the
    labels of the batch. The phases are ``discriminator``, one for each lazy regulariser, and
    ``generator``; each draws a batch of its own.

    Logged: the losses and penalties; ``logit_real`` and ``logit_fake``; ``overfitting``, the mean
    sign of the logits of real training images (r_t of Karras et al. 2020, ADA, equation 1: towards
    1 the discriminator knows the training set by heart); ``diversity``, the mean distance of two
    generated images over that of two real ones, of one class or categorical code where there are
    some (towards 0 the generator has collapsed). ``symptoms`` reads them.

    Args:
        adversarial_loss: a name of ``gan_losses.LOSSES``.
        r1_gamma: weight of R1, (r1_gamma / 2) E ||grad_x D(x)||^2 over real x. Not set, it is
            StyleGAN2's heuristic 0.0002 * resolution^2 / total_batch_size; ``default_gamma`` in
            ``gan_regularizers`` gives the reason. 0 switches R1 off.
        r1_every: 1 adds R1 to the discriminator's loss at every step. n > 1 makes it a phase of its
            own on each n-th step with n times the weight: the discriminator's Adam then takes n + 1
            steps in n, so that a learning rate times n / (n + 1) and betas to that power (16 / 17
            for 16) keep its pace, as StyleGAN2 does; for n >= 16 the difference is small.
        r2_gamma: the same penalty at generated images, with R1's rhythm (R3GAN uses both at every
            step).
        gamma_decay: both weights fall to this share along half a cosine over the run (R3GAN: 0.1).
        regularizers: further ones, ``{type: lecam, weight: 0.3}`` and so on.
        augmentation: what real and generated images pass on their way into the discriminator.
        n_critic: steps of the discriminator for each of the generator.
        weight_clip: clamp the discriminator's weights to +- this (Arjovsky et al. 2017, algorithm
            1).
        top_k: the generator learns from the best-judged share of its images only; the share falls
            from 1 to this along the run (Sinha et al. 2020). Couples rows.
        freeze: parts of the discriminator that keep their weights, by the start of their
            parameters' names, say ``blocks.0``: when a trained pair is tuned to few images, the
            discriminator's lower layers are worth keeping (Mo et al. 2020, FreezeD).
        standing_statistics: so many generated images give the averaged generator's batch norms
            their means and variances wherever it draws or is exported (Brock et al. 2019, BigGAN,
            section 4), instead of those that the raw generator last had. 0: off.
    """

    adversarial_loss: str = "nonsaturating"
    r1_gamma: float | None = None
    r1_every: int = 16
    r2_gamma: float = 0.0
    gamma_decay: float = 1.0
    regularizers: tuple[Regularizer, ...] = ()
    augmentation: Augmentation | None = None
    n_critic: int = 1
    weight_clip: float | None = None
    top_k: float = 1.0
    freeze: tuple[str, ...] = ()
    standing_statistics: int = 0

    def __post_init__(self) -> None:
        if self.adversarial_loss not in LOSSES:
            raise one_of("objective.adversarial_loss", self.adversarial_loss, list(LOSSES))
        for name in ("r1_gamma", "r2_gamma"):
            if (getattr(self, name) or 0) < 0:
                raise HfgenError(f"objective.{name}: must be >= 0, got {getattr(self, name)}")
        for name in ("r1_every", "n_critic"):
            if getattr(self, name) < 1:
                raise HfgenError(f"objective.{name}: must be >= 1, got {getattr(self, name)}")
        if not 0 < self.top_k <= 1:
            raise HfgenError(f"objective.top_k: must lie in (0, 1], got {self.top_k}")
        if self.weight_clip is not None and self.weight_clip <= 0:
            raise HfgenError(f"objective.weight_clip: must be positive, got {self.weight_clip}")

    @property
    def phases(self) -> tuple[Phase, ...]:
        return tuple(
            Phase(name=name, trains=(part.side,), every=part.every, keeps=self._keeps(part.side))
            for name, part in self._parts.items()
        )

    def _keeps(self, side: str) -> tuple[str, ...]:
        return tuple(f"{side}.{name}" for name in self.freeze) if side == DISCRIMINATOR else ()

    def extra_models(self) -> dict[str, nn.Module]:
        """State of the regularisers (running means) and of the augmentation (its probability)."""
        owners = [
            *self.all_regularizers.values(),
            *([self.augmentation] if self.augmentation else []),
        ]
        return {role: module for owner in owners for role, module in owner.modules().items()}

    def check(self, models: Mapping[str, object], rows: int, compiled: bool) -> None:
        twice = [name for name, r in self.all_regularizers.items() if r.differentiates]
        if compiled and twice:
            raise HfgenError(
                f"training.compile: torch.compile has no second derivative, which "
                f"{', '.join(twice)} needs; set it to false, or take these penalties away"
            )
        discriminator: Any = models[DISCRIMINATOR]
        group = discriminator.config.get("group_size") or 1
        if rows % group:
            raise HfgenError(
                f"training.total_batch_size: micro-batches of {rows} image(s), but the minibatch "
                f"standard deviation of model.discriminator takes groups of {group}; valid: "
                f"multiples of {group}, or model.discriminator.group_size: 1"
            )

    def symptoms(self, terms: Mapping[str, float], clock: Clock) -> dict[str, str]:
        return symptoms(terms, clock, self.adversarial_loss)

    def loss(
        self, phase: str, models: Models, batch: Batch, rng: Rng, clock: Clock
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.loss``; ``phase`` is the name of one of ``phases``."""
        part = self._parts[phase]
        check_channels(models, batch["images"])
        game = self._game(part, models, batch, rng, clock)
        # Every trained parameter is in the graph, as DDP wants it: a gradient knows no bias, and a
        # head that no regulariser looks at is not in it.
        total = torch.stack([0 * p.sum() for p in models[part.side].parameters()]).sum()
        terms: dict[str, Tensor] = {}
        if part.adversarial:
            value, terms = self._adversarial(game)
            total = total + value
        for name, regularizer in part.regularizers.items():
            penalty = regularizer(game).mean()
            pixels = game.real.shape[-2] * game.real.shape[-1]
            total = total + regularizer.every * regularizer.scale(clock, pixels) * penalty
            terms[name if len(regularizer.sides) == 1 else f"{name}_{part.side[0]}"] = penalty
        return total, detach(terms)

    def _game(self, part: _Part, models: Models, batch: Batch, rng: Rng, clock: Clock) -> Game:
        if self.weight_clip is not None:
            with torch.no_grad():
                for parameter in models[DISCRIMINATOR].parameters():
                    parameter.clamp_(-self.weight_clip, self.weight_clip)
        leaves = frozenset().union(*(r.leaves for r in part.regularizers.values()))
        game = Game(part.side, models, batch, rng, clock, leaves)
        if self.augmentation is not None:
            game.augment = self.augmentation
        return game

    def _adversarial(self, game: Game) -> tuple[Tensor, dict[str, Tensor]]:
        if game.side == GENERATOR:
            return self._generator(game)
        game.meet()
        real, fake = game.real_verdict.verdicts, game.fake_verdict.verdicts
        if self.augmentation is not None:
            self.augmentation.observe(game.real_verdict.logits.detach(), game)
        loss = LOSSES[self.adversarial_loss]
        seen = class_arguments(game) if loss.of_classes else (real, fake)
        value = loss.discriminator(*seen).mean()
        terms = {"loss_d": value, "logit_real": real, "logit_fake": fake}
        return value, {**terms, "overfitting": real.detach().sign()}

    def _generator(self, game: Game) -> tuple[Tensor, dict[str, Tensor]]:
        loss = LOSSES[self.adversarial_loss]
        fake = game.fake_verdict.verdicts
        real = game.real_verdict.verdicts if loss.uses_real else torch.zeros_like(fake)
        rows = loss.generator(*(class_arguments(game) if loss.of_classes else (real, fake)))
        share = 1 - (1 - self.top_k) * game.clock.progress()
        if share < 1:
            best = game.fake_verdict.logits.topk(math.ceil(share * len(rows)))
            rows = rows[best.indices]
        value = rows.mean()
        terms = {"loss_g": value}
        if len(game.fake) > 1:  # one image differs from no other
            labels = game.labels(GENERATOR)
            terms["diversity"] = diversity(game.fake, game.real, labels, game.codes)
        return value, terms

    @cached_property
    def all_regularizers(self) -> dict[str, Regularizer]:
        """R1, R2 and the further ones by name; several of one type are numbered."""
        chosen: list[Regularizer] = []
        if self.r1_gamma != 0:
            chosen.append(R1(gamma=self.r1_gamma, every=self.r1_every, decay=self.gamma_decay))
        if self.r2_gamma != 0:
            chosen.append(R2(gamma=self.r2_gamma, every=self.r1_every, decay=self.gamma_decay))
        named: dict[str, Regularizer] = {}
        for regularizer in (*chosen, *self.regularizers):
            name = next(n for n, cls in REGULARIZERS.items() if type(regularizer) is cls)
            same = sum(type(other) is type(regularizer) for other in named.values())
            named[f"{name}{same + 1}" if same else name] = regularizer
        return named

    @cached_property
    def _parts(self) -> dict[str, _Part]:
        parts: dict[str, _Part] = {}
        for side, every in ((DISCRIMINATOR, 1), (GENERATOR, self.n_critic)):
            mine = {name: r for name, r in self.all_regularizers.items() if side in r.sides}
            eager = {name: r for name, r in mine.items() if r.every == 1}
            parts[side] = _Part(side, True, eager, every)
            for name, lazy in mine.items():
                if lazy.every > 1:
                    phase = name if len(lazy.sides) == 1 else f"{name}_{side}"
                    parts[phase] = _Part(side, False, {name: lazy}, lazy.every)
        return parts


def check_channels(models: Models, images: Tensor) -> None:
    """HfgenError where a network is for other channels than ``images`` [B, C, H, W] have."""
    for role, name in ((GENERATOR, "out_channels"), (DISCRIMINATOR, "in_channels")):
        config: Any = models[role].config
        if config.get(name) not in (None, images.shape[1]):
            raise HfgenError(
                f"model.{role}.{name}: is {config[name]}, but the data has {images.shape[1]} "
                "channel(s); leave it out, and it follows the data"
            )


def class_arguments(game: Game) -> tuple[Tensor, Tensor, Tensor]:
    """Class logits [B, K + 1] of real and of generated images, and the labels [B]; in the
    generator's phase, whose loss of classes does not look at real images, the generated ones twice.
    """
    fake = game.fake_verdict
    real = game.real_verdict if game.side == DISCRIMINATOR else fake
    labels = game.labels(DISCRIMINATOR)
    wanted = game.discriminator.config["num_class_embeds"]
    if labels is None or fake.class_logits is None or fake.class_logits.shape[1] != wanted + 1:
        raise HfgenError(
            "objective.adversarial_loss: multi_hinge needs data.class_conditional: true and a "
            "discriminator with conditioning: multi_hinge"
        )
    return real.class_logits, fake.class_logits, labels
