"""Adversarial losses as pure functions of logits.

``discriminator(real, fake)`` and ``generator(real, fake)`` take logits [B] of real and of generated
images and return the loss of each row, [B]: a mean over rows is then the same however the batch is
split. ``uses_real`` says whether the generator's loss needs the logits of real images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

Rows = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class AdversarialLoss:
    """A pair of losses; see the module's docstring."""

    discriminator: Rows
    generator: Rows
    uses_real: bool = False


def logistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """-log sigmoid(D(x)) - log(1 - sigmoid(D(G(z)))) (Goodfellow et al. 2014, equation 1)."""
    return F.softplus(-real) + F.softplus(fake)


def nonsaturating_generator(real: Tensor, fake: Tensor) -> Tensor:
    """-log sigmoid(D(G(z))) (Goodfellow et al. 2014, section 3, last paragraph)."""
    return F.softplus(-fake)


LOSSES: dict[str, AdversarialLoss] = {
    "nonsaturating": AdversarialLoss(
        discriminator=logistic_discriminator, generator=nonsaturating_generator
    ),
}
"""Names for recipes."""
