"""Metrics that look into a model rather than at its samples: likelihood, reconstruction,
latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hfgen.data import Source
from hfgen.data.sprites import SpritesSource
from hfgen.errors import HfgenError
from hfgen.evaluation.conditions import check_classes, label_arguments, network_classes
from hfgen.evaluation.denoiser_features import NOISE, denoiser_features
from hfgen.evaluation.images import reconstruct
from hfgen.evaluation.latent_codes import has_latent_code, latent_code
from hfgen.evaluation.likelihood import (
    BOUNDS,
    Annealed,
    LogLikelihood,
    has_likelihood,
    log_likelihood,
)
from hfgen.evaluation.likelihood_diffusion import AdaptiveProbabilityFlowODE, denoiser
from hfgen.evaluation.metrics import (
    DCI,
    LPIPS,
    active_units,
    code_accuracy,
    dci,
    factor_vae_score,
    knn_accuracy,
    linear_probe,
    load_lpips,
    mig,
    psnr,
    sap,
    ssim,
)
from hfgen.evaluation.results import Score
from hfgen.evaluation.text_metrics import (
    clip_retrieval,
    clip_score,
    code_likelihood,
    has_clip,
    has_codes,
    has_pairs,
    r_precision,
    retrieval,
    text_scores,
)
from hfgen.hidden import middle_layer

BATCH = 64
MAX_IMAGES = 2000
MIN_IMAGES = 16
FACTOR_IMAGES = 15_000
"""10 000 to fit and 5 000 to test, as is usual for disentanglement scores."""
IMPORTANCE_SAMPLES = 64
SAMPLES = {"elbo": 1, "iw": IMPORTANCE_SAMPLES, "ais": 4}
"""K of the bounds that have one, when they are computed as part of an evaluation."""


@dataclass(frozen=True)
class ModelEvidence:
    """What such a metric may look at.

    Attributes:
        pipeline: the model.
        source: held-out images where there are any, else the reference.
        weights: local files by name.
        evaluations: of a network that a likelihood bound may cost: one that calls it often scores
            fewer images, down to 16.
        call: arguments of the pipeline's call, where images are drawn.
        feature_layer, feature_noise: of a denoiser, where its features are read
            (``denoiser_features``).
    """

    pipeline: Any
    source: Source
    weights: Mapping[str, str | Path]
    evaluations: int = 64_000
    call: Mapping[str, Any] = field(default_factory=dict)
    feature_layer: str = ""
    feature_noise: float = NOISE


@dataclass(frozen=True)
class ModelMetric:
    """One line of the table.

    Attributes:
        compute: scores from the evidence.
        check: HfgenError in one line when a pipeline or its data have not what this needs; quick.
        functions: score name -> the pure function, or class of bound, behind it.
        on_request: too slow to be measured of every run.
    """

    compute: Callable[[ModelEvidence], list[Score]]
    check: Callable[[ModelEvidence], None]
    functions: Mapping[str, Callable[..., Any]]
    on_request: bool = False

    def applies(self, evidence: ModelEvidence) -> bool:
        """Whether ``check`` passes."""
        try:
            self.check(evidence)
        except HfgenError:
            return False
        return True


def likelihood(evidence: ModelEvidence) -> list[Score]:
    """Every bound that the pipeline has, on held-out images: nats, and bits/dim where defined."""
    scores = []
    for name in _bounds(evidence):
        k = SAMPLES.get(name, 1)
        scores += _bound_scores(evidence, name, k, _affordable(evidence, name, k))[1]
    return scores


def annealed(evidence: ModelEvidence) -> list[Score]:
    """Annealed importance sampling, and by how much it exceeds importance sampling from the encoder
    on the same images: what the encoder misses of the posterior.
    """
    count = _affordable(evidence, "ais", SAMPLES["ais"])
    (chains, scores), (importance, _) = (
        _bound_scores(evidence, name, SAMPLES[name], count) for name in ("ais", "iw")
    )
    settings = f"ais, K={chains.k}, less iw, K={importance.k}, {_where(evidence.source, count)}"
    gap = chains.nats - importance.nats
    return [*scores, _score("ais_over_iw_nats", gap, None, better="none", settings=settings)]


def adaptive(evidence: ModelEvidence) -> list[Score]:
    """The density of ``pf_ode`` by adaptive steps, on as many images as fixed ones may score."""
    count = _affordable(evidence, "pf_ode", 1)
    return _bound_scores(evidence, "pf_ode_rk45", 1, count)[1]


def _affordable(evidence: ModelEvidence, bound: str, k: int) -> int:
    """How many images a bound may score."""
    most = evidence.evaluations // BOUNDS[bound].nfe(evidence.pipeline, k)
    return min(MAX_IMAGES, len(evidence.source), max(MIN_IMAGES, most))


def _bound_scores(
    evidence: ModelEvidence, name: str, k: int, count: int
) -> tuple[LogLikelihood, list[Score]]:
    """One bound on ``count`` held-out images: nats, and bits/dim where defined."""
    pipeline, source = evidence.pipeline, evidence.source
    batches = [source.batch(rows) for rows in _rows(source, count)]
    images, labels = (_joined(batches, key) for key in ("images", "labels"))
    assert images is not None
    result = log_likelihood(pipeline, images, labels=labels, bound=name, k=k)
    given = f", {result.condition}" if result.condition else ""
    how = f"{name}, K={k}, NFE={result.nfe}, {result.pixels}{given}"
    settings = f"{how}, {_where(source, count)}"
    nats = (result.nats, result.standard_error)
    scores = [_score(f"{name}_nats", *nats, better="higher", settings=settings)]
    if result.bits_per_dim is not None:
        error = result.standard_error / (result.dimensions * math.log(2))
        scores.append(_score(f"{name}_bits_per_dim", result.bits_per_dim, error, settings=settings))
    return result, scores


@torch.inference_mode()
def reconstruction(evidence: ModelEvidence) -> list[Score]:
    """PSNR and SSIM of the decoded posterior means of held-out images."""
    pipeline, source = evidence.pipeline, evidence.source
    signal, structure = [], []
    for rows in _rows(source, MAX_IMAGES):
        batch = source.batch(rows)
        images, decoded = batch["images"], reconstruct(pipeline, batch)
        signal.append(psnr(images, decoded))
        if min(images.shape[-2:]) >= 11:
            structure.append(ssim(images, decoded))
    settings = f"posterior mean, {_where(source, MAX_IMAGES)}"
    scores = [_mean_score("psnr", torch.cat(signal), settings)]
    if structure:
        scores.append(_mean_score("ssim", torch.cat(structure), settings))
    return scores


def representation(evidence: ModelEvidence) -> list[Score]:
    """Active units of an autoencoder; with labels, linear-probe and k-NN accuracy of its posterior
    means, or of a layer of a denoiser.
    """
    where = _where(evidence.source, MAX_IMAGES)
    if evidence.pipeline.components.get("vae") is None:
        z, y = _hidden(evidence, MAX_IMAGES)
        layer = evidence.feature_layer or middle_layer(evidence.pipeline.unet)
        settings = f"{layer} at sigma/alpha {evidence.feature_noise}, {where}"
        scores = [_score("feature_dimensions", z.shape[1], None, better="none", settings=settings)]
    else:
        z, y = _encode(evidence, MAX_IMAGES)
        settings = f"posterior means, {where}"
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


def disentanglement(evidence: ModelEvidence) -> list[Score]:
    """MIG, DCI, SAP and FactorVAE score of posterior means, for data with known factors."""
    source = _with_factors(evidence.source)
    z, _ = _encode(evidence, FACTOR_IMAGES)
    factors = source.factors[np.concatenate(_rows(source, FACTOR_IMAGES))].numpy()
    settings = f"posterior means of {len(z)} images of {source.spec.name}/{source.spec.split}"
    found = {
        "mig": mig(z, factors),
        "sap": sap(z, factors, categorical=(0,)),
        "factor_vae_score": factor_vae_score(z, factors),
        **{f"dci_{name}": value for name, value in asdict(dci(z, factors)).items()},
    }
    return [
        _score(name, value, None, better="higher", settings=settings)
        for name, value in found.items()
    ]


@torch.inference_mode()
def lpips(evidence: ModelEvidence) -> list[Score]:
    """LPIPS of reconstructions of held-out images, with weights given as ``lpips=PATH``."""
    pipeline, source = evidence.pipeline, evidence.source
    network = load_lpips(evidence.weights.get("lpips"))
    values = []
    for rows in _rows(source, MAX_IMAGES):
        batch = source.batch(rows)
        values.append(network(batch["images"], reconstruct(pipeline, batch)))
    return [_mean_score("lpips", torch.cat(values), _where(source, MAX_IMAGES), better="lower")]


def _bounds(evidence: ModelEvidence) -> list[str]:
    """Those that the pipeline has for these images, of those that are computed unasked."""
    classes = evidence.source.spec.num_classes
    wanted = [name for name, bound in BOUNDS.items() if bound.by_default]
    return [name for name in wanted if has_likelihood(evidence.pipeline, name, classes)]


def _has_likelihood(evidence: ModelEvidence) -> None:
    if _bounds(evidence):
        return
    denoiser = "unet" in evidence.pipeline.components
    bound = BOUNDS["pf_ode" if denoiser else "elbo"]
    bound.condition(evidence.pipeline, evidence.source.spec.num_classes)  # says why


def _has_chains(evidence: ModelEvidence) -> None:
    BOUNDS["ais"].condition(evidence.pipeline, evidence.source.spec.num_classes)


def _has_flow(evidence: ModelEvidence) -> None:
    BOUNDS["pf_ode_rk45"].condition(evidence.pipeline, evidence.source.spec.num_classes)


def _has_vae(evidence: ModelEvidence) -> None:
    pipeline = evidence.pipeline
    if pipeline.components.get("vae") is None:
        name = type(pipeline).__name__
        raise HfgenError(f"metrics: this needs a pipeline with a vae, not {name}")
    known, classes = network_classes(pipeline.vae), evidence.source.spec.num_classes
    check_classes(type(pipeline.vae).__name__, known, classes)


def _has_features(evidence: ModelEvidence) -> None:
    parts = evidence.pipeline.components
    if parts.get("vae") is None and parts.get("unet") is not None:
        denoiser(evidence.pipeline, None)  # says why not
    else:
        _has_vae(evidence)


def _has_factors(evidence: ModelEvidence) -> None:
    _has_vae(evidence)
    _with_factors(evidence.source)


def _with_factors(source: Source) -> SpritesSource:
    if not isinstance(source, SpritesSource):
        raise HfgenError(
            f"metrics: disentanglement needs data with known factors (data.path sprites), "
            f"not {source.spec.name}"
        )
    return source


def _has_lpips(evidence: ModelEvidence) -> None:
    _has_vae(evidence)
    load_lpips(evidence.weights.get("lpips"))


MODEL_METRICS: dict[str, ModelMetric] = {
    "likelihood": ModelMetric(
        likelihood,
        _has_likelihood,
        {name: type(bound) for name, bound in BOUNDS.items() if bound.by_default},
    ),
    "ais": ModelMetric(
        annealed,
        _has_chains,
        {"ais": Annealed, "ais_over_iw": Annealed},
        on_request=True,
    ),
    "pf_ode_rk45": ModelMetric(
        adaptive,
        _has_flow,
        {"pf_ode_rk45": AdaptiveProbabilityFlowODE},
        on_request=True,
    ),
    "reconstruction": ModelMetric(reconstruction, _has_vae, {"psnr": psnr, "ssim": ssim}),
    "representation": ModelMetric(
        representation,
        _has_features,
        {"active_units": active_units, "linear_probe": linear_probe, "knn_accuracy": knn_accuracy},
    ),
    "disentanglement": ModelMetric(
        disentanglement,
        _has_factors,
        {
            "mig": mig,
            "sap": sap,
            "factor_vae_score": factor_vae_score,
            **{f"dci_{field.name}": dci for field in fields(DCI)},
        },
    ),
    "latent_code": ModelMetric(
        latent_code,
        has_latent_code,
        {"code_accuracy": code_accuracy, "code_purity": code_accuracy},
    ),
    "lpips": ModelMetric(lpips, _has_lpips, {"lpips": LPIPS}),
    "text": ModelMetric(
        text_scores, has_clip, {"clip_score": clip_score, "r_precision": r_precision}
    ),
    "retrieval": ModelMetric(
        clip_retrieval,
        has_pairs,
        {"text_to_image_top1": retrieval, "image_to_text_top1": retrieval},
    ),
    "codes": ModelMetric(
        code_likelihood,
        has_codes,
        {"code_bits_per_dim": code_likelihood, "bits_per_code": code_likelihood},
    ),
}


@torch.inference_mode()
def _encode(evidence: ModelEvidence, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Posterior means [N, D] and labels [N] (empty where there are none)."""
    pipeline, source = evidence.pipeline, evidence.source
    latents, labels = [], []
    for rows in _rows(source, limit):
        batch = source.batch(rows)
        given = label_arguments(pipeline.vae, batch.get("labels"))
        posterior = pipeline.vae.encode(batch["images"].to(pipeline.device), **given).latent_dist
        latents.append(posterior.mode().flatten(1).float().cpu())
        labels.append(batch.get("labels", torch.zeros(0)))
    return torch.cat(latents).numpy(), torch.cat(labels).numpy()


def _hidden(evidence: ModelEvidence, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, D] of a layer of a denoiser, and labels [N] (empty where there are none)."""
    site = evidence.feature_layer, evidence.feature_noise
    features, labels = [], []
    for number, rows in enumerate(_rows(evidence.source, limit)):
        batch = evidence.source.batch(rows)
        start = number * BATCH
        features.append(denoiser_features(evidence.pipeline, batch["images"], *site, start=start))
        labels.append(batch.get("labels", torch.zeros(0)))
    return torch.cat(features).numpy(), torch.cat(labels).numpy()


def _rows(source: Source, limit: int) -> list[np.ndarray]:
    """Batches of rows: all, or ``limit`` drawn with seed 0, since a set may be sorted by class."""
    total = len(source)
    drawn = np.random.default_rng(0).permutation(total)[:limit] if limit < total else range(total)
    rows = np.sort(np.asarray(drawn))
    return [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]


def _joined(batches: list[dict[str, Tensor]], key: str) -> Tensor | None:
    """One tensor of all batches; None where they have no such key."""
    return torch.cat([batch[key] for batch in batches]) if key in batches[0] else None


def _where(source: Source, limit: int) -> str:
    return f"{min(limit, len(source))} images of {source.spec.name}/{source.spec.split}"


def _mean_score(name: str, values: Tensor, settings: str, better: str = "higher") -> Score:
    error = float(values.std() / math.sqrt(len(values)))
    return _score(name, float(values.mean()), error, better=better, settings=settings)


def _score(
    name: str, value: float, error: float | None, *, better: str = "lower", settings: str = ""
) -> Score:
    return Score(
        name=name, value=float(value), standard_error=error, better=better, settings=settings
    )
