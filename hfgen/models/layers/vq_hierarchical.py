"""Codebooks for a hierarchy of latent maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfgen.models.layers.vq import Quantized, Quantizer, VectorQuantizer


class HierarchicalQuantizer(Quantizer):
    """One codebook for each level of a hierarchy (VQ-VAE-2, Razavi et al. 2019, section 3.1).

    Latents of all levels come as one sequence [B, D, L], the coarsest first. Level l's indices
    start at l times the size of one codebook, so that one vocabulary names every code.

    Args:
        positions: latents of each level.
        **options: of each ``VectorQuantizer``.
    """

    def __init__(self, positions: tuple[int, ...], **options):
        super().__init__()
        self.positions = list(positions)
        self.layers = nn.ModuleList([VectorQuantizer(**options) for _ in positions])
        self.dim, self.size = self._levels[0].dim, self._levels[0].num_embeddings
        self.num_embeddings = self.size * len(positions)

    @property
    def _levels(self) -> list[VectorQuantizer]:
        return list(self.layers)  # type: ignore[arg-type]

    def peek(self, level: int, z: Tensor) -> Tensor:
        """Codes of one level's latents [B, D, n], straight through, without learning from them."""
        codes = self._levels[level].nearest_codes(z).to(z.dtype)
        return z + (codes - z).detach()

    def forward(self, z: Tensor) -> Quantized:
        parts: list[Quantized] = [
            layer(part)
            for layer, part in zip(self._levels, z.split(self.positions, dim=2), strict=True)
        ]
        shifted = [part.indices + level * self.size for level, part in enumerate(parts)]
        return Quantized(
            codes=torch.cat([part.codes for part in parts], dim=2),
            indices=torch.cat(shifted, dim=1),
            codebook=torch.stack([part.codebook for part in parts]).sum(0),
            commitment=torch.stack([part.commitment for part in parts]).sum(0),
            entropy=z.new_zeros(()),
        )

    def embed(self, indices: Tensor) -> Tensor:
        return F.embedding(indices.squeeze(-1), self.tables()[0]).movedim(-1, 1)

    def tables(self) -> Tensor:
        return torch.cat([level.codebook for level in self._levels]).unsqueeze(0)

    def advance(self, step: int) -> None:
        for layer in self._levels:
            layer.advance(step)

    @torch.no_grad()
    def start_from(self, z: Tensor) -> None:
        for layer, part in zip(self._levels, z.split(self.positions, dim=2), strict=True):
            layer.start_from(part)
