"""Contrastive language-image pre-training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from hfgen.errors import HfgenError
from hfgen.objectives.base import Batch, Clock, Objective, Phase, detach
from hfgen.rng import Rng

MAX_SCALE = math.log(100.0)
"""Bound of the learned inverse temperature's logarithm (Radford et al. 2021, section 2.5)."""


@dataclass(frozen=True, kw_only=True)
class Contrastive(Objective):
    """Symmetric cross-entropy over the cosine similarities of a batch (Radford et al. 2021, 2.3).

    Role ``clip``: a CLIPModel of transformers. Every pair of the *global* batch counts: processes
    gather one another's embeddings with their gradients, so any number of processes gives the same
    result; micro-batches would leave pairs out, so ``gradient_accumulation_steps`` must be 1.

    Equal captions in a batch are no negatives of one another: the target is shared among them.
    """

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase(name="contrast", trains=("clip",)),)

    def loss(
        self, phase: str, models: Mapping[str, nn.Module], batch: Batch, rng: Rng, clock: Clock
    ) -> tuple[Tensor, dict[str, Tensor]]:
        clip: Any = models["clip"]
        ids = batch["input_ids"]
        text = F.normalize(_embedding(clip.get_text_features(input_ids=ids)).float(), dim=-1)
        image = clip.get_image_features(pixel_values=batch["images"])
        image = F.normalize(_embedding(image).float(), dim=-1)
        texts, images, tokens = gather(text), gather(image), gather(ids)
        if clock.total_batch_size and len(texts) != clock.total_batch_size:
            raise HfgenError(
                f"training.gradient_accumulation_steps: a contrastive loss needs all "
                f"{clock.total_batch_size} pairs of the batch at once, got {len(texts)}; set it "
                "to 1"
            )
        same = (ids[:, None] == tokens[None]).all(-1).float()
        target = same / same.sum(1, keepdim=True)
        scale = clip.logit_scale.clamp(max=MAX_SCALE).exp()
        per_image = F.cross_entropy(scale * image @ texts.T, target)
        per_text = F.cross_entropy(scale * text @ images.T, target)
        loss = (per_image + per_text) / 2
        found = (text @ images.T).argmax(1)
        right = same.gather(1, found[:, None])
        return loss, detach({"loss": loss, "accuracy": right, "scale": scale})


def _embedding(output: Any) -> Tensor:
    """The projected embedding: transformers 5 wraps what earlier versions returned."""
    return output if isinstance(output, Tensor) else output.pooler_output


def gather(rows: Tensor) -> Tensor:
    """Rows of all processes [B, ...], in order; gradients flow back to where they came from."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    if not rows.is_floating_point():
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(rows.contiguous()))
