"""The contract between an objective and the trainer: phases, a loss, a clock."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hfgen.rng import Rng

Batch = Mapping[str, Tensor]
"""``images`` [B, C, H, W] in [-1, 1]; ``labels`` [B] int64 where the data has classes."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One optimizer step of one group of models.

    Attributes:
        name: which loss (handed back to ``Objective.loss``).
        trains: the models that it updates; all others are frozen while it runs.
        every: run on each n-th step only (lazy regularisation; n critic steps: the generator's
            phase with ``every=n``).
        data: whether it draws a fresh batch of its own; one without still gets a batch, of which
            only the size counts.
        keeps: parts of the trained models that stay as they are, by the start of their parameters'
            names ("discriminator.blocks.0").
    """

    name: str
    trains: tuple[str, ...]
    every: int = 1
    data: bool = True
    keeps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Clock:
    """How far training is. Schedules read ``images_seen``, so that they mean the same at any batch
    size.

    ``total_batch_size`` is the number of images in one step, over all processes and micro-batches
    (``batch`` of a loss is only a part of it); 0 where nobody said.
    """

    step: int
    images_seen: int
    total_images: int
    total_batch_size: int = 0

    def progress(self) -> float:
        """Share of the run that is over, in [0, 1]."""
        return min(self.images_seen / max(self.total_images, 1), 1.0)

    def ramp(self, images: float) -> float:
        """Linear ramp from 0 to 1 over ``images`` (1 at once for 0)."""
        return min(self.images_seen / images, 1.0) if images > 0 else 1.0


class Objective(ABC):
    """Hyperparameters plus a pure call. Concrete ones are frozen keyword-only dataclasses and
    final.

    Whatever has state (an adaptive probability, a learned variance, a codebook) is a module among
    the models, named by ``extra_models``: then it is checkpointed, synchronised and moved like the
    rest.
    """

    @property
    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """The optimizer steps of one training step, in order (VAE 1, diffusion 1, GAN 2)."""

    @abstractmethod
    def loss(
        self, phase: str, models: Mapping[str, nn.Module], batch: Batch, rng: Rng, clock: Clock
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over the rows of ``batch`` (a scalar that backward is called on) and named
        detached scalars to log.

        Called inside the module that is wrapped for DDP, so the models may be called in any way
        (``encode``, ``decode``, JVP, double backward).
        """

    def extra_models(self) -> dict[str, nn.Module]:
        """State that belongs to the objective rather than to the recipe's ``model`` section; none
        by default.
        """
        return {}

    def check(self, models: Mapping[str, object], rows: int, compiled: bool) -> None:
        """HfgenError where these models cannot be trained so; called before a run begins.

        Args:
            rows: of a micro-batch.
            compiled: whether the models run under torch.compile.
        """
        return None

    def symptoms(self, terms: Mapping[str, float], clock: Clock) -> dict[str, str]:
        """What logged means say is going wrong: name of the trouble -> one line with what to try.

        Each name is said once in a run; none by default.
        """
        return {}


def detach(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scalars for the log, cut from the graph."""
    return {name: torch.as_tensor(value).detach().float().mean() for name, value in terms.items()}
