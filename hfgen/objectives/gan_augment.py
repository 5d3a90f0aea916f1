"""Differentiable augmentation between the images and the discriminator: DiffAugment, ADA, APA."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from hfgen.objectives.base import Clock
from hfgen.rng import Rng


@dataclass(frozen=True, kw_only=True)
class Augmentation(ABC):
    """A random transformation of images, differentiable twice; its state is a module."""

    @abstractmethod
    def __call__(
        self, images: Tensor, rng: Rng, *, models: Mapping[str, nn.Module], clock: Clock
    ) -> Tensor:
        """Transformed images, [B, C, H, W]."""

    def observe(self, logits: Tensor, models: Mapping[str, nn.Module], clock: Clock) -> None:
        """Look at the logits [B] of real images; nothing by default."""
        return None

    def modules(self) -> dict[str, nn.Module]:
        """State, by role; none by default."""
        return {}


AUGMENTATIONS: dict[str, type[Augmentation]] = {}
"""Names for recipes."""
