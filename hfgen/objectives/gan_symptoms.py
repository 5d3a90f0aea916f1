"""What the logged means of adversarial training say is going wrong."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hfgen.objectives.base import Clock
from hfgen.objectives.gan_losses import LOSSES

SETTLED = 10_000
"""Images before anything is said: an untrained generator is grey, and its discriminator wins."""
COLLAPSED, BY_HEART, TOO_FAR = 0.4, 0.9, 20.0
"""Diversity below, sign of real logits above, distance of the logits above which it is said."""


def symptoms(terms: Mapping[str, float], clock: Clock, adversarial_loss: str) -> dict[str, str]:
    """Name of the trouble -> one line, for ``Objective.symptoms``.

    ``overfitting`` is r_t of Karras et al. 2020 (ADA, equation 1), read only where the sign of a
    logit means something; the distance of the logits where it is no distance of distributions.
    """
    found: dict[str, str] = {}
    if clock.images_seen < SETTLED:
        return found
    diversity = terms.get("diversity", 1.0)
    if diversity < COLLAPSED:
        found["collapse"] = (
            f"generated images differ by {diversity:.2f} of what real ones do; more R1, a lower "
            f"learning rate, mode_seeking, or labels through conditional batch norm"
        )
    sign = terms.get("overfitting", 0.0)
    if sign > BY_HEART and LOSSES[adversarial_loss].signed:
        found["discriminator overfitting"] = (
            f"r_t is {sign:.2f}: it tells nearly all training images from generated ones; more R1, "
            f"augmentation (ada, diffaugment), or more data"
        )
    distance = terms.get("logit_real", 0.0) - terms.get("logit_fake", 0.0)
    if distance > TOO_FAR and adversarial_loss != "wasserstein":
        found["discriminator too strong"] = (
            f"the logits are {distance:.0f} apart: the generator learns next to nothing; more R1 "
            f"or a lower learning rate of the discriminator"
        )
    return found


def diversity(
    fake: Tensor, real: Tensor, labels: Tensor | None, codes: Tensor | None = None
) -> Tensor:
    """Mean distance of generated images over that of real ones, a scalar.

    Of images of one class with ``labels`` [B], since a generator that knows one image of each class
    looks diverse otherwise; so it is with ``codes`` [B], of a categorical code, which real images
    do not have: any two of those are compared then.
    """
    return spread(fake, codes if labels is None else labels) / spread(real, labels)


def spread(images: Tensor, groups: Tensor | None) -> Tensor:
    """Mean absolute difference of two images, of one group of ``groups`` [B] where any has two."""
    images = images.detach()
    order = torch.arange(len(images), device=images.device)
    pairs = torch.ones(len(images), device=images.device)
    if groups is not None:
        order = groups.argsort(stable=True)
        same = (groups[order] == groups[order].roll(1)).float()
        pairs = torch.where(same.sum() > 0, same, pairs)  # no group twice: any two images
    rows = images[order]
    return (rows - rows.roll(1, 0)).abs().flatten(1).mean(1).float() @ pairs / pairs.sum()
