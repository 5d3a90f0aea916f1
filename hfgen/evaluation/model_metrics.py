"""Metrics that look into a model rather than at its samples: likelihood, reconstruction,
latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hfgen.data import Source
from hfgen.errors import HfgenError
from hfgen.evaluation.likelihood import BOUNDS, has_likelihood, log_likelihood
from hfgen.evaluation.metrics.active_units import active_units
from hfgen.evaluation.metrics.knn_accuracy import knn_accuracy
from hfgen.evaluation.metrics.linear_probe import linear_probe
from hfgen.evaluation.metrics.reconstruction import psnr, ssim
from hfgen.evaluation.results import Score

BATCH = 64
MAX_IMAGES = 2000
IMPORTANCE_SAMPLES = 64
SAMPLES = {"elbo": 1, "iw": IMPORTANCE_SAMPLES}
"""K of the bounds that have one, when they are computed as part of an evaluation."""
IMAGES = {"pf_ode": 64, "vlb": 16}
"""Fewer images for the bounds that call a network 128 and 1000 times for each."""

ModelMetric = Callable[[Any, Source], list[Score]]


def likelihood(pipeline: Any, source: Source) -> list[Score]:
    """Every bound that the pipeline has, on held-out images: nats, and bits/dim where defined."""
    bounds = [name for name in BOUNDS if has_likelihood(pipeline, name)]
    if not bounds:
        BOUNDS["elbo"].check(pipeline)  # says why
    scores = []
    for name in bounds:
        k = SAMPLES.get(name, 1)
        images = IMAGES.get(name, MAX_IMAGES)
        result = log_likelihood(pipeline, source, bound=name, k=k, max_images=images)
        settings = (
            f"{name}, K={k}, NFE={result.nfe}, {result.pixels}, {result.count} images of "
            f"{source.spec.name}/{source.spec.split}"
        )
        nats = (result.nats, result.standard_error)
        scores.append(_score(f"{name}_nats", *nats, better="higher", settings=settings))
        if result.bits_per_dim is not None:
            error = result.standard_error / (result.dimensions * math.log(2))
            bits = (result.bits_per_dim, error)
            scores.append(_score(f"{name}_bits_per_dim", *bits, settings=settings))
    return scores


@torch.inference_mode()
def reconstruction(pipeline: Any, source: Source) -> list[Score]:
    """PSNR and SSIM of the decoded posterior means of held-out images."""
    _require_vae(pipeline, "reconstruction")
    signal, structure, rows = [], [], range(min(MAX_IMAGES, len(source)))
    for start in range(0, len(rows), BATCH):
        images = source.batch(rows[start : start + BATCH])["images"]
        decoded = reconstruct(pipeline, images)
        signal.append(psnr(images, decoded))
        if min(images.shape[-2:]) >= 11:
            structure.append(ssim(images, decoded))
    settings = f"posterior mean, {len(rows)} images of {source.spec.name}/{source.spec.split}"
    scores = [_mean_score("psnr", torch.cat(signal), settings)]
    if structure:
        scores.append(_mean_score("ssim", torch.cat(structure), settings))
    return scores


@torch.inference_mode()
def representation(pipeline: Any, source: Source) -> list[Score]:
    """Active units; with labels, linear-probe and k-NN accuracy of posterior means (half to
    fit).
    """
    _require_vae(pipeline, "representation")
    rows = range(min(MAX_IMAGES, len(source)))
    latents, labels = [], []
    for start in range(0, len(rows), BATCH):
        batch = source.batch(rows[start : start + BATCH])
        posterior = pipeline.vae.encode(batch["images"].to(pipeline.device)).latent_dist
        latents.append(posterior.mode().flatten(1).float().cpu())
        labels.append(batch.get("labels", torch.zeros(0)))
    z, y = torch.cat(latents).numpy(), torch.cat(labels).numpy()
    settings = f"posterior means of {len(rows)} images of {source.spec.name}/{source.spec.split}"
    scores = [
        _score("active_units", active_units(z), None, better="none", settings=settings),
        _score("latent_dimensions", z.shape[1], None, better="none", settings=settings),
    ]
    if len(y):
        fit = np.random.default_rng(0).permutation(len(z)) < len(z) // 2
        halves = (z[fit], y[fit], z[~fit], y[~fit])
        for name, accuracy in (("linear_probe", linear_probe), ("knn_accuracy", knn_accuracy)):
            value = accuracy(*halves)
            error = math.sqrt(value * (1 - value) / (~fit).sum())
            scores.append(_score(name, value, error, better="higher", settings=settings))
    return scores


def reconstruct(pipeline: Any, images: Tensor) -> Tensor:
    """Expected image of the decoded posterior mean, [-1, 1], on the CPU."""
    posterior = pipeline.vae.encode(images.to(pipeline.device)).latent_dist
    params = pipeline.vae.decode(posterior.mode()).sample
    own = getattr(pipeline, "likelihood", None)
    return (own.mean(params) if own is not None else params.clamp(-1, 1)).float().cpu()


MODEL_METRICS: dict[str, ModelMetric] = {
    "likelihood": likelihood,
    "reconstruction": reconstruction,
    "representation": representation,
}


def _require_vae(pipeline: Any, metric: str) -> None:
    if "vae" not in pipeline.components:
        raise HfgenError(
            f"metrics: {metric} needs a pipeline with a vae, not {type(pipeline).__name__}"
        )


def _mean_score(name: str, values: Tensor, settings: str) -> Score:
    error = float(values.std() / math.sqrt(len(values)))
    return _score(name, float(values.mean()), error, better="higher", settings=settings)


def _score(
    name: str, value: float, error: float | None, *, better: str = "lower", settings: str = ""
) -> Score:
    return Score(
        name=name, value=float(value), standard_error=error, better=better, settings=settings
    )
