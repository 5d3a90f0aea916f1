"""An autoregressive prior over the codes of images: text-, class-conditional or neither."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfgen.errors import HfgenError
from hfgen.objectives.base import Batch, Clock, Objective, Phase, detach
from hfgen.rng import Rng


@dataclass(frozen=True, kw_only=True)
class ImageCodes(Objective):
    """Cross-entropy of the codes given the condition (Ramesh et al. 2021, section 2.2).

    Role ``transformer``: a CodeTransformer. Role ``codes``: the frozen autoencoder whose indices
    the batch holds, int64 [B, height, width, levels].

    Args:
        caption_dropout: share of the texts that is replaced by the empty text, for
            classifier-free guidance on the logits.
        label_smoothing: share of the target that is spread over all codes.
    """

    caption_dropout: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("caption_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise HfgenError(f"{name} must be in [0, 1), got {getattr(self, name)}")

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase(name="prior", trains=("transformer",)),)

    def loss(
        self, phase: str, models: Mapping[str, nn.Module], batch: Batch, rng: Rng, clock: Clock
    ) -> tuple[Tensor, dict[str, Tensor]]:
        model: Any = models["transformer"]
        codes = batch["images"].long().flatten(1)
        if codes.shape[1] != model.length or int(codes.max()) >= model.config["num_embeddings"]:
            raise HfgenError(
                f"model.transformer: made for {model.length} codes of "
                f"{model.config['num_embeddings']}, but model.codes gives {codes.shape[1]}, up to "
                f"number {int(codes.max())}"
            )
        logits = model(codes[:, :-1], self._condition(model, batch, rng)).float()
        flat, target = logits.flatten(0, 1), codes.flatten()
        loss = F.cross_entropy(flat, target, label_smoothing=self.label_smoothing)
        nats = F.cross_entropy(flat, target) if self.label_smoothing else loss
        return loss, detach({"loss": loss, "nats_per_code": nats})

    def _condition(self, model: Any, batch: Batch, rng: Rng) -> Tensor | None:
        if model.has_text:
            return drop_captions(batch, "input_ids", rng, self.caption_dropout)
        return batch["labels"] if model.config["num_class_embeds"] is not None else None


def drop_captions(batch: Batch, name: str, rng: Rng, dropout: float) -> Tensor:
    """``batch[name]`` [B, ...] with a share ``dropout`` of the rows replaced by the empty text."""
    rows, null = batch[name], batch[f"null_{name}"]
    if dropout == 0:
        return rows
    drop = rng.rand("caption_dropout", (len(rows),)) < dropout
    return torch.where(drop.view(-1, *[1] * (rows.dim() - 1)), null, rows)
