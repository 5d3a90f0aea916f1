"""Metrics of a generator's categorical latent code (InfoGAN)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hfgen.errors import HfgenError
from hfgen.evaluation.images import image_generator
from hfgen.evaluation.metrics.code_accuracy import code_accuracy
from hfgen.evaluation.metrics.knn_accuracy import knn_accuracy, knn_classes
from hfgen.evaluation.results import Score

if TYPE_CHECKING:
    from hfgen.evaluation.model_metrics import ModelEvidence

BATCH = 64
SAMPLES = 2000
MAX_IMAGES = 10_000
NEIGHBOURS = 4


def has_latent_code(evidence: ModelEvidence) -> None:
    """HfgenError unless the generator has a categorical code, and its data classes."""
    generator = evidence.pipeline.components.get("generator")
    if not (generator is not None and generator.config.get("categorical_codes")):
        name = type(evidence.pipeline).__name__
        raise HfgenError(f"latent_code: needs a generator with categorical_codes, not this {name}")
    if generator.config.get("num_class_embeds"):
        raise HfgenError("latent_code: the generator is told the class, so no code has to find it")
    if not evidence.source.spec.num_classes:
        raise HfgenError(f"latent_code: {evidence.source.spec.name} has no class labels")


def latent_code(evidence: ModelEvidence) -> list[Score]:
    """Agreement of the code of 2,000 samples with their class, in the eyes of the nearest real
    images (4, by pixels); and how often those judge another half of the real images right.
    """
    images, classes = _real(evidence)
    samples, codes = _samples(evidence.pipeline)
    judged = knn_classes(images, classes, samples, k=NEIGHBOURS)
    found = code_accuracy(codes, judged)
    half = len(images) // 2
    fit, test = (images[:half], classes[:half]), (images[half:], classes[half:])
    right = knn_accuracy(*fit, *test, k=NEIGHBOURS)
    spec = evidence.source.spec
    judge = f"{NEIGHBOURS} nearest of {len(images)} images of {spec.name}/{spec.split}"
    settings = f"{len(codes)} samples, judged by the {judge}, which is right on {right:.3f}"
    return [
        Score(
            name=f"code_{name}",
            value=share,
            standard_error=math.sqrt(share * (1 - share) / len(codes)),
            better="higher",
            settings=settings,
        )
        for name, share in (("accuracy", found.accuracy), ("purity", found.purity))
    ]


def _real(evidence: ModelEvidence) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [N, D] in [0, 1] and classes [N], in a random order."""
    rows = np.random.default_rng(0).permutation(len(evidence.source))[:MAX_IMAGES]
    parts = [evidence.source.batch(rows[i : i + BATCH]) for i in range(0, len(rows), BATCH)]
    images = torch.cat([(part["images"] + 1) / 2 for part in parts])
    return images.flatten(1).numpy(), torch.cat([part["labels"] for part in parts]).numpy()


def _samples(pipeline: Any) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [N, D] in [0, 1] and codes [N]."""
    count = pipeline.generator.config["categorical_codes"]
    z = torch.stack([_latents(pipeline, i) for i in range(SAMPLES)])
    drawn: list[Tensor] = []
    for part in z.split(BATCH):
        drawn.append(pipeline(latents=part.to(pipeline.device), output_type="pt").images.cpu())
    return torch.cat(drawn).flatten(1).float().numpy(), z[:, :count].argmax(1).numpy()


def _latents(pipeline: Any, index: int) -> Tensor:
    return torch.randn(pipeline.latent_shape, generator=image_generator(0, index))
