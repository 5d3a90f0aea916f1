"""What a freshly trained autoencoder still needs: the scale of its latents, and a prior.

Plain ``decode(randn)`` of an autoencoder whose latents have another scale, or no prior at all, is
noise: both are measured on training images before the pipeline is exported.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from hfgen.data.source import Source
from hfgen.fit_prior import fit_prior
from hfgen.models.prior_metric import MetricPrior
from hfgen.objectives.base import Objective
from hfgen.objectives.vae import Autoencoder
from hfgen.objectives.vae_penalties import MMD
from hfgen.pipelines.vae_pipeline import VAEPipeline  # pyright: ignore[reportMissingImports]

logger = logging.getLogger(__name__)

IMAGES = 1024
COMPONENTS = 10


def finish(pipeline: Any, objective: Objective, source: Source) -> None:
    """Complete a ``VAEPipeline`` in place; other pipelines are left alone.

    Args:
        source: the images that were trained on.
    """
    if not isinstance(pipeline, VAEPipeline):
        return
    if len(pipeline.latent_shape) > 1:
        _scale(pipeline, source)
    if isinstance(pipeline.prior, MetricPrior):
        _place_centroids(pipeline, source)
    if isinstance(objective, Autoencoder):
        pipeline.register_to_config(deterministic=True)
    bare = isinstance(objective, Autoencoder) and not isinstance(objective.penalty, MMD)
    if bare and pipeline.prior is None:
        components = min(COMPONENTS, len(source))
        fit_prior(pipeline, source, "gmm", num_components=components)
        logger.warning(
            "prior: an autoencoder leaves none, so a mixture of %d Gaussians was fitted to its "
            "latents; for another: hfgen fit-prior RUN --prior maf",
            components,
        )


@torch.no_grad()
def _place_centroids(pipeline: Any, source: Source) -> None:
    """A learned metric gets its centroids: training images at even distances in the data."""
    vae, prior, parts = pipeline.vae, pipeline.prior, []
    conditional = vae.config.get("num_class_embeds") is not None
    count = len(prior.centroids)
    batch = source.batch([row * len(source) // count for row in range(count)])
    images = batch["images"].to(vae.device, vae.dtype)
    labels = batch["labels"].to(vae.device) if conditional else None
    for rows in torch.arange(count).split(64):
        given = {} if labels is None else {"class_labels": labels[rows]}
        parts.append(vae.encode(images[rows], **given).latent_dist.mode())
    prior.fit(torch.cat(parts), images)


def _scale(pipeline: Any, source: Source) -> None:
    """Write ``scaling_factor`` = 1 / std of all latents (Rombach et al. 2022, appendix G) into the
    autoencoder's config, and their moments by channel into the pipeline's.
    """
    mean, std, overall = latent_moments(pipeline.vae, source)
    if "scaling_factor" in pipeline.vae.config:
        pipeline.vae.register_to_config(scaling_factor=round(1 / overall, 5))
    rounded = {"latents_mean": mean, "latents_std": std}
    pipeline.register_to_config(
        **{name: [round(v, 5) for v in values.tolist()] for name, values in rounded.items()}
    )


@torch.no_grad()
def latent_moments(vae: Any, source: Source) -> tuple[Tensor, Tensor, float]:
    """Mean and standard deviation by channel, [C] each, and the standard deviation of everything,
    over draws of q(z|x) for the first images of ``source``.
    """
    training = vae.training
    vae.eval()
    conditional = vae.config.get("num_class_embeds") is not None
    parts, generator = [], torch.Generator().manual_seed(0)
    for start in range(0, min(IMAGES, len(source)), 64):
        batch = source.batch(range(start, min(start + 64, IMAGES, len(source))))
        given = {"class_labels": batch["labels"].to(vae.device)} if conditional else {}
        posterior = vae.encode(batch["images"].to(vae.device, vae.dtype), **given).latent_dist
        parts.append(posterior.sample(generator).double().cpu())
    vae.train(training)
    latents = torch.cat(parts)
    channels = latents.movedim(1, 0).flatten(1)
    return channels.mean(1), channels.std(1), float(latents.std())
