"""Bounds from several samples of the posterior: IWAE and its relatives.

All of them weigh the gradients of ln w_i, w_i = p(x, z_i) / q(z_i | x). They differ in the weights,
and some give the encoder others than the decoder: so each is two small functions.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from hfgen.errors import HfgenError
from hfgen.likelihoods import Bernoulli, Likelihood
from hfgen.objectives.base import Batch, Clock, Objective, Phase, detach
from hfgen.objectives.vae import (
    Models,
    active_units,
    draw,
    label_arguments,
    log_likelihood,
    log_prior,
    require,
    tie_prior,
)
from hfgen.objectives.vae_symptoms import symptoms
from hfgen.rng import Rng


def importance_bound(log_w: Tensor) -> Tensor:
    """ln (1/K sum_k w_k) over the first dimension (Burda et al. 2016, eq. 8)."""
    return torch.logsumexp(log_w, dim=0) - math.log(len(log_w))


@dataclass(frozen=True, kw_only=True)
class MultiSampleBound(Objective):
    """What the bounds share. Role ``vae``, and ``prior`` where the recipe has one.

    Args:
        likelihood: p(x | decoder output).
        num_samples: K, latents per image.
        learn_prior: train the role ``prior`` as well.
    """

    splits_gradient: ClassVar[bool] = False
    """Whether the encoder's gradient weighs the samples by ``encoder_weights``."""
    stops_score: ClassVar[bool] = False
    """Whether the encoder leaves out the score, d ln q / d(its parameters) at a fixed z."""

    likelihood: Likelihood = field(default_factory=Bernoulli)
    num_samples: int = 5
    learn_prior: bool = False

    def __post_init__(self) -> None:
        require("num_samples", self.num_samples, 1)

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase(name="vae", trains=("vae", "prior") if self.learn_prior else ("vae",)),)

    def symptoms(self, terms: Mapping[str, float], clock: Clock) -> dict[str, str]:
        return symptoms(terms, clock)

    @property
    def draws(self) -> int:
        """Latents per image in all."""
        return self.num_samples

    @abstractmethod
    def bound(self, log_w: Tensor) -> Tensor:
        """The decoder's bound [B] from ln w [draws, B]; its gradient weighs those of ln w."""

    def encoder_weights(self, log_w: Tensor) -> Tensor:
        """The encoder's weights [draws, B], where ``splits_gradient``."""
        raise NotImplementedError(f"{type(self).__name__} has one gradient for all parameters")

    def loss(
        self, phase: str, models: Models, batch: Batch, rng: Rng, clock: Clock
    ) -> tuple[Tensor, dict[str, Tensor]]:
        vae: Any = models["vae"]
        images, labels = batch["images"], label_arguments(vae, batch)
        tie_prior(models)
        posterior = vae.encode(images, **labels).latent_dist
        z, log_q = draw(posterior, rng, self.draws)
        if self.stops_score:
            log_q = posterior.detach().log_prob(z)
        path = z.detach().requires_grad_() if self.splits_gradient else z
        log_p = self._log_joint(models, images, labels, path)
        log_w = log_p - log_q
        if self.splits_gradient:
            loss = self._split(z, path, log_p, log_q)
        else:
            loss = -self.bound(log_w).mean()
        value = self.bound(log_w.detach())
        logs = {"loss": -value, "bound": value, "elbo": log_w.detach().mean(0)}
        logs["active_units"] = active_units(posterior.mode())
        loss = loss + (-value.mean() - loss).detach()  # reported as the bound, whatever the weights
        return loss, detach(logs)

    def _log_joint(self, models: Models, images: Tensor, labels: Any, z: Tensor) -> Tensor:
        """ln p(x, z) for z [K, B, *latent] -> [K, B]."""
        k, rows = z.shape[:2]
        repeated = {name: value.repeat(k) for name, value in labels.items()}
        flat = z.flatten(0, 1)
        vae: Any = models["vae"]
        params = vae.decode(flat, **repeated).sample
        many = images.expand(k, *images.shape).flatten(0, 1)
        log_p = log_likelihood(self.likelihood, many, params) + log_prior(models, flat)
        return log_p.view(k, rows)

    def _split(self, z: Tensor, path: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
        """A loss whose gradient follows ``bound`` in the decoder and ``encoder_weights`` beyond z.

        ``path`` is z cut from the encoder. The encoder's part is sum_i c_i d ln w_i, of which
        d ln p / d z is computed once and carried on through z.
        """
        weights = self.encoder_weights((log_p - log_q).detach())
        (slope,) = torch.autograd.grad((weights * log_p).sum(), path, retain_graph=True)
        decoder = self.bound(log_p - log_q.detach()).mean()
        encoder = ((slope * z).sum() - (weights * log_q).sum()) / log_q.shape[1]
        return -(decoder + encoder)


@dataclass(frozen=True, kw_only=True)
class IWAE(MultiSampleBound):
    """Importance-weighted autoencoder (Burda et al. 2016, eq. 8)."""

    def bound(self, log_w: Tensor) -> Tensor:
        return importance_bound(log_w)


@dataclass(frozen=True, kw_only=True)
class MIWAE(MultiSampleBound):
    """Mean of M importance-weighted bounds of K samples each (Rainforth et al. 2018, eq. 7).

    Args:
        num_groups: M.
    """

    num_groups: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        require("num_groups", self.num_groups, 1)

    @property
    def draws(self) -> int:
        return self.num_groups * self.num_samples

    def bound(self, log_w: Tensor) -> Tensor:
        return importance_bound(log_w.unflatten(0, (self.num_samples, self.num_groups))).mean(0)


@dataclass(frozen=True, kw_only=True)
class PIWAE(MultiSampleBound):
    """Decoder by IWAE with M K samples, encoder by MIWAE (Rainforth et al. 2018, eq. 9 and 10).

    Args:
        num_groups: M.
    """

    splits_gradient: ClassVar[bool] = True

    num_groups: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        require("num_groups", self.num_groups, 1)

    @property
    def draws(self) -> int:
        return self.num_groups * self.num_samples

    def bound(self, log_w: Tensor) -> Tensor:
        return importance_bound(log_w)

    def encoder_weights(self, log_w: Tensor) -> Tensor:
        grouped = log_w.unflatten(0, (self.num_samples, self.num_groups))
        return (torch.softmax(grouped, dim=0) / self.num_groups).flatten(0, 1)


@dataclass(frozen=True, kw_only=True)
class CIWAE(MultiSampleBound):
    """beta ELBO + (1 - beta) IWAE (Rainforth et al. 2018, eq. 8).

    Args:
        beta: in [0, 1].
    """

    beta: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta <= 1:
            raise HfgenError(f"objective.beta: ciwae interpolates, so in [0, 1], got {self.beta}")

    def bound(self, log_w: Tensor) -> Tensor:
        return self.beta * log_w.mean(0) + (1 - self.beta) * importance_bound(log_w)


@dataclass(frozen=True, kw_only=True)
class DReG(MultiSampleBound):
    """IWAE with the doubly reparameterised encoder gradient (Tucker et al. 2019, eq. 8).

    The encoder's weights are squared and the score is left out: unbiased for the same bound, and
    its signal does not vanish as K grows. Needs a posterior with ``detach`` and ``log_prob``.
    """

    splits_gradient: ClassVar[bool] = True
    stops_score: ClassVar[bool] = True

    def bound(self, log_w: Tensor) -> Tensor:
        return importance_bound(log_w)

    def encoder_weights(self, log_w: Tensor) -> Tensor:
        return torch.softmax(log_w, dim=0).square()


@dataclass(frozen=True, kw_only=True)
class StickingTheLanding(MultiSampleBound):
    """The ELBO from K samples without the score (Roeder et al. 2017, section 3).

    The gradient's variance vanishes as q(z|x) approaches p(z|x). Needs a posterior with ``detach``
    and ``log_prob``.
    """

    stops_score: ClassVar[bool] = True
    num_samples: int = 1

    def bound(self, log_w: Tensor) -> Tensor:
        return log_w.mean(0)
