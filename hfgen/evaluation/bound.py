"""What a bound of ln p(x) is, and what measure of images it is of."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from hfgen.evaluation.conditions import Condition
from hfgen.rng import Rng

BIN = 2 / 255
"""Width of an 8-bit level on the [-1, 1] scale."""


class Bound(ABC):
    """One way to compute or bound ln p(x) for pipelines of one kind.

    Attributes:
        by_default: whether ``hfgen evaluate`` computes it wherever it can.
    """

    by_default: ClassVar[bool] = True

    @abstractmethod
    def condition(self, pipeline: Any, num_classes: int | None) -> Condition:
        """What ln p(x) is given, for images with so many classes (None: without labels);
        HfgenError when the pipeline, or its data, have not what this bound needs.
        """

    @abstractmethod
    def log_prob(
        self, pipeline: Any, images: Tensor, k: int, rng: Rng, labels: Tensor | None = None
    ) -> Tensor:
        """[B] nats of images [B, C, H, W] in [-1, 1], already dequantised where needed.

        Args:
            labels: [B] int64, where ``condition`` says that the model is told the class.
        """

    @abstractmethod
    def pixels(self, pipeline: Any, images: Tensor) -> Pixels:
        """What measure ``log_prob`` is of, decided on all images at once."""

    def nfe(self, pipeline: Any, k: int) -> int:
        """Network evaluations per image; 0 where they are counted as it runs."""
        return k


@dataclass(frozen=True)
class Pixels:
    """A measure on images.

    Attributes:
        description: for the reader.
        dequantise: add uniform noise of one level's width before ``log_prob``.
        offset: bits per dimension to add, log2(1 / level width) for a density; None when bits have
            no meaning.
    """

    description: str
    dequantise: bool
    offset: float | None


DENSITY = Pixels("density of 8-bit pixels + uniform noise of one level", True, -math.log2(BIN))
DISCRETE = Pixels("probability of 8-bit pixels, not dequantised", False, 0.0)
BINARY = Pixels("probability of binary pixels, not dequantised", False, 0.0)
GREY = Pixels("Bernoulli cross-entropy of grey pixels: not a density", False, None)
