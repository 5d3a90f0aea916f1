"""Log-likelihood of images on one scale for every family: nats, and bits per 8-bit dimension.

Every result names its bound, its number of samples, how pixels were dequantised, how often the
network ran and its standard error. A bound is one class and one line in ``BOUNDS``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from hfgen.data import Source
from hfgen.errors import HfgenError, one_of
from hfgen.evaluation.annealing import Path
from hfgen.evaluation.bound import BIN, BINARY, DENSITY, DISCRETE, GREY, Bound, Pixels
from hfgen.evaluation.conditions import (
    Condition,
    check_classes,
    label_arguments,
    network_classes,
)
from hfgen.evaluation.likelihood_diffusion import (
    AdaptiveProbabilityFlowODE,
    ProbabilityFlowODE,
    VariationalBound,
)
from hfgen.rng import Rng

ROWS = 4096
"""Latents that a decoder sees at once when an image has many samples."""


@dataclass(frozen=True, kw_only=True)
class LogLikelihood:
    """Mean log-likelihood of images.

    Attributes:
        bound: what was computed: ``elbo``, ``iw``, ...; all of them bound ln p(x) from below in
            expectation, unless the bound says otherwise.
        k: samples per image.
        nats: mean of ln p(x) per image, of the measure that ``pixels`` names.
        bits_per_dim: -log2 p of the 8-bit image per dimension; None for a cross-entropy, which is
            no code length of the image.
        standard_error: of ``nats``, over the images.
        pixels: what p is a probability or density of, and how pixels were dequantised.
        condition: what p is given: nothing, the class of each image, or the null label.
        nfe: network evaluations per image.
        count, dimensions: images, and pixels times channels.
    """

    bound: str
    k: int
    nats: float
    bits_per_dim: float | None
    standard_error: float
    pixels: str
    condition: Condition
    nfe: int
    count: int
    dimensions: int


class ImportanceWeighted(Bound):
    """ln 1/K sum_k p(x, z_k) / q(z_k | x), z_k ~ q (Burda et al. 2016, eq. 8)."""

    def condition(self, pipeline: Any, num_classes: int | None) -> Condition:
        if "vae" not in pipeline.components or not hasattr(pipeline, "likelihood"):
            raise HfgenError(_no_likelihood(pipeline, "a VAE with a likelihood"))
        if "quantizer" in pipeline.vae.config or pipeline.config.get("deterministic"):
            raise HfgenError(
                f"{type(pipeline.vae).__name__} has no such likelihood: its encoder is "
                "deterministic; valid: metrics of samples and reconstructions"
            )
        known = network_classes(pipeline.vae)
        check_classes(type(pipeline.vae).__name__, known, num_classes)
        return Condition.NONE if known is None else Condition.CLASS

    def pixels(self, pipeline: Any, images: Tensor) -> Pixels:
        if pipeline.likelihood.continuous:
            return DENSITY
        if bool((images.abs() == 1).all()):
            return BINARY
        # by name, since an exported pipeline brings its own copy of the class
        return GREY if type(pipeline.likelihood).__name__ == "Bernoulli" else DISCRETE

    def log_prob(
        self, pipeline: Any, images: Tensor, k: int, rng: Rng, labels: Tensor | None = None
    ) -> Tensor:
        return torch.logsumexp(self.log_weights(pipeline, images, k, rng, labels), 0) - math.log(k)

    def log_weights(
        self, pipeline: Any, images: Tensor, k: int, rng: Rng, labels: Tensor | None
    ) -> Tensor:
        """ln p(x, z_k) - ln q(z_k | x), [K, B] float64; the encoder runs once."""
        given = label_arguments(pipeline.vae, labels)
        posterior = pipeline.vae.encode(images, **given).latent_dist
        draws = max(1, ROWS // len(images))
        parts = []
        for start in range(0, k, draws):
            count = min(draws, k - start)
            noise = torch.stack(
                [rng.randn(f"eps{start + s}", _noise_shape(posterior)) for s in range(count)]
            )
            z, log_q = _rsample(posterior, noise)
            flat = z.flatten(0, 1)
            many = {name: value.repeat(count) for name, value in given.items()}
            params = pipeline.vae.decode(flat, **many).sample
            repeated = images.expand(count, *images.shape).flatten(0, 1)
            log_joint = pipeline.likelihood.log_prob(repeated, params) + _log_prior(pipeline, flat)
            parts.append(log_joint.double().view(count, -1) - log_q.double())
        return torch.cat(parts)


class Elbo(ImportanceWeighted):
    """E_q ln p(x, z) / q(z | x) with K samples of z averaged (Kingma & Welling 2013, eq. 2)."""

    def log_prob(
        self, pipeline: Any, images: Tensor, k: int, rng: Rng, labels: Tensor | None = None
    ) -> Tensor:
        return self.log_weights(pipeline, images, k, rng, labels).mean(0)


class Annealed(ImportanceWeighted):
    """ln 1/K sum_k w_k of K annealed chains from the prior to p(z | x) (Wu et al. 2017).

    It needs no encoder, so it tells how much of the gap of the other bounds is the encoder's.
    Chains move by Hamiltonian transitions whose step sizes one more chain has tuned beforehand.
    """

    by_default = False  # thousands of gradients for each image
    num_temperatures = 400
    num_leapfrog = 5

    def nfe(self, pipeline: Any, k: int) -> int:
        return (k + 1) * self.num_temperatures * (self.num_leapfrog + 1)

    def condition(self, pipeline: Any, num_classes: int | None) -> Condition:
        condition = super().condition(pipeline, num_classes)
        name = type(getattr(pipeline, "prior", None)).__name__
        if name not in ANNEALED_PRIORS:
            raise HfgenError(
                f"ais: no Hamiltonian steps under {name}; valid: the standard normal, "
                f"{', '.join(ANNEALED_PRIORS[1:])}"
            )
        return condition

    def log_prob(
        self, pipeline: Any, images: Tensor, k: int, rng: Rng, labels: Tensor | None = None
    ) -> Tensor:
        with torch.inference_mode(False):  # gradients, of what inference mode has made
            images = images.clone()
            labels = None if labels is None else labels.clone()
            steps = self._chains(pipeline, images, 1, rng, labels, None)
            log_w = self._chains(pipeline, images, k, rng, labels, steps)
        return torch.logsumexp(log_w.view(-1, k), 1) - math.log(k)

    def _chains(
        self,
        pipeline: Any,
        images: Tensor,
        k: int,
        rng: Rng,
        labels: Tensor | None,
        steps: Tensor | None,
    ) -> Tensor:
        """ln w [B * k] with step sizes [temperatures, B]; without them, such step sizes."""
        many = images.repeat_interleave(k, 0)
        labels = None if labels is None else labels.repeat_interleave(k)
        given = label_arguments(pipeline.vae, labels)

        def log_likelihood(z: Tensor) -> Tensor:
            return pipeline.likelihood.log_prob(many, pipeline.vae.decode(z, **given).sample)

        path = Path(
            log_prior=lambda z: _log_prior(pipeline, z),
            log_likelihood=log_likelihood,
            num_temperatures=self.num_temperatures,
            num_leapfrog=self.num_leapfrog,
        )
        rng = rng.fork("ais").repeat(k)
        start = _prior_draws(pipeline, len(many), labels, rng.fork(steps is None))
        if steps is None:
            return path.tune(start, rng)
        return path.log_weights(start, steps.repeat_interleave(k, 1), rng)


ANNEALED_PRIORS = ("NoneType", "GaussianMixturePrior", "VampPrior", "FlowPrior")
"""Priors with an exact density on all of space."""


BOUNDS: dict[str, Bound] = {
    "elbo": Elbo(),
    "iw": ImportanceWeighted(),
    "ais": Annealed(),
    "pf_ode": ProbabilityFlowODE(),
    "pf_ode_rk45": AdaptiveProbabilityFlowODE(),
    "vlb": VariationalBound(),
}


@torch.inference_mode()
def log_likelihood(
    pipeline: Any,
    images: Tensor | Source,
    *,
    labels: Tensor | None = None,
    bound: str = "elbo",
    k: int = 1,
    seed: int = 0,
    batch_size: int = 64,
    max_images: int | None = None,
) -> LogLikelihood:
    """Mean log-likelihood of images under a pipeline; of images given their class, where the
    pipeline is class-conditional and the images have labels.

    Args:
        pipeline: a VAE's pipeline; other families with the bounds that are made for them.
        images: [N, C, H, W] in [-1, 1], or a data source, which brings its labels.
        labels: [N] class numbers of ``images`` that are a tensor.
        bound: a name in ``BOUNDS``.
        k: samples per image, exactly.
        seed: of all draws; image i gets the same ones in any batch size that 16 divides.
        max_images: the first so many of ``images``.
    Raises:
        HfgenError: a pipeline without a density (a GAN), an unknown bound, k < 1, images or labels
            that do not fit the model.
    """
    if bound not in BOUNDS:
        raise one_of("bound", bound, list(BOUNDS))
    if k < 1:
        raise HfgenError(f"k: {k} samples per image; must be at least 1")
    method = BOUNDS[bound]
    given = _Given(images, labels)
    condition = method.condition(pipeline, given.num_classes)
    count = len(images) if max_images is None else min(max_images, len(images))
    if count < 2:
        raise HfgenError(f"images: {count}; a standard error needs at least 2")
    pixels = method.pixels(pipeline, given.batch(range(min(count, 1024)))["images"])
    settings = _Settings(method, condition, pixels, k, seed)
    with _counted(pipeline) as rows:
        nats = torch.cat(
            [
                _batch(pipeline, given, range(i, min(i + batch_size, count)), settings)
                for i in range(0, count, batch_size)
            ]
        )
    if not bool(torch.isfinite(nats).all()):
        raise HfgenError(f"{bound}: NaN or infinity for {int((~nats.isfinite()).sum())} images")
    dimensions = given.batch(range(1))["images"].numel()
    mean = float(nats.mean())
    offset = pixels.offset
    bits = None if offset is None else -mean / (dimensions * math.log(2)) + offset
    return LogLikelihood(
        bound=bound,
        k=k,
        nats=mean,
        bits_per_dim=bits,
        standard_error=float(nats.std() / math.sqrt(count)),
        pixels=pixels.description,
        condition=condition,
        nfe=method.nfe(pipeline, k) or round(rows[0] / count),
        count=count,
        dimensions=dimensions,
    )


@contextmanager
def _counted(pipeline: Any) -> Iterator[list[int]]:
    """Counts the rows that a denoiser is called with."""
    rows = [0]
    network = pipeline.components.get("unet")
    if not isinstance(network, nn.Module):
        yield rows
        return

    def count(module: Any, arguments: tuple[Any, ...]) -> None:
        rows[0] += len(arguments[0])

    handle = network.register_forward_pre_hook(count)
    try:
        yield rows
    finally:
        handle.remove()


def has_likelihood(pipeline: Any, bound: str = "elbo", num_classes: int | None = None) -> bool:
    """Whether ``log_likelihood`` can be computed with this bound, of images with so many classes
    (None: without labels).
    """
    try:
        BOUNDS[bound].condition(pipeline, num_classes)
    except HfgenError:
        return False
    return True


@dataclass(frozen=True)
class _Settings:
    """What is the same for every batch."""

    method: Bound
    condition: Condition
    pixels: Pixels
    k: int
    seed: int


def _batch(pipeline: Any, given: _Given, rows: range, settings: _Settings) -> Tensor:
    """Nats [B] of the images ``rows``."""
    batch, device = given.batch(rows), pipeline.device
    rng = Rng(settings.seed, "log_likelihood", start=rows.start, device=device)
    images = batch["images"].to(device)
    if settings.pixels.dequantise:
        images = images + (rng.rand("dequantise", images.shape) - 0.5) * BIN
    labels = batch["labels"].to(device) if settings.condition == Condition.CLASS else None
    try:
        nats = settings.method.log_prob(pipeline, images, settings.k, rng, labels)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise HfgenError(
            f"images of {tuple(images.shape[1:])} under this model: {reason}"
        ) from error
    return nats.double().cpu()


@dataclass(frozen=True)
class _Given:
    """Images with their labels: a source, or tensors."""

    images: Tensor | Source
    labels: Tensor | None

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != len(self.images):
            raise HfgenError(f"labels: {len(self.labels)} for {len(self.images)} images")

    @property
    def num_classes(self) -> int | None:
        if isinstance(self.images, Source):
            return self.images.spec.num_classes
        return None if self.labels is None else int(self.labels.max()) + 1

    def batch(self, rows: range) -> dict[str, Tensor]:
        """``images`` and, where there are any, ``labels``."""
        if isinstance(self.images, Source):
            return self.images.batch(rows)
        found = {"images": self.images, "labels": self.labels}
        return {k: v[rows.start : rows.stop] for k, v in found.items() if v is not None}


def _no_likelihood(pipeline: Any, needed: str) -> str:
    name = type(pipeline).__name__
    if "generator" in pipeline.components:
        return f"{name}: a GAN has no likelihood: its generator defines no density of images"
    return f"{name} has no such likelihood: this bound needs {needed}"


def _noise_shape(posterior: Any) -> torch.Size:
    stock = isinstance(posterior, DiagonalGaussianDistribution)
    return posterior.mean.shape if stock else posterior.noise_shape


def _rsample(posterior: Any, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Latents [S, B, ...] and ln q [S, B]; diffusers' own posterior has no such method."""
    if not isinstance(posterior, DiagonalGaussianDistribution):
        return posterior.rsample(noise)
    nats = -0.5 * (noise.square() + posterior.logvar + math.log(2 * math.pi))
    return posterior.mean + posterior.std * noise, nats.flatten(2).sum(2)


def _prior_draws(pipeline: Any, rows: int, labels: Tensor | None, rng: Rng) -> Tensor:
    """Latents [rows, *latent] of the pipeline's prior, or of the standard normal."""
    prior = getattr(pipeline, "prior", None)
    if prior is None:
        return rng.randn("start", (rows, *pipeline.latent_shape))
    seeds = rng.randint("start", 2**62, (rows,)).tolist()
    generators = [torch.Generator(rng.device).manual_seed(seed) for seed in seeds]
    return prior.sample(rows, generators, labels)


def _log_prior(pipeline: Any, z: Tensor) -> Tensor:
    """ln p(z) [B]: the pipeline's prior, or the standard normal."""
    prior = getattr(pipeline, "prior", None)
    if prior is not None:
        return prior.log_prob(z)
    return (-0.5 * (z.square() + math.log(2 * math.pi))).flatten(1).sum(1)
