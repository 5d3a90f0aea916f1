"""A prior for the latents of a trained autoencoder: ``hfgen fit-prior RUN --prior gmm``.

Draws of N(0, I) decode well only where the latents of real images lie; an autoencoder without a KL
or with a codebook has no prior at all. Fitting one afterwards is the second stage of WAE, RAE,
two-stage VAE and VQ-VAE.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from hfgen.data.source import Source
from hfgen.errors import HfgenError, one_of

logger = logging.getLogger(__name__)

KINDS = ("gmm", "maf", "iaf", "two-stage", "codes")


def fit_prior(
    pipeline: Any,
    source: Source,
    kind: str = "gmm",
    *,
    num_components: int = 20,
    total_images: int = 300_000,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> Any:
    """Fit a prior to the latents of ``source`` and make it the pipeline's ``prior``.

    Args:
        pipeline: a ``VAEPipeline``.
        source: images that the VAE was trained on.
        kind: ``gmm`` (a Gaussian mixture by EM), ``maf`` or ``iaf`` (normalising flows),
            ``two-stage`` (a second VAE, Dai & Wipf 2019), ``codes`` (a transformer over the codes
            of a VQVAE or a hierarchical one).
        num_components: of the mixture.
        total_images: latents seen while training, for all but the mixture.
    Returns:
        the prior, which ``pipeline.prior`` now is.
    Raises:
        HfgenError: a kind that does not fit the autoencoder.
    """
    if kind not in KINDS:
        raise one_of("prior", kind, KINDS)
    vae = pipeline.vae.eval()
    quantised = "quantizer" in vae.config
    if quantised != (kind == "codes"):
        name = type(vae).__name__
        valid = "codes" if quantised else ", ".join(k for k in KINDS if k != "codes")
        raise HfgenError(f"prior: {kind!r} does not fit the latents of {name}; valid: {valid}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        codes, labels = _encode(vae, source, batch_size)
        if kind == "gmm":
            prior = fit_mixture(codes, num_components)
        else:
            prior = _build(kind, pipeline, codes)
            _maximise(prior, codes, labels, total_images, batch_size, learning_rate)
    pipeline.register_modules(prior=prior.eval().requires_grad_(False).to(vae.device))
    return prior


@torch.no_grad()
def _encode(vae: Any, source: Source, batch_size: int) -> tuple[Tensor, Tensor | None]:
    """One draw of q(z|x) per image, or the indices of its codes; and labels if the VAE uses any."""
    conditional = vae.config.get("num_class_embeds") is not None
    codes, labels = [], []
    for first in range(0, len(source), batch_size):
        batch = source.batch(range(first, min(first + batch_size, len(source))))
        given = {"class_labels": batch["labels"].to(vae.device)} if conditional else {}
        images = batch["images"].to(vae.device, vae.dtype)
        if "quantizer" in vae.config:
            codes.append(vae.quantize(vae.encode_map(images, **given)).indices.cpu())
        else:
            codes.append(vae.encode(images, **given).latent_dist.sample().float().cpu())
        labels.append(batch["labels"] if conditional else torch.zeros(0))
    return torch.cat(codes), torch.cat(labels) if conditional else None


def _build(kind: str, pipeline: Any, codes: Tensor) -> Any:
    from hfgen.models.prior_codes import CodePrior
    from hfgen.models.prior_flow import FlowPrior
    from hfgen.models.prior_two_stage import TwoStagePrior

    vae, shape = pipeline.vae, pipeline.latent_shape
    if kind == "codes":
        prior = CodePrior(
            shape,
            num_embeddings=vae.codebook.num_embeddings,
            num_quantizers=vae.codebook.num_quantizers,
            num_class_embeds=vae.config["num_class_embeds"],
        )
        prior.tie(vae)
        return prior
    prior = TwoStagePrior(shape) if kind == "two-stage" else FlowPrior(shape, kind=kind)
    prior.mean.copy_(codes.flatten(1).mean(0))
    prior.std.copy_(codes.flatten(1).std(0).clamp(min=1e-4))
    return prior


def _maximise(
    prior: Any,
    codes: Tensor,
    labels: Tensor | None,
    total_images: int,
    batch_size: int,
    learning_rate: float,
) -> None:
    """Maximum likelihood by Adam with a cosine schedule."""
    parameters = [p for p in prior.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=1e-4)
    steps = max(total_images // batch_size, 1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        rows = torch.randint(len(codes), (batch_size,))
        if codes.is_floating_point():
            log_prob = prior.log_prob(codes[rows])
        else:
            given = None if labels is None else labels[rows]
            log_prob = prior.log_prob_indices(codes[rows], given)
        loss = -log_prob.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 0 or step == steps - 1:
            logger.info("prior: step %d/%d  -ln p(z) %.2f", step + 1, steps, float(loss.detach()))


@torch.no_grad()
def fit_mixture(latents: Tensor, num_components: int, iterations: int = 100) -> Any:
    """A Gaussian mixture by expectation maximisation (Bishop 2006, 9.2.2), diagonal covariances.

    Starts at k-means centres; variances are kept above 1e-4 of the data's.
    """
    from hfgen.models.layers.vq import kmeans
    from hfgen.models.prior_mixture import GaussianMixturePrior

    if num_components > len(latents):
        raise HfgenError(f"prior: {num_components} components for {len(latents)} latents")
    rows = latents.flatten(1).double()
    floor = 1e-4 * rows.var(0)
    mean = kmeans(rows, num_components)
    variance = rows.var(0).expand(num_components, -1).clone()
    weights = torch.full((num_components,), 1 / num_components, dtype=rows.dtype)
    for _ in range(iterations):
        precision = 1 / variance
        square = rows.square() @ precision.T - 2 * rows @ (mean * precision).T
        constant = (mean.square() * precision + variance.log()).sum(1)
        share = torch.softmax(weights.log() - 0.5 * (square + constant), dim=1)  # E step
        counts = share.sum(0).clamp(min=1e-6)  # M step
        weights = counts / counts.sum()
        mean = share.T @ rows / counts[:, None]
        variance = (share.T @ rows.square() / counts[:, None] - mean.square()).clamp(min=floor)
    prior = GaussianMixturePrior(tuple(latents.shape[1:]), num_components)
    prior.weights.copy_(weights.log())
    prior.mean.copy_(mean)
    prior.logvar.copy_(variance.log())
    return prior
