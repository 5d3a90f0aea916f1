"""Networks that turn images into features, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from torch import Tensor

from hfgen.errors import one_of
from hfgen.evaluation.backbones.base import Backbone, CallableBackbone

BACKBONES = {
    "efficientnet-lite0": ("efficientnet_lite0", "EfficientNetLite0"),
    "inception": ("inception", "InceptionBackbone"),
    "dinov2": ("vision_transformers", "DinoV2"),
    "clip": ("vision_transformers", "ClipVision"),
}
"""Name -> module and class; imported when asked for."""

BackboneLike = str | Backbone | Callable[[Tensor], Tensor]


def load_backbone(
    backbone: BackboneLike, weights: Mapping[str, str | Path] | None = None
) -> Backbone:
    """A backbone from its name, an object, or any callable uint8 [B, 3, H, W] -> [B, D].

    Args:
        weights: local files or folders by backbone name, instead of what would be downloaded.
    Raises:
        HfgenError: an unknown name, or weights that cannot be had.
    """
    if isinstance(backbone, Backbone):
        return backbone
    if not isinstance(backbone, str):
        return CallableBackbone(backbone)
    if backbone not in BACKBONES:
        raise one_of("backbone", backbone, list(BACKBONES))
    module, name = BACKBONES[backbone]
    cls = getattr(import_module(f"{__name__}.{module}"), name)
    source = (weights or {}).get(backbone)
    return cls() if source is None else cls(source)


__all__ = ["BACKBONES", "Backbone", "BackboneLike", "CallableBackbone", "load_backbone"]
