"""What a denoiser holds, compared with the features of a frozen network (REPA: Yu et al. 2024,
"Representation alignment for generation", arXiv 2410.06940).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from hfgen.models.layers.backbone import LITE0, make_backbone


class FeatureAligner(ModelMixin, ConfigMixin):
    """A frozen backbone, and the small network that turns a denoiser's tokens into its features.

    It is used in training only; a pipeline does not hold it.

    Args:
        hidden_dim: width of the denoiser's layer.
        backbone: ``efficientnet-lite0`` (its package must be installed), or the Hub id or folder of
            any backbone of transformers (``AutoBackbone``), say ``facebook/dinov2-small``. A saved
            aligner carries its weights, and here its configuration instead.
        input_size: images are resized bilinearly to this side for the backbone.
        level: which of its maps, finest first. Resized to the denoiser's grid, where they differ.
        projector_dim: hidden width of the projection (2048 in the paper).

    Raises:
        ValueError: a backbone that cannot be had, or has no such map.
    """

    @register_to_config
    def __init__(
        self,
        hidden_dim: int = 192,
        backbone: str | dict[str, Any] = LITE0,
        input_size: int = 64,
        level: int = 2,
        projector_dim: int = 512,
    ):
        super().__init__()
        self.features, config = make_backbone(backbone)
        self.register_to_config(backbone=config)
        widths = self.features.widths
        if not 0 <= level < len(widths):
            raise ValueError(f"level {level}: the backbone has maps 0 to {len(widths) - 1}")
        self.projector = nn.Sequential(
            nn.Linear(hidden_dim, projector_dim),
            nn.SiLU(),
            nn.Linear(projector_dim, projector_dim),
            nn.SiLU(),
            nn.Linear(projector_dim, widths[level]),
        )
        self.requires_grad_(True)

    def requires_grad_(self, requires_grad: bool = True) -> FeatureAligner:
        """As in torch, but the backbone stays frozen."""
        super().requires_grad_(requires_grad)
        self.features.requires_grad_(False)
        return self

    def train(self, mode: bool = True) -> FeatureAligner:
        """As in torch, but the backbone keeps its statistics."""
        super().train(mode)
        self.features.eval()
        return self

    def forward(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Cosine similarity of each image [B], averaged over positions (eq. 8 there).

        Args:
            images: [B, 1 or 3, H, W] in [-1, 1], without noise.
            hidden: of the denoiser, tokens of a square grid [B, N, D] or a map [B, D, h, w].
        """
        tokens = hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden
        side = round(tokens.shape[1] ** 0.5)
        goal = self.goal(images, side).flatten(2).transpose(1, 2)
        found = self.projector(tokens.to(self.dtype))
        return F.cosine_similarity(found.float(), goal.float(), dim=2).mean(1).to(self.dtype)

    @torch.no_grad()
    def goal(self, images: Tensor, side: int) -> Tensor:
        """The backbone's map of clean images, [B, width, side, side]."""
        size = [self.config["input_size"]] * 2
        shown = F.interpolate(images.expand(-1, 3, -1, -1), size=size, mode="bilinear")
        found = self.features(shown)[self.config["level"]]
        if found.shape[-1] == side:
            return found
        return F.interpolate(found, size=[side, side], mode="bilinear")
