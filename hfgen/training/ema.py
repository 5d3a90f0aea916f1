"""Exponential moving averages of models: parameters are averaged, buffers copied."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hfgen.training.posthoc_ema import decay, gamma_of


class EMA:
    """One average of some models, with a half-life in images.

    decay per step = 0.5 ^ (batch / half_life), half_life = min(half_life, rampup_ratio * images
    seen): Karras et al. 2020 (StyleGAN2-ADA, training loop), so the average follows quickly at
    first and does not remember the start.

    Args:
        models: the models to follow, by role; deep copies of them are kept in ``models``.
        half_life: in images.
        rampup_ratio: share of the images seen that bounds the half-life; None for no ramp.
        ramp_images: the half-life grows from 0 along half a cosine over so many images (Huang et
            al. 2024, R3GAN); None for no such ramp.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        half_life: float,
        rampup_ratio: float | None,
        ramp_images: int | None = None,
    ):
        self.models = {role: copy.deepcopy(model).eval() for role, model in models.items()}
        for model in self.models.values():
            model.requires_grad_(False)
        self._half_life = half_life
        self._rampup_ratio = rampup_ratio
        self._ramp_images = ramp_images
        pairs = [_tensors(self.models[role], model) for role, model in models.items()]
        self._averaged = [pair for averaged, _ in pairs for pair in averaged]
        self._copied = [pair for _, copied in pairs for pair in copied]

    def decay(self, images_seen: int, batch: int) -> float:
        """Weight of the old average in an update after ``images_seen`` images, the last ``batch``
        of them new.
        """
        half_life = self._half_life
        if self._rampup_ratio is not None:
            half_life = min(half_life, self._rampup_ratio * images_seen)
        if self._ramp_images is not None:
            share = min(images_seen / self._ramp_images, 1.0)
            half_life *= 0.5 * (1 - math.cos(math.pi * share))
        return 0.5 ** (batch / max(half_life, 1e-8))

    @torch.no_grad()
    def update(self, images_seen: int, batch: int) -> None:
        """Move the averages towards the models' present parameters; copy their buffers."""
        weight = 1 - self.decay(images_seen, batch)
        if self._averaged:
            old, new = [a for a, _ in self._averaged], [b for _, b in self._averaged]
            torch._foreach_lerp_(old, new, weight)
        for old, new in self._copied:
            old.copy_(new)


class PowerEMA(EMA):
    """A power-function average (Karras et al. 2024, eq. 8): its width is a share of the run so far.

    Args:
        models: as for ``EMA``.
        sigma_rel: relative width; 0.1 averages over about the last quarter of the run.
    """

    def __init__(self, models: Mapping[str, nn.Module], sigma_rel: float):
        super().__init__(models, half_life=1.0, rampup_ratio=None)
        self.sigma_rel = sigma_rel
        self._gamma = gamma_of(sigma_rel)

    def decay(self, images_seen: int, batch: int) -> float:
        """Eq. 9 there."""
        return decay(self._gamma, images_seen, batch)


def _tensors(
    average: nn.Module, model: nn.Module
) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    averaged, copied = [], []
    for old, new in zip(average.parameters(), model.parameters(), strict=True):
        # The parameters themselves, not their .data: DDP gives them new storage when it wraps them.
        (averaged if new.is_floating_point() else copied).append((old, new))
    for old, new in zip(average.buffers(), model.buffers(), strict=True):
        copied.append((old, new))
    return averaged, copied
