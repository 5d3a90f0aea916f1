"""Adversarial losses as pure functions of logits.

``discriminator(real, fake)`` and ``generator(real, fake)`` take logits [B] of real and of generated
images and return the loss of each row, [B]: a mean over rows is then the same however the batch is
split, except for the losses that compare every real image with every generated one
(``couples_rows``). ``uses_real`` says whether the generator's loss looks at real images at all.
``signed`` says whether the sign of a logit means "real" or "generated". Those ``of_classes`` take
class logits [B, K + 1], the last for "generated", and labels [B] besides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Rows = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class AdversarialLoss:
    """A pair of losses; see the module's docstring."""

    discriminator: Rows
    generator: Rows
    uses_real: bool = False
    couples_rows: bool = False
    of_classes: bool = False
    signed: bool = False


def logistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """-log sigmoid(D(x)) - log(1 - sigmoid(D(G(z)))) (Goodfellow et al. 2014, equation 1)."""
    return F.softplus(-real) + F.softplus(fake)


def minimax_generator(real: Tensor, fake: Tensor) -> Tensor:
    """log(1 - sigmoid(D(G(z)))) (Goodfellow et al. 2014, equation 1); saturates when D wins."""
    return -F.softplus(fake)


def nonsaturating_generator(real: Tensor, fake: Tensor) -> Tensor:
    """-log sigmoid(D(G(z))) (Goodfellow et al. 2014, section 3, last paragraph)."""
    return F.softplus(-fake)


def least_squares_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """(D(x) - 1)^2 / 2 + D(G(z))^2 / 2 (Mao et al. 2017, equation 9)."""
    return 0.5 * (real - 1).square() + 0.5 * fake.square()


def least_squares_generator(real: Tensor, fake: Tensor) -> Tensor:
    """(D(G(z)) - 1)^2 / 2 (Mao et al. 2017, equation 9)."""
    return 0.5 * (fake - 1).square()


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """max(0, 1 - D(x)) + max(0, 1 + D(G(z))) (Miyato et al. 2018, equation 16)."""
    return F.relu(1 - real) + F.relu(1 + fake)


def wasserstein_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """D(G(z)) - D(x) (Arjovsky et al. 2017, equation 2); D must be kept Lipschitz."""
    return fake - real


def critic_generator(real: Tensor, fake: Tensor) -> Tensor:
    """-D(G(z)) (Arjovsky et al. 2017; Miyato et al. 2018, equation 17)."""
    return -fake


def relativistic_pairing_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """softplus(-(D(x) - D(G(z)))), row by row (Huang et al. 2024, R3GAN, equation 2)."""
    return F.softplus(fake - real)


def relativistic_pairing_generator(real: Tensor, fake: Tensor) -> Tensor:
    """softplus(-(D(G(z)) - D(x))), row by row (Huang et al. 2024, R3GAN, equation 2)."""
    return F.softplus(real - fake)


def relativistic_average_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """RaSGAN: each side against the other's mean (Jolicoeur-Martineau 2018, section 4.2)."""
    return F.softplus(-(real - fake.mean())) + F.softplus(fake - real.mean())


def relativistic_average_generator(real: Tensor, fake: Tensor) -> Tensor:
    """The same with the sides exchanged (Jolicoeur-Martineau 2018, section 4.2)."""
    return F.softplus(-(fake - real.mean())) + F.softplus(real - fake.mean())


def dual_contrastive_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Pick each real image out of all generated ones, and the reverse (Yu et al. 2021, equation 5).

    -log(e^D(x) / (e^D(x) + sum_z e^D(G(z)))) - log(e^-D(G(z)) / (e^-D(G(z)) + sum_x e^-D(x)))
    """
    among_fakes = torch.logaddexp(real, fake.logsumexp(0)) - real
    among_reals = torch.logaddexp(-fake, (-real).logsumexp(0)) + fake
    return among_fakes + among_reals


def dual_contrastive_generator(real: Tensor, fake: Tensor) -> Tensor:
    """The generator maximises what the discriminator minimises (Yu et al. 2021, equation 5)."""
    return -dual_contrastive_discriminator(real, fake)


def multi_hinge(class_logits: Tensor, labels: Tensor) -> Tensor:
    """Crammer-Singer hinge of each row, [B]: max(0, 1 - s_y + max_{k != y} s_k).

    Args:
        class_logits: [B, K + 1], the last class is "generated" (Kavalerov et al. 2019, equation 4).
        labels: [B] int64.
    """
    chosen = class_logits.gather(1, labels[:, None]).squeeze(1)
    others = class_logits.scatter(1, labels[:, None], -math.inf).amax(1)
    return F.relu(1 - chosen + others)


def multi_hinge_discriminator(real: Tensor, fake: Tensor, labels: Tensor) -> Tensor:
    """Real images are of their class, the others of the last (Kavalerov et al. 2019, MHingeGAN)."""
    generated = torch.full_like(labels, fake.shape[1] - 1)
    return multi_hinge(real, labels) + multi_hinge(fake, generated)


def multi_hinge_generator(real: Tensor, fake: Tensor, labels: Tensor) -> Tensor:
    """Generated images are to be of their class (Kavalerov et al. 2019, MHingeGAN)."""
    return multi_hinge(fake, labels)


_NONSATURATING = AdversarialLoss(
    discriminator=logistic_discriminator, generator=nonsaturating_generator, signed=True
)

LOSSES: dict[str, AdversarialLoss] = {
    "minimax": AdversarialLoss(
        discriminator=logistic_discriminator, generator=minimax_generator, signed=True
    ),
    "nonsaturating": _NONSATURATING,
    "logistic": _NONSATURATING,  # StyleGAN's name for it
    "least_squares": AdversarialLoss(
        discriminator=least_squares_discriminator, generator=least_squares_generator
    ),
    "hinge": AdversarialLoss(
        discriminator=hinge_discriminator, generator=critic_generator, signed=True
    ),
    "wasserstein": AdversarialLoss(
        discriminator=wasserstein_discriminator, generator=critic_generator
    ),
    "relativistic_pairing": AdversarialLoss(
        discriminator=relativistic_pairing_discriminator,
        generator=relativistic_pairing_generator,
        uses_real=True,
    ),
    "relativistic_average": AdversarialLoss(
        discriminator=relativistic_average_discriminator,
        generator=relativistic_average_generator,
        uses_real=True,
        couples_rows=True,
    ),
    "dual_contrastive": AdversarialLoss(
        discriminator=dual_contrastive_discriminator,
        generator=dual_contrastive_generator,
        uses_real=True,
        couples_rows=True,
    ),
    "multi_hinge": AdversarialLoss(
        discriminator=multi_hinge_discriminator,
        generator=multi_hinge_generator,
        of_classes=True,
        signed=True,
    ),
}
"""Names for recipes."""
