"""An autoregressive transformer over the codes of a quantised autoencoder."""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from hfgen.models.layers.code_prior import AutoregressiveCodes


class CodePrior(ModelMixin, ConfigMixin, AutoregressiveCodes):
    """p(indices) = prod_i p(index_i | those before it), in raster order, by a causal transformer.

    The second stage of a VQ-VAE (van den Oord et al. 2017, section 3.3), with a transformer in
    place of the PixelCNN (Esser et al. 2021).

    Args:
        latent_shape: [D, height, width] of the latent map.
        num_embeddings: size of the vocabulary.
        num_quantizers: indices per position (residual quantisation).
        hidden_size, num_layers, num_heads: of the transformer.
        num_class_embeds: number of classes.
    """

    # these layers are used by their weights, where the hooks of layerwise casting are not called
    _skip_layerwise_casting_patterns = ["layers"]

    @register_to_config
    def __init__(
        self,
        latent_shape: tuple[int, ...] = (32, 7, 7),
        num_embeddings: int = 512,
        num_quantizers: int = 1,
        hidden_size: int = 128,
        num_layers: int = 4,
        num_heads: int = 4,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(
                f"CodePrior: hidden_size {hidden_size} is not a multiple of num_heads {num_heads}"
            )
        self.positions, self.levels = tuple(latent_shape[1:]), num_quantizers
        self.length = math.prod(self.positions) * self.levels
        self.vocabulary = num_embeddings
        shape = (num_quantizers, num_embeddings, latent_shape[0])
        self.register_buffer("tables", torch.zeros(shape))
        self.start = nn.Embedding(num_class_embeds or 1, hidden_size)
        self.token = nn.Embedding(self.vocabulary, hidden_size)
        self.place = nn.Parameter(0.02 * torch.randn(self.length, hidden_size))
        layer = nn.TransformerEncoderLayer(
            hidden_size, num_heads, 4 * hidden_size, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, self.vocabulary)

    def logits(self, tokens: Tensor, class_labels: Tensor | None = None) -> Tensor:
        if (class_labels is None) != (self.config["num_class_embeds"] is None):
            raise ValueError("CodePrior: class_labels are for, and needed by, a conditional prior")
        labels = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
        first = self.start(labels if class_labels is None else class_labels)
        h = torch.cat([first.unsqueeze(1), self.token(tokens)], dim=1)[:, : self.length]
        h = h + self.place[: h.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(h.shape[1], h.device, h.dtype)
        return self.head(self.norm(self.layers(h, mask=mask, is_causal=True)))
