"""Reconstruction terms beyond the likelihood, as parts of an objective: perceptual distances."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from hfgen.errors import HfgenError
from hfgen.perceptual import EfficientNetDistance, load_alexnet_distance


@dataclass(frozen=True, kw_only=True)
class Perceptual(ABC):
    """A frozen network that compares images with their reconstructions.

    Args:
        weight: of the distance, per pixel and channel, as it stands beside |x - y| in LDM
            (Rombach et al. 2022): the loss of an image gets weight * C H W * distance.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise HfgenError(f"objective.perceptual.weight must be at least 0, got {self.weight}")

    @abstractmethod
    def build(self) -> nn.Module:
        """(images, reconstructions) [B, C, H, W] in [-1, 1] -> distances [B]."""

    @cached_property
    def network(self) -> nn.Module:
        """Built once, frozen."""
        return self.build().eval().requires_grad_(False)


@dataclass(frozen=True, kw_only=True)
class EfficientNetPerceptual(Perceptual):
    """EfficientNet-Lite0's first blocks: weights come from the package index (``hfgen[lite0]``)."""

    def build(self) -> nn.Module:
        return EfficientNetDistance()


@dataclass(frozen=True, kw_only=True)
class LPIPS(Perceptual):
    """LPIPS 0.1 with AlexNet (Zhang et al. 2018).

    Args:
        weights: a local ``.safetensors`` file of torchvision's AlexNet (``features.*``) and LPIPS's
            linear layers (``lin*``).
    """

    weights: str = ""

    def build(self) -> nn.Module:
        if not self.weights:
            raise HfgenError(
                "objective.perceptual.weights: lpips needs a .safetensors file with torchvision's "
                "AlexNet (features.*) and LPIPS 0.1's lin*.model.1.weight; or take "
                "type: efficientnet-lite0"
            )
        return load_alexnet_distance(self.weights)


PERCEPTUALS: dict[str, type[Perceptual]] = {
    "efficientnet-lite0": EfficientNetPerceptual,
    "lpips": LPIPS,
}
"""Names for recipes."""
