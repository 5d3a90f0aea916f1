"""An autoregressive transformer over the codes of a quantised autoencoder."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from hfgen.models.layers.prior import Generators, Prior


class CodePrior(ModelMixin, ConfigMixin, Prior):
    """p(indices) = prod_i p(index_i | those before it), in raster order, by a causal transformer.

    The second stage of a VQ-VAE (van den Oord et al. 2017, section 3.3), with a transformer in
    place of the PixelCNN (Esser et al. 2021). ``tie`` copies the autoencoder's codes, so that it
    draws latents that the decoder takes.

    Args:
        latent_shape: [D, height, width] of the latent map.
        num_embeddings: size of the vocabulary.
        num_quantizers: indices per position (residual quantisation).
        hidden_size, num_layers, num_heads: of the transformer.
        num_class_embeds: number of classes.
    """

    tables: Tensor

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

    def tie(self, vae: nn.Module) -> None:
        model: Any = vae
        tables = model.codebook.tables().detach()
        if tables.shape != self.tables.shape:
            raise ValueError(
                "CodePrior: [num_quantizers, num_embeddings, channels] is "
                f"{list(self.tables.shape)}, but the autoencoder's codes are {list(tables.shape)}"
            )
        self.tables.copy_(tables)

    def logits(self, tokens: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Tokens [B, L'] -> logits [B, L' + 1, vocabulary] of each token and the next one."""
        if (class_labels is None) != (self.config["num_class_embeds"] is None):
            raise ValueError("CodePrior: class_labels are for, and needed by, a conditional prior")
        labels = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
        first = self.start(labels if class_labels is None else class_labels)
        h = torch.cat([first.unsqueeze(1), self.token(tokens)], dim=1)[:, : self.length]
        h = h + self.place[: h.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(h.shape[1], h.device, h.dtype)
        return self.head(self.norm(self.layers(h, mask=mask, is_causal=True)))

    def log_prob_indices(self, indices: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """ln p in nats, [B], of indices [B, height, width, levels]."""
        tokens = indices.flatten(1)
        log_p = torch.log_softmax(self.logits(tokens[:, :-1], class_labels), dim=-1)
        return log_p.gather(2, tokens.unsqueeze(2)).flatten(1).sum(1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Of codes as ``sample`` draws them; several levels are told apart one after the other."""
        rest, indices = z.flatten(2).transpose(1, 2), []
        for table in self.tables:
            index = torch.cdist(rest.float(), table.float()).argmin(-1)
            indices.append(index)
            rest = rest - table[index]
        return self.log_prob_indices(torch.stack(indices, dim=-1))

    def embed(self, indices: Tensor) -> Tensor:
        """Indices [B, *positions, levels] -> latents [B, D, *positions]."""
        levels = zip(self.tables, indices.unbind(-1), strict=True)
        return torch.stack([table[index] for table, index in levels]).sum(0).movedim(-1, 1)

    @torch.no_grad()
    def sample(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        class_labels: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Codes [batch_size, D, height, width]; ``temperature`` divides the logits."""
        device = self.place.device
        noise = randn_tensor((batch_size, self.length), generator, device)
        uniform = torch.special.ndtr(noise)
        tokens = torch.zeros(batch_size, 0, dtype=torch.long, device=device)
        for i in range(self.length):
            logits = self.logits(tokens, class_labels)[:, -1]
            share = torch.softmax(logits / max(temperature, 1e-6), dim=-1)
            index = (share.cumsum(-1) < uniform[:, i : i + 1]).sum(-1, keepdim=True)
            tokens = torch.cat([tokens, index.clamp(max=self.vocabulary - 1)], dim=1)
        return self.embed(tokens.view(batch_size, *self.positions, self.levels))
