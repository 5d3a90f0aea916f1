"""What autoregressive priors over the codes of a quantised autoencoder share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from hfgen.models.layers.prior import Generators, Prior


class AutoregressiveCodes(Prior):
    """p(indices) = prod_i p(index_i | those before it), in raster order.

    ``tie`` copies the autoencoder's codes into the buffer ``tables``, so that the prior draws
    latents that the decoder takes.

    Attributes:
        positions: [height, width] of the latent map.
        levels: indices per position.
        length: indices in all.
        vocabulary: number of codes.
        tables: every code of every level, [levels, vocabulary, D].
    """

    positions: tuple[int, ...]
    levels: int
    length: int
    vocabulary: int
    tables: Tensor

    @abstractmethod
    def logits(self, tokens: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Tokens [B, L'] -> logits [B, L' + 1, vocabulary] of each token and the next one."""

    def tie(self, vae: nn.Module) -> None:
        model: Any = vae
        tables = model.codebook.tables().detach()
        if tables.shape != self.tables.shape:
            raise ValueError(
                f"{type(self).__name__}: [num_quantizers, num_embeddings, channels] is "
                f"{list(self.tables.shape)}, but the autoencoder's codes are {list(tables.shape)}"
            )
        positions = tuple(model.latent_shape[1:])
        if positions != self.positions:
            raise ValueError(
                f"{type(self).__name__}: latent_shape is {[tables.shape[2], *self.positions]}, but "
                f"the autoencoder's codes are {[tables.shape[2], *positions]}"
            )
        self.tables.copy_(tables)

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
        device = self.tables.device
        noise = randn_tensor((batch_size, self.length), generator, device)
        uniform = torch.special.ndtr(noise)
        tokens = torch.zeros(batch_size, 0, dtype=torch.long, device=device)
        for i in range(self.length):
            logits = self.logits(tokens, class_labels)[:, -1]
            share = torch.softmax(logits / max(temperature, 1e-6), dim=-1)
            index = (share.cumsum(-1) < uniform[:, i : i + 1]).sum(-1, keepdim=True)
            tokens = torch.cat([tokens, index.clamp(max=self.vocabulary - 1)], dim=1)
        return self.embed(tokens.view(batch_size, *self.positions, self.levels))
