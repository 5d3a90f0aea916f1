"""The evidence lower bound, the plain autoencoder, and what every objective of a VAE shares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from hfgen.errors import HfgenError
from hfgen.likelihoods import Bernoulli, Likelihood
from hfgen.objectives.base import Batch, Clock, Objective, Phase, detach
from hfgen.objectives.vae_penalties import Code, GaussianLike, Penalty
from hfgen.objectives.vae_spectral import spectral_norms
from hfgen.objectives.vae_symptoms import symptoms
from hfgen.rng import Rng

Models = Mapping[str, nn.Module]


@runtime_checkable
class Reparameterised(Protocol):
    """What our posteriors offer beyond the ``mean`` and ``logvar`` of diffusers' own."""

    @property
    def noise_shape(self) -> torch.Size: ...

    def rsample(self, noise: Tensor) -> tuple[Tensor, Tensor]: ...

    def kl_terms(self) -> Tensor | None: ...


@runtime_checkable
class Hierarchy(Protocol):
    """A VAE whose flat latent is made of groups."""

    @property
    def group_sizes(self) -> list[int]: ...


def label_arguments(vae: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """``class_labels`` for a conditional model, nothing for others (the stock AutoencoderKL)."""
    config: Any = vae.config
    classes = config.get("num_class_embeds")
    if classes is None:
        return {}
    if "labels" not in batch:
        raise HfgenError(
            f"model.vae.num_class_embeds is {classes}, but the data has no labels: leave it unset"
        )
    return {"class_labels": batch["labels"]}


def log_likelihood(likelihood: Likelihood, images: Tensor, params: Tensor) -> Tensor:
    """ln p(x | z) in nats, [B], in the precision of the images, once everything fits."""
    needed = likelihood.channels(images.shape[1])
    if params.shape[1] != needed:
        raise HfgenError(
            f"{type(likelihood).__name__} needs {needed} channels from the decoder for images of "
            f"{images.shape[1]}, got {params.shape[1]}: set model.vae.out_channels to {needed}"
        )
    low, high = (float(bound) for bound in torch.aminmax(images.detach()))
    if low < -1 - 1e-4 or high > 1 + 1e-4:
        raise HfgenError(
            f"{type(likelihood).__name__} needs images in [-1, 1], "
            f"got values in [{low:.4g}, {high:.4g}]"
        )
    return likelihood.log_prob(images, params.to(images.dtype))


def draw(posterior: Any, rng: Rng, samples: int | None = None) -> tuple[Tensor, Tensor]:
    """Latents from q(z|x) and ln q(z|x): [B, *latent] and [B], or [K, B, *latent] and [K, B]."""
    ours = isinstance(posterior, Reparameterised)
    shape = posterior.noise_shape if ours else posterior.mean.shape
    if samples is None:
        noise = rng.randn("eps", shape)
    else:  # drawn with the batch first, as every draw that a split must not change
        noise = rng.randn("eps", (shape[0], samples, *shape[1:])).movedim(1, 0)
    if ours:
        try:
            return posterior.rsample(noise)
        except ValueError as error:  # a model without a density
            raise HfgenError(f"model.vae: {error}") from None
    z = posterior.mean + posterior.std * noise
    nats = -0.5 * (noise.square() + posterior.logvar + math.log(2 * math.pi))
    return z, nats.sum(tuple(range(1 - len(shape), 0)))


def closed_kl_terms(posterior: Any) -> Tensor | None:
    """KL(q(z|x) || p(z)) to the standard prior by latent dimension in nats, [B, D], or None.

    Of a Gaussian to N(0, I): Kingma & Welling 2013, appendix B. None without a closed form.
    """
    if isinstance(posterior, Reparameterised):
        return posterior.kl_terms()
    mean, logvar = posterior.mean.flatten(1), posterior.logvar.flatten(1)
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar)


def check_prior(prior: Any, z: Tensor) -> None:
    """HfgenError where a prior was made, or fitted, for another latent size than z [B, *latent]."""
    has = prior.config.get("latent_shape") or prior.config.get("latent_dim")
    shape = (has,) if isinstance(has, int) else has
    if shape is not None and math.prod(shape) != z[0].numel():
        name = "latent_dim" if isinstance(has, int) else "latent_shape"
        raise HfgenError(
            f"model.prior.{name} is {has}, but the VAE's latents are {list(z.shape[1:])}: make "
            "them equal, or fit the prior anew"
        )


def log_prior(models: Models, z: Tensor) -> Tensor:
    """ln p(z) in nats over the dimensions after the batch: of role ``prior``, else of N(0, I)."""
    if "prior" in models:
        prior: Any = models["prior"]
        check_prior(prior, z)
        return prior.log_prob(z)
    return (-0.5 * (z.square() + math.log(2 * math.pi))).flatten(1).sum(1)


def rate_terms(models: Models, posterior: Any, z: Tensor, log_q: Tensor) -> Tensor:
    """KL(q(z|x) || p(z)) in nats: [B, D] in closed form, else ln q(z|x) - ln p(z) as [B, 1]."""
    prior: Any = models.get("prior")
    if prior is not None:
        check_prior(prior, z)
    closed = prior is None or prior.is_reference
    terms = closed_kl_terms(posterior) if closed else None
    return (log_q - log_prior(models, z)).unsqueeze(1) if terms is None else terms


def tie_prior(models: Models) -> None:
    """Let a prior that lives on the encoder (VampPrior) see the encoder of this step."""
    if "prior" in models:
        prior: Any = models["prior"]
        try:
            prior.tie(models["vae"])
        except ValueError as error:  # made for another latent size, or another kind of VAE
            raise HfgenError(f"model.prior: {error}") from None


def active_units(mean: Tensor) -> Tensor:
    """How many latent dimensions the batch uses: Var_x E[z|x] > 0.01 (Burda et al. 2016, 2.3)."""
    mean = mean.detach().float().flatten(1)
    return (mean.var(0, correction=0) > 0.01).sum()


def unused_spread(posterior: Any) -> Tensor:
    """A sum of what has no part in a loss without noise: DDP wants every parameter in the graph."""
    if not isinstance(posterior, GaussianLike):
        raise HfgenError(
            "objective: an autoencoder without noise takes a VAE with a Gaussian posterior, "
            f"got {type(posterior).__name__}"
        )
    return posterior.logvar.sum()


def require(name: str, value: float, least: float) -> None:
    """HfgenError where an argument of an objective lies below ``least``."""
    if not value >= least:
        raise HfgenError(f"objective.{name} must be at least {least:g}, got {value}")


def balance(vae: Any, terms: Tensor) -> Tensor:
    """Weights [D] of KL terms [B, D] by group, L s_l E[KL_l] / sum_l s_l E[KL_l]; no gradient.

    Vahdat & Kautz 2020, appendix A; s_l is the number of latents in group l of a hierarchy.
    """
    if not isinstance(vae, Hierarchy):
        raise HfgenError(
            f"objective.kl_balance: {type(vae).__name__} has one group of latents; "
            "valid: a hierarchy (LadderVAE)"
        )
    sizes = vae.group_sizes
    use = [group.sum(1).abs().mean() for group in terms.detach().split(sizes, dim=1)]
    share = torch.stack([size * nats for size, nats in zip(sizes, use, strict=True)])
    share = len(sizes) * share / share.sum().clamp(min=1e-12)
    return share.repeat_interleave(torch.tensor(sizes, device=terms.device))


@dataclass(frozen=True, kw_only=True)
class ELBO(Objective):
    """-E_q[ln p(x|z)] + beta KL(q(z|x) || p(z)) (Kingma & Welling 2013, eq. 7).

    Roles: ``vae``, anything with AutoencoderKL's interface, with a flat or image-shaped latent;
    ``prior`` where the recipe has one, else the standard normal. Much of the literature is this
    objective with a weight, a schedule or a penalty:

    - beta-VAE (Higgins et al. 2017): ``beta``;
    - KL warm-up (Bowman et al. 2016): ``kl_warmup_images``; cyclical (Fu et al. 2019):
    ``kl_cycles``;
    - capacity (Burgess et al. 2018, eq. 8): beta |KL - C|, C rising to ``capacity`` nats;
    - free bits (Kingma et al. 2016, eq. 15): ``free_bits``;
    - KL balancing (Vahdat & Kautz 2020, appendix A): ``kl_balance``;
    - beta-TCVAE, DIP-VAE, InfoVAE, MS-SSIM: ``penalty``.

    Args:
        likelihood: p(x | decoder output).
        beta: weight of the KL.
        kl_warmup_images: the weight rises linearly from 0 to ``beta`` over this many images.
        kl_cycles: that many times in the run, the weight rises to ``beta`` over half a cycle.
        capacity: nats that the KL is pulled to; 0 for none. The KL is averaged over the rows at
            hand before the absolute value, as in the paper.
        capacity_images: the capacity rises linearly from 0 over this many images.
        free_bits: nats that each latent dimension may use at no cost, per image (the paper averages
            over the batch first; per image, splitting a batch changes nothing).
        kl_balance: while the KL's weight is below ``beta``, weigh the groups of a hierarchy by
            their size and KL, L s_l E[KL_l] / sum_l s_l E[KL_l], so that no group is left unused;
            over the rows at hand.
        spectral: weight of the sum of the weights' largest singular values.
        penalty: a further term on the latents.
        learn_prior: train the role ``prior`` as well.
    """

    likelihood: Likelihood = field(default_factory=Bernoulli)
    beta: float = 1.0
    kl_warmup_images: int = 0
    kl_cycles: int = 0
    capacity: float = 0.0
    capacity_images: int = 0
    free_bits: float = 0.0
    kl_balance: bool = False
    spectral: float = 0.0
    penalty: Penalty | None = None
    learn_prior: bool = False

    def __post_init__(self) -> None:
        for name in ("beta", "kl_warmup_images", "kl_cycles", "capacity", "free_bits"):
            require(name, getattr(self, name), 0)
        require("capacity_images", self.capacity_images, 0)
        require("spectral", self.spectral, 0)
        if self.kl_cycles and self.kl_warmup_images:
            raise HfgenError("objective: kl_cycles and kl_warmup_images exclude each other")

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase(name="vae", trains=("vae", "prior") if self.learn_prior else ("vae",)),)

    def symptoms(self, terms: Mapping[str, float], clock: Clock) -> dict[str, str]:
        return symptoms(terms, clock)

    def _balances(self, clock: Clock) -> bool:
        return self.kl_balance and self.kl_weight(clock) < self.beta

    def kl_weight(self, clock: Clock) -> float:
        """The weight of the KL now."""
        if self.kl_cycles:
            position = clock.progress() * self.kl_cycles % 1
            return self.beta * min(2 * position, 1.0)
        return self.beta * clock.ramp(self.kl_warmup_images)

    def loss(
        self, phase: str, models: Models, batch: Batch, rng: Rng, clock: Clock
    ) -> tuple[Tensor, dict[str, Tensor]]:
        vae: Any = models["vae"]
        images, labels = batch["images"], label_arguments(vae, batch)
        tie_prior(models)
        posterior = vae.encode(images, **labels).latent_dist
        z, log_q = draw(posterior, rng)
        params = vae.decode(z, **labels).sample
        reconstruction = -log_likelihood(self.likelihood, images, params)
        terms = rate_terms(models, posterior, z, log_q)
        weighted = terms * balance(vae, terms) if self._balances(clock) else terms
        rate = weighted.clamp(min=self.free_bits).sum(1) if self.free_bits else weighted.sum(1)
        if self.capacity:
            rate = (rate.mean() - self.capacity * clock.ramp(self.capacity_images)).abs()
        loss = reconstruction.mean() + self.kl_weight(clock) * rate.mean()
        kl = terms.sum(1)
        logs = {"reconstruction": reconstruction, "kl": kl, "elbo": -(reconstruction + kl)}
        if self.penalty is not None:
            code = Code(
                images,
                posterior,
                z,
                params,
                lambda z: vae.decode(z, **labels).sample,
                self.likelihood.mean,
            )
            penalty = self.penalty(code, rng.fork("penalty"))
            loss = loss + penalty
            logs["penalty"] = penalty
        if self.spectral:
            loss = loss + self.spectral * spectral_norms(vae)
        logs["active_units"] = active_units(posterior.mode())
        return loss, detach({"loss": loss, **logs})


@dataclass(frozen=True, kw_only=True)
class Autoencoder(Objective):
    """-ln p(x | z = mode of q(z|x)), without noise, plus a penalty: AE, WAE and RAE.

    WAE-MMD (Tolstikhin et al. 2018) is ``penalty: mmd``; RAE-L2 and RAE-GP (Ghosh et al. 2020) are
    ``penalty: rae`` (RAE-L2 with the optimizer's weight decay). Such a model has no prior but one
    that is fitted to its latents, at the same time (``learn_prior``) or afterwards.

    Args:
        likelihood: p(x | decoder output).
        penalty: a term on the latents.
        learn_prior: train the role ``prior`` on the latents, in a phase of its own.
    """

    likelihood: Likelihood = field(default_factory=Bernoulli)
    penalty: Penalty | None = None
    learn_prior: bool = False

    @property
    def phases(self) -> tuple[Phase, ...]:
        prior = (Phase(name="prior", trains=("prior",)),) if self.learn_prior else ()
        return (Phase(name="vae", trains=("vae",)), *prior)

    def loss(
        self, phase: str, models: Models, batch: Batch, rng: Rng, clock: Clock
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if phase == "prior":
            return self._prior(models, batch)
        vae: Any = models["vae"]
        images, labels = batch["images"], label_arguments(vae, batch)
        posterior = vae.encode(images, **labels).latent_dist
        z = posterior.mode()
        params = vae.decode(z, **labels).sample
        reconstruction = -log_likelihood(self.likelihood, images, params).mean()
        loss = reconstruction + 0 * unused_spread(posterior)
        logs = {"reconstruction": reconstruction, "active_units": active_units(z)}
        if self.penalty is not None:
            code = Code(
                images,
                posterior,
                z,
                params,
                lambda z: vae.decode(z, **labels).sample,
                self.likelihood.mean,
            )
            penalty = self.penalty(code, rng.fork("penalty"))
            loss = loss + penalty
            logs["penalty"] = penalty
        return loss, detach({"loss": loss, **logs})

    def symptoms(self, terms: Mapping[str, float], clock: Clock) -> dict[str, str]:
        return symptoms(terms, clock)

    def _prior(self, models: Models, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        vae: Any = models["vae"]
        with torch.no_grad():
            z = vae.encode(batch["images"], **label_arguments(vae, batch)).latent_dist.mode()
        loss = -log_prior(models, z).mean()
        return loss, detach({"prior": loss})
