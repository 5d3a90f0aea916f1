"""Representation alignment: denoising, and features like those of a network that has seen more."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from hfgen.errors import HfgenError
from hfgen.hidden import layer_outputs
from hfgen.objectives.base import Batch, Clock, Phase, detach
from hfgen.objectives.diffusion import Diffusion
from hfgen.rng import Rng


@dataclass(frozen=True, kw_only=True)
class AlignedDiffusion(Diffusion):
    """REPA (Yu et al. 2024, eq. 9): the denoising loss + ``alignment_weight`` (1 - similarity) of a
    layer of the network to a frozen backbone's features of the clean image.

    Args:
        aligner: the role that compares, a ``FeatureAligner``; its projection trains along.
        layer: of the network, by name: an early one (8 of 28 in the paper).
        alignment_weight: lambda, 0.5 in the paper.
    """

    aligner: str = "aligner"
    layer: str = "blocks.1"
    alignment_weight: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alignment_weight < 0:
            raise HfgenError(f"alignment_weight must be at least 0, got {self.alignment_weight}")

    @property
    def phases(self) -> tuple[Phase, ...]:
        (phase,) = super().phases
        return (dataclasses.replace(phase, trains=(*phase.trains, self.aligner)),)

    def loss(
        self, phase: str, models: Mapping[str, nn.Module], batch: Batch, rng: Rng, clock: Clock
    ) -> tuple[Tensor, dict[str, Tensor]]:
        channels = batch["images"].shape[1]
        if channels not in (1, 3):
            raise HfgenError(
                f"alignment: a backbone sees images of 1 or 3 channels, not latents of {channels}; "
                "valid: objective.type diffusion"
            )
        with layer_outputs(models[self.network], self.layer) as found:
            loss, terms = super().loss(phase, models, batch, rng, clock)
        similarity = models[self.aligner](batch["images"], found[-1]).mean()
        loss = loss + self.alignment_weight * (1 - similarity)
        return loss, {**terms, **detach({"loss": loss, "similarity": similarity})}
