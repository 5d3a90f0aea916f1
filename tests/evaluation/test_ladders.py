"""Every metric moves the right way on real pictures as they get noisier, or fewer distinct ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hfgen.data import DataConfig, load_source
from hfgen.evaluation.backbones import load_backbone
from hfgen.evaluation.metrics import (
    authpct,
    density_coverage,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
    vendi_score,
)

COUNT = 96


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Tensor:
    """Real emoji [2 * COUNT, 3, 32, 32], in random order."""
    source = load_source(DataConfig(path="emoji", cache_dir=str(tmp_path_factory.mktemp("cache"))))
    rows = np.random.default_rng(0).permutation(len(source))[: 2 * COUNT]
    return source.uint8(rows)


@pytest.fixture(scope="module")
def outputs(pictures):
    """lite0's outputs of the reference, and of other pictures under rising noise."""
    backbone = load_backbone("efficientnet-lite0")
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(pictures[COUNT:].shape, generator=draw)

    def noisy(deviation: float) -> Tensor:
        values = pictures[COUNT:].float() + deviation * noise
        return values.round().clamp(0, 255).to(torch.uint8)

    sets = [pictures[:COUNT], *(noisy(deviation) for deviation in (0, 25, 90))]
    return [backbone.extract(images) for images in sets]


def scores(real: Tensor, fake: Tensor, logits: Tensor) -> dict[str, float]:
    """Each so that higher is better."""
    balls = precision_recall(real, fake)
    cover = density_coverage(real, fake)
    return {
        "fd": -frechet_distance(real, fake),
        "kd": -kernel_distance(real, fake).value,
        "precision": balls.precision,
        "recall": balls.recall,
        "density": cover.density,
        "coverage": cover.coverage,
        "vendi": vendi_score(fake),
        "class_score": inception_score(logits, splits=1).value,
        "authpct": authpct(real, fake),
    }


@pytest.mark.parametrize("name", ["fd", "kd", "precision", "density", "coverage"])
def test_noise_ladder(outputs, name):
    real, *ladder = outputs
    found = [scores(real["features"], s["features"], s["logits"])[name] for s in ladder]
    assert found[0] > found[1] >= found[2]


@pytest.mark.parametrize("name", ["fd", "kd", "recall", "coverage", "vendi", "class_score"])
def test_mode_collapse_ladder(outputs, name):
    """96, 12 and 2 distinct pictures; their features repeat as the pictures do."""
    real, fake = outputs[0], outputs[1]
    found = []
    for distinct in (COUNT, 12, 2):
        rows = torch.arange(COUNT) % distinct
        parts = (fake["features"][rows], fake["logits"][rows])
        found.append(scores(real["features"], *parts)[name])
    assert found[0] > found[1] >= found[2]


def test_copies_of_the_training_set_are_recognised(outputs):
    real, fresh = outputs[0]["features"], outputs[1]["features"]
    copied = scores(real, real, outputs[0]["logits"])
    assert copied["authpct"] == 0 < scores(real, fresh, outputs[1]["logits"])["authpct"]
    assert abs(copied["fd"]) < 1e-6
