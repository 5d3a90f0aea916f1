"""Backbones that transformers holds: DINOv2 (FD-DINOv2) and CLIP's image tower (CMMD)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPVisionModelWithProjection, Dinov2Model

from hfgen.errors import HfgenError
from hfgen.evaluation.backbones.base import Backbone, file_digest

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class _VisionTransformer(Backbone):
    """Bicubic antialiased resize to the network's size, channel means and deviations, one
    vector.
    """

    def __init__(self, source: str, model_class: Any, size: int | None, mean: tuple, std: tuple):
        self.network = _from_pretrained(self.name, model_class, source)
        self.network.eval().requires_grad_(False)
        self.size = size or int(self.network.config.image_size)
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)
        self.revision = _revision(self.network, source)
        self.preprocessing = f"bicubic {self.size} (antialiased), mean {mean}, std {std}"

    def to(self, device: torch.device | str) -> _VisionTransformer:
        self.network.to(torch.device(device))
        return self

    def inputs(self, images: Tensor) -> Tensor:
        device = self.network.device
        x = images.to(device).float() / 255
        size = (self.size, self.size)
        x = F.interpolate(x, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (v.to(device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std


class DinoV2(_VisionTransformer):
    """FD-DINOv2's features (Stein et al. 2023): ViT-L/14 at 224, the class token after the norm.

    Args:
        source: Hub id or local folder in transformers' format.
    """

    name = "dinov2"

    weights_from = "facebook/dinov2-large on the Hub; no package brings it"

    def __init__(self, source: str | Path = "facebook/dinov2-large"):
        super().__init__(str(source), Dinov2Model, 224, IMAGENET_MEAN, IMAGENET_STD)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"features": self.network(self.inputs(images)).pooler_output}


class ClipVision(_VisionTransformer):
    """CMMD's embeddings (Jayasumana et al. 2024): ViT-L/14 at 336, the projected image embedding.

    Args:
        source: Hub id or local folder in transformers' format.
    """

    name = "clip"

    weights_from = "openai/clip-vit-large-patch14-336 on the Hub; no package brings it"

    def __init__(self, source: str | Path = "openai/clip-vit-large-patch14-336"):
        super().__init__(str(source), CLIPVisionModelWithProjection, None, CLIP_MEAN, CLIP_STD)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"features": self.network(self.inputs(images)).image_embeds}


def _from_pretrained(name: str, model_class: Any, source: str) -> Any:
    try:
        return model_class.from_pretrained(source, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise HfgenError(
            f"backbone {name}: model.safetensors of {source} cannot be had from a local folder or "
            f"https://huggingface.co/{source}; pass a local folder with --weights {name}=PATH"
        ) from error


def _revision(network: Any, source: str) -> str:
    commit = getattr(network.config, "_commit_hash", None)
    if commit:
        return f"{source}@{commit}"
    files = sorted(Path(source).glob("*.safetensors"))
    return "sha256:" + "+".join(file_digest(file) for file in files)
