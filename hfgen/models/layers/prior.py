"""p(z): what a prior component offers, to an objective, to a pipeline and to evaluation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

Generators = torch.Generator | list[torch.Generator] | None


class Prior(ABC):
    """A density of latents that can be drawn from. A model that is one is a component of its
    own.
    """

    is_reference: bool = False
    """Whether it is the prior that the closed KL of a posterior of its kind refers to."""

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """ln p(z) in nats, [B], of latents [B, *latent]."""

    @abstractmethod
    def sample(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        class_labels: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Latents [batch_size, *latent]; ``temperature`` scales the noise."""

    def tie(self, vae: nn.Module) -> None:  # noqa: B027  most priors have nothing to do here
        """See the encoder of this training step; only a prior that is made of it cares."""


def mixture_log_prob(z: Tensor, weights: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """ln sum_k w_k N(z; mean_k, diag exp(logvar_k)) in nats, [B].

    Args:
        z: [B, D].
        weights: logits [K].
        mean, logvar: [K, D].
    """
    # (z - m)^2 / v as three products of matrices, without a tensor of [B, K, D]
    precision = torch.exp(-logvar)
    square = z.square() @ precision.T - 2 * z @ (mean * precision).T
    constant = (mean.square() * precision + logvar + math.log(2 * math.pi)).sum(1)
    return torch.logsumexp(torch.log_softmax(weights, 0) - 0.5 * (square + constant), dim=1)


def sample_mixture(
    weights: Tensor,
    mean: Tensor,
    logvar: Tensor,
    batch_size: int,
    generator: Generators,
    temperature: float,
) -> Tensor:
    """Draws [batch_size, D] of the mixture; the component comes from the Gumbel maximum.

    Both draws come out of one normal one, so that a list of generators gives the same latent per
    image in any batch.
    """
    components, dim = mean.shape
    noise = randn_tensor((batch_size, components + dim), generator, mean.device, mean.dtype)
    uniform = torch.special.ndtr(noise[:, :components]).clamp(1e-6, 1 - 1e-6)
    gumbel = -torch.log(-torch.log(uniform))
    chosen = (weights + gumbel).argmax(1)
    spread = torch.exp(0.5 * logvar[chosen]) * noise[:, components:]
    return mean[chosen] + temperature * spread
