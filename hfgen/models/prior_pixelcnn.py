"""A gated PixelCNN over the codes of a quantised autoencoder."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from hfgen.models.layers.code_prior import AutoregressiveCodes


class GatedLayer(nn.Module):
    """One layer of the vertical and the horizontal stack (van den Oord et al. 2016b, figure 2).

    The vertical state of row i sees rows up to i; the horizontal state of (i, j) sees rows above i
    through it, and columns up to j of its own row (before j in the first layer). So nothing before
    a position stays unseen, and nothing after it is seen.
    """

    def __init__(self, channels: int, kernel: int, first: bool):
        super().__init__()
        self.reach, self.first = kernel // 2, first
        self.vertical = nn.Conv2d(channels, 2 * channels, (self.reach + 1, kernel))
        self.down = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.horizontal = nn.Conv2d(channels, 2 * channels, (1, self.reach + 1))
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, v: Tensor, h: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """States [B, C, H, W] and a condition [B, 2C, 1, 1] -> the states after it."""
        r = self.reach
        new_v = self.vertical(F.pad(v, (r, r, r, 0)))
        above = F.pad(new_v, (0, 0, 1, 0))[:, :, :-1]
        left = F.pad(h, (r + 1, 0))[..., :-1] if self.first else F.pad(h, (r, 0))
        new_h = self.out(_gate(self.horizontal(left) + self.down(above) + condition))
        return _gate(new_v + condition), new_h if self.first else h + new_h


def _gate(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=1)
    return torch.tanh(first) * torch.sigmoid(second)


class PixelCNNPrior(ModelMixin, ConfigMixin, AutoregressiveCodes):
    """p(indices) by a gated PixelCNN (van den Oord et al. 2016b; 2017, section 3.3).

    Args:
        latent_shape: [D, height, width] of the latent map.
        num_embeddings: size of the vocabulary.
        hidden_size, num_layers, kernel_size: of the two stacks; kernel_size is odd.
        num_class_embeds: number of classes.
    """

    @register_to_config
    def __init__(
        self,
        latent_shape: tuple[int, ...] = (32, 7, 7),
        num_embeddings: int = 512,
        hidden_size: int = 64,
        num_layers: int = 6,
        kernel_size: int = 5,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        if kernel_size % 2 == 0 or kernel_size < 3 or num_layers < 1:
            raise ValueError(
                "PixelCNNPrior: needs an odd kernel_size >= 3 and num_layers >= 1, got "
                f"{kernel_size} and {num_layers}"
            )
        self.positions, self.levels = tuple(latent_shape[1:]), 1
        self.length, self.vocabulary = math.prod(self.positions), num_embeddings
        self.register_buffer("tables", torch.zeros(1, num_embeddings, latent_shape[0]))
        self.condition = nn.Embedding(num_class_embeds or 1, 2 * hidden_size)
        self.token = nn.Embedding(num_embeddings, hidden_size)
        self.layers = nn.ModuleList(
            [GatedLayer(hidden_size, kernel_size, first=i == 0) for i in range(num_layers)]
        )
        self.head = nn.Sequential(
            nn.Conv2d(hidden_size, hidden_size, 1),
            nn.SiLU(),
            nn.Conv2d(hidden_size, num_embeddings, 1),
        )

    def logits(self, tokens: Tensor, class_labels: Tensor | None = None) -> Tensor:
        if (class_labels is None) != (self.config["num_class_embeds"] is None):
            raise ValueError(
                "PixelCNNPrior: class_labels are for, and needed by, a conditional prior"
            )
        rows, known = tokens.shape
        whole = F.pad(tokens, (0, self.length - known)).view(rows, *self.positions)
        labels = torch.zeros(rows, dtype=torch.long, device=tokens.device)
        condition = self.condition(labels if class_labels is None else class_labels)
        v = h = self.token(whole).movedim(-1, 1)
        for layer in self.layers:
            v, h = layer(v, h, condition[:, :, None, None])
        return self.head(h).flatten(2).transpose(1, 2)[:, : known + 1]
