"""Class labels as one-hot vectors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def one_hot_labels(
    class_labels: Tensor | None, num_class_embeds: int | None, batch: int, like: Tensor
) -> Tensor:
    """Labels [B] int64 -> [B, num_class_embeds] in the dtype of ``like``; [B, 0] for a model
    without classes.

    Raises:
        ValueError: labels for an unconditional model, none for a conditional one, or one out of
        range.
    """
    if num_class_embeds is None:
        if class_labels is not None:
            raise ValueError(
                "class_labels were given to a model without classes (num_class_embeds=None)"
            )
        return torch.zeros(batch, 0, dtype=like.dtype, device=like.device)
    if class_labels is None:
        raise ValueError(
            f"class_labels are required: the model has num_class_embeds={num_class_embeds}"
        )
    labels = class_labels.to(device=like.device, dtype=torch.int64).expand(batch)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_class_embeds:
        raise ValueError(f"class_labels must be in [0, {num_class_embeds}), got [{low}, {high}]")
    return F.one_hot(labels, num_class_embeds).to(like.dtype)
