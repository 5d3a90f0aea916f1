"""p(x | decoder output): objects with ``log_prob``, ``sample`` and ``mean``.

Images go in and come out in [-1, 1]; every likelihood knows its own scale. The decoder's output, ``params``, has
``channels(c)`` channels for an image of ``c``. This file needs only torch: the export of a pipeline inlines it, so that
a shared model still knows what its decoder's output means.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


class Likelihood(ABC):
    """Distribution of an image given a decoder's output. Concrete ones are frozen dataclasses."""

    continuous: bool = True
    """A density on continuous pixels (true), or probabilities of discrete values (false)."""

    def channels(self, image_channels: int) -> int:
        """How many channels the decoder must put out for an image of ``image_channels``."""
        return image_channels

    @abstractmethod
    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        """Log-probability of each image, in nats, summed over its dimensions.

        Args:
            x: images [B, C, H, W] in [-1, 1].
            params: decoder output [B, channels(C), H, W].
        Returns:
            [B].
        """

    @abstractmethod
    def mean(self, params: Tensor) -> Tensor:
        """Expected image, [-1, 1]."""

    @abstractmethod
    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One image drawn from the distribution, [-1, 1]."""


@dataclass(frozen=True, kw_only=True)
class Bernoulli(Likelihood):
    """Independent Bernoulli pixels on {0, 1} = (x + 1) / 2 (Kingma & Welling 2013, appendix C.1).

    Grey values in between count as probabilities (the cross-entropy of PyTorch's classic VAE example): then the result is
    an expected log-likelihood of the binarised image, not a density.

    Args:
        logits: whether ``params`` are logits (true) or probabilities from a sigmoid (false).
    """

    logits: bool = True
    continuous = False

    def _logits(self, params: Tensor) -> Tensor:
        return params if self.logits else torch.logit(params, eps=1e-7)

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        target = (x + 1) / 2
        nats = F.binary_cross_entropy_with_logits(self._logits(params), target, reduction="none")
        return -nats.flatten(1).sum(1)

    def mean(self, params: Tensor) -> Tensor:
        return 2 * torch.sigmoid(self._logits(params)) - 1

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        probability = torch.sigmoid(self._logits(params))
        return 2 * torch.bernoulli(probability, generator=generator) - 1


@dataclass(frozen=True, kw_only=True)
class Gaussian(Likelihood):
    """Independent normal pixels of one fixed standard deviation, in units of the [-1, 1] scale.

    log N(x; mu, sigma^2) = -(x - mu)^2 / (2 sigma^2) - ln sigma - ln(2 pi) / 2
    """

    std: float = 1.0

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ValueError(f"std must be positive, got {self.std}")

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        z = (x - params) / self.std
        constant = math.log(self.std) + 0.5 * math.log(2 * math.pi)
        return (-0.5 * z * z - constant).flatten(1).sum(1)

    def mean(self, params: Tensor) -> Tensor:
        return params.clamp(-1, 1)

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn(params.shape, generator=generator, device=params.device)
        return (params + self.std * noise).clamp(-1, 1)


LIKELIHOODS: dict[str, type[Likelihood]] = {"bernoulli": Bernoulli, "gaussian": Gaussian}
"""Names for recipes and for a pipeline's config."""


def likelihood_from_config(config: dict) -> Likelihood:
    """``{"type": "gaussian", "std": 0.1}`` -> ``Gaussian(std=0.1)``; ValueError on an unknown type."""
    options = dict(config)
    kind = options.pop("type", None)
    if kind not in LIKELIHOODS:
        raise ValueError(f"unknown likelihood {kind!r}; known: {', '.join(sorted(LIKELIHOODS))}")
    return LIKELIHOODS[kind](**options)


def likelihood_to_config(likelihood: Likelihood) -> dict:
    """The inverse of ``likelihood_from_config``: plain JSON values."""
    kind = next(name for name, cls in LIKELIHOODS.items() if type(likelihood) is cls)
    return {"type": kind, **asdict(likelihood)}  # type: ignore[call-overload]
